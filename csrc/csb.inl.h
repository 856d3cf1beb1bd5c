// Layout csb (compressed sparse blocks, after Buluç, Fineman, Frigo, Gilbert and Leiserson, 2009):
// a block of rows and a chunk of columns at a time, so that the activations of a chunk stay in the
// nearest cache; two rows of like counts side by side, so that a loop's end is rarely a surprise.
#pragma once
#include <cstdint>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// Where the activations of a place of a chunk begin: beside each other, as transpose_in lays them.
struct Columns {
  const float* x;
  int64_t width;
  Columns chunk(int64_t c) const { return {x + c * kPlaces * width, width}; }
  const float* at(uint8_t place) const { return x + place * width; }
};

// The same by a table of distances: rows of an image, shifted (convolution).
struct Shifts {
  const float* x;
  const int64_t* shifts;
  Shifts chunk(int64_t c) const { return {x, shifts + c * kPlaces}; }
  const float* at(uint8_t place) const { return x + shifts[place]; }
};

template <int V>
void add(Vec* sums, Vec value, const float* x) {
  for (int v = 0; v < V; ++v) sums[v] = Simd::fma(value, Simd::load(x + v * kW), sums[v]);
}

// Two rows, `steps` weights of each, an even number.
template <int V, class T, class Where>
void csb_pair(const T* values, const uint8_t* places, int64_t steps, const Where& where,
              float* row_a, float* row_b) {
  // Narrow sums would wait for each other's fma: then every second step has sums of its own.
  constexpr int kSets = V <= 2 ? 2 : 1;
  Vec a[kSets][V], b[kSets][V], w[4];
  for (int v = 0; v < V; ++v) {
    a[0][v] = Simd::load(row_a + v * kW);
    b[0][v] = Simd::load(row_b + v * kW);
    if constexpr (kSets == 2) a[1][v] = b[1][v] = Simd::zero();
  }
  for (int64_t i = 0; i < steps; i += 2) {
    Simd::broadcast4(values + 2 * i, w);
    const uint8_t* p = places + 2 * i;
    add<V>(a[0], w[0], where.at(p[0]));
    add<V>(b[0], w[1], where.at(p[1]));
    add<V>(a[kSets - 1], w[2], where.at(p[2]));
    add<V>(b[kSets - 1], w[3], where.at(p[3]));
  }
  for (int v = 0; v < V; ++v) {
    if constexpr (kSets == 2) {
      a[0][v] = Simd::add(a[0][v], a[1][v]);
      b[0][v] = Simd::add(b[0][v], b[1][v]);
    }
    Simd::store(row_a + v * kW, a[0][v]);
    Simd::store(row_b + v * kW, b[0][v]);
  }
}

template <int V, class T, class Where>
void csb_block(const Csb& w, int64_t block, const Where& where, float* sums) {
  constexpr int64_t width = V * kW;
  for (int64_t c = 0; c < w.chunks; ++c) {
    const int32_t* start = w.starts + 2 * (block * w.chunks + c);
    const T* values = values_of<T>(w.values) + 2 * int64_t{start[1]};
    const uint8_t* places = w.columns + 2 * int64_t{start[1]};
    const Where here = where.chunk(c);
    for (int64_t i = start[0]; i < start[2]; ++i) {
      const uint32_t pair = static_cast<uint32_t>(w.pairs[i]);
      const int64_t steps = pair >> 16;
      csb_pair<V>(values, places, steps, here, sums + (pair & 255) * width,
                  sums + (pair >> 8 & 255) * width);
      values += 2 * steps, places += 2 * steps;
    }
  }
}

template <class Where>
void csb_block_of(const Csb& w, int64_t block, const Where& where, int64_t width, float* sums) {
  by_number(w.values, [&]<class T>() {
    switch (width / kW) {
      case 1:
        return csb_block<1, T>(w, block, where, sums);
      case 2:
        return csb_block<2, T>(w, block, where, sums);
      case 3:
        return csb_block<3, T>(w, block, where, sums);
      default:
        return csb_block<4, T>(w, block, where, sums);
    }
  });
}

// One more row of sums than a block has: the partner of an odd last row.
constexpr int64_t kCsbSums = (kMaxBlock + 1) * kTileWidth;

// The bias in the rows [begin, end) of the weight, zeros in those that only fill pairs.
void begin_csb(float* sums, const Csb& w, const float* bias, int64_t width, int64_t begin,
               int64_t end) {
  begin_block(sums, w.values, bias, width, begin, end);
  for (int64_t i = (end - begin) * width; i < (w.block + 1) * width; ++i) sums[i] = 0.0f;
}

void csb_tile(const Csb& w, const Tile& tile, int64_t block) {
  alignas(64) float sums[kCsbSums];
  const int64_t begin = block * w.block, end = least(w.out, begin + w.block);
  begin_csb(sums, w, tile.bias, tile.width, begin, end);
  csb_block_of(w, block, Columns{tile.x, tile.width}, tile.width, sums);
  finish_block(sums, w.values, tile, begin, end, w.out);
}

void csb_pixels(const Csb& w, const Pixels& tile, int64_t block) {
  alignas(64) float sums[kCsbSums];
  const int64_t begin = block * w.block, end = least(w.out, begin + w.block);
  begin_csb(sums, w, tile.bias, tile.width, begin, end);
  csb_block_of(w, block, Shifts{tile.x, tile.shifts}, tile.width, sums);
  scale_block(sums, w.values, tile.bias, tile.width, begin, end);
  for (const Segment* s = tile.segments; tile.residual && s < tile.segments + tile.segment_count;
       ++s) {
    for (int64_t row = begin; row < end; ++row) {
      float* to = sums + (row - begin) * tile.width + s->at;
      const float* from = tile.residual + row * tile.plane + s->to;
      for (int64_t i = 0; i < s->count; ++i) to[i] += from[i];
    }
  }
  activate(sums, (end - begin) * tile.width, tile.activation);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < tile.segment_count; ++k) {
      const Segment& s = tile.segments[k];
      const float* from = sums + (row - begin) * tile.width + s.at;
      float* to = tile.y + row * tile.plane + s.to;
      for (int64_t i = 0; i < s.count; ++i) to[i] = from[i];
    }
  }
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
