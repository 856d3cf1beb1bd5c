// Layout nm: a look-up in registers for small batches (nm_lookup, DESIGN 7), tiles for larger ones.
#pragma once
#include <cstdint>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// Activations of a tile that stay in L1 while a block of rows passes over them.
constexpr int64_t kCacheFloats = 24 * 1024 / sizeof(float);

// Lanes l and l + 1 of a 16-row tile, chunks [first, last).
template <class T, int V>
void nm_lanes(const Nm& w, const Tile& tile, int64_t t, int lane, int64_t first, int64_t last,
              float* sums) {
  constexpr int64_t width = V * kW;
  const T* values = values_of<T>(w.values);
  Sums<V> s;
  s.load(sums);
  for (int v = 0; v < V; ++v) s.b[v] = Simd::load(sums + width + v * kW);
  for (int64_t c = first; c < last; ++c) {
    const float* x = tile.x + c * w.chunk * width;
    for (int64_t slot = 0; slot < w.slots; ++slot) {
      const int64_t i = ((t * w.chunks + c) * w.slots + slot) * kLanes + lane;
      const float a = Simd::widen(values[i]), b = Simd::widen(values[i + 1]);
      if (a != 0.0f) s.to_a(a, x + w.columns[i] * width);
      if (b != 0.0f) s.to_b(b, x + w.columns[i + 1] * width);
    }
  }
  for (int v = 0; v < V; ++v) {
    Simd::store(sums + v * kW, s.a[v]);
    Simd::store(sums + width + v * kW, s.b[v]);
  }
}

template <class T, int V>
void nm_block(const Nm& w, const Tile& tile, float* sums, int64_t begin, int64_t end) {
  constexpr int64_t width = V * kW;
  const int64_t fit = kCacheFloats / (width * w.chunk), step = fit > 0 ? fit : 1;
  for (int64_t c = 0; c < w.chunks; c += step)
    for (int64_t row = begin; row < end; row += 2)
      nm_lanes<T, V>(w, tile, row / kLanes, static_cast<int>(row % kLanes), c,
                     least(w.chunks, c + step), sums + (row - begin) * width);
}

template <class T>
void nm_block_of(const Nm& w, const Tile& tile, float* sums, int64_t begin, int64_t end) {
  switch (tile.width / kW) {
    case 1:
      return nm_block<T, 1>(w, tile, sums, begin, end);
    case 2:
      return nm_block<T, 2>(w, tile, sums, begin, end);
    case 3:
      return nm_block<T, 3>(w, tile, sums, begin, end);
    default:
      return nm_block<T, 4>(w, tile, sums, begin, end);
  }
}

// begin is a multiple of 16; an odd last row runs beside its padded neighbour.
void nm_tile(const Nm& w, const Tile& tile, int64_t begin, int64_t end) {
  alignas(64) float sums[kRowBlock * kTileWidth];
  for (int64_t from = begin; from < end; from += kRowBlock) {
    const int64_t to = least(end, from + kRowBlock);
    if ((to - from) % 2) {
      for (int64_t i = 0; i < tile.width; ++i) sums[(to - from) * tile.width + i] = 0.0f;
    }
    begin_block(sums, w.values, tile.bias, tile.width, from, to);
    by_number(w.values, [&]<class T>() { nm_block_of<T>(w, tile, sums, from, to); });
    finish_block(sums, w.values, tile, from, to, w.out);
  }
}

void nm_tables(const Nm& w, const float* x, int64_t batch, float* tables) {
  for (int64_t r = 0; r < batch; ++r) {
    for (int64_t c = 0; c < w.chunks; ++c) {
      const float* from = x + r * w.in + c * w.chunk;
      float* table = tables + (r * w.chunks + c) * kTable;
      const int64_t n = least(w.chunk, w.in - c * w.chunk);
      if (n == kTable) {
        Simd::prepare(from, table);
        continue;
      }
      float part[kTable] = {};
      for (int64_t i = 0; i < n; ++i) part[i] = from[i];
      Simd::prepare(part, table);
    }
  }
}

void store_rows(const Nm& w, int64_t t, const float* lanes, const float* bias, float* y) {
  const int64_t row = t * kLanes, n = least(kLanes, w.out - row);
  for (int64_t i = 0; i < n; ++i) y[row + i] = finished(w.values, bias, row + i, lanes[i]);
}

// R rows of the batch over pairs of tiles: values and places are read once for all of them.
template <class T, int R>
void nm_lookup_rows(const Nm& w, const float* tables, const float* bias, float* y, int64_t begin,
                    int64_t end) {
  const int64_t per_tile = w.chunks * w.slots * kLanes;
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t t0 = 2 * pair, t1 = least(t0 + 1, w.tiles - 1);
    alignas(64) float lanes[2 * kLanes] = {};
    const int64_t row = t0 * kLanes, n = least(2 * kLanes, w.out - row);
    for (int64_t i = 0; i < n; ++i) lanes[i] = start_of(w.values, bias, row + i);
    Simd::Lanes sums[R];
    for (int r = 0; r < R; ++r) sums[r] = Simd::lanes(lanes, lanes + kLanes);
    const T* v0 = values_of<T>(w.values) + t0 * per_tile;
    const T* v1 = values_of<T>(w.values) + t1 * per_tile;
    const uint8_t *p0 = w.columns + t0 * per_tile, *p1 = w.columns + t1 * per_tile;
    for (int64_t c = 0; c < w.chunks; ++c) {
      for (int64_t s = 0; s < w.slots; ++s) {
        const auto places = Simd::places(p0, p1);
        const auto values = Simd::lanes(v0, v1);
        for (int r = 0; r < R; ++r) {
          const auto table = Simd::table(tables + (r * w.chunks + c) * kTable);
          Simd::fma(sums[r], values, Simd::lookup(table, places));
        }
        p0 += kLanes, p1 += kLanes, v0 += kLanes, v1 += kLanes;
      }
    }
    for (int r = 0; r < R; ++r) {
      Simd::store(lanes, lanes + kLanes, sums[r]);
      store_rows(w, t0, lanes, bias, y + r * w.out);
      if (t1 != t0) store_rows(w, t1, lanes + kLanes, bias, y + r * w.out);
    }
  }
}

template <class T>
void nm_lookup_of(const Nm& w, const float* tables, int64_t batch, const float* bias, float* y,
                  int64_t begin, int64_t end) {
  const int64_t table = w.chunks * kTable;
  int64_t r = 0;
  for (; r + 4 <= batch; r += 4)
    nm_lookup_rows<T, 4>(w, tables + r * table, bias, y + r * w.out, begin, end);
  for (; r + 2 <= batch; r += 2)
    nm_lookup_rows<T, 2>(w, tables + r * table, bias, y + r * w.out, begin, end);
  if (r < batch) nm_lookup_rows<T, 1>(w, tables + r * table, bias, y + r * w.out, begin, end);
}

void nm_lookup(const Nm& w, const float* tables, int64_t batch, const float* bias, float* y,
               int64_t begin, int64_t end) {
  by_number(w.values, [&]<class T>() { nm_lookup_of<T>(w, tables, batch, bias, y, begin, end); });
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
