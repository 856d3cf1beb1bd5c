// Convolution with weights in layout csb: a tile of positions of one image, planes in and out.
#pragma once
#include <cstdint>

#include "csb.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

constexpr int kPixelVectors = 7;  // images of many nets have sides of 7 times a power of two

// out[i] = x[2 i]
void every_second(const float* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kW < count; i += kW) {  // the last is left: nothing is read after it
    const Vec a = Simd::load(x + 2 * i), b = Simd::load(x + 2 * i + kW);
    Simd::store(out + i, Simd::in_order(Simd::evens(a, b)));
  }
  for (; i < count; ++i) out[i] = x[2 * i];
}

template <int V>
void lay_whole(const float* x, const int64_t* shifts, int64_t columns, float* tile) {
  for (int64_t c = 0; c < columns; ++c, tile += V * kW) {
    const float* from = x + shifts[c];
    for (int v = 0; v < V; ++v) {
      Simd::store(tile + v * kW, Simd::load(from + v * kW));
      __builtin_prefetch(from + (V + v) * kW, 0, 2);  // the tile after this one
    }
  }
}

void lay_columns(const float* x, const int64_t* shifts, int64_t columns, int64_t count,
                 int64_t width, float* tile) {
  if (count == width)
    return by_vectors<kPixelVectors>(width / kW,
                                     [&]<int V>() { lay_whole<V>(x, shifts, columns, tile); });
  for (int64_t c = 0; c < columns; ++c, tile += width) {
    int64_t i = 0;
    for (; i + kW <= count; i += kW) Simd::store(tile + i, Simd::load(x + shifts[c] + i));
    for (; i < count; ++i) tile[i] = x[shifts[c] + i];
    for (i = count; i < width; ++i) tile[i] = 0.0f;
  }
}

// Those of one chunk, and the zeros of its padding.
void lay_chunk(const Csb& w, int64_t chunk, const float* x, const int64_t* shifts, int64_t count,
               int64_t width, float* tile) {
  lay_columns(x, shifts + chunk * kPlaces, least(w.chunk, w.in - chunk * w.chunk), count, width,
              tile);
  for (int64_t i = 0; i < width; ++i) tile[(kPlaces - 1) * width + i] = 0.0f;
}

// The activations of a tile that lie at `shifts` from x -> beside each other, as those of a Tile;
// of each column there are `count`, the rest is zero.
void lay_tile(const Csb& w, const float* x, const int64_t* shifts, int64_t count, int64_t width,
              float* tile) {
  for (int64_t c = 0; c < w.chunks; ++c)
    lay_chunk(w, c, x, shifts, count, width, tile + c * kPlaces * width);
}

// Where the activations of a place begin, by a table of distances: rows of an image, shifted.
struct Shifts {
  const float* x;
  const int64_t* shifts;
  Shifts chunk(int64_t c) const { return {x, shifts + c * kPlaces}; }
  const float* a(uint32_t place) const { return x + shifts[place]; }
  const float* b(uint32_t place) const { return a(place); }
  const Shifts& of(uint32_t, uint32_t) const { return *this; }
};

// Two rows that may read different channels.
struct TwoShifts {
  const float* x;
  const int64_t *shifts_a, *shifts_b;
  const float* a(uint32_t place) const { return x + shifts_a[place]; }
  const float* b(uint32_t place) const { return x + shifts_b[place]; }
};

// The same for a convolution in groups.
struct GroupShifts {
  const float* x;
  const int64_t *shifts, *rows;
  GroupShifts chunk(int64_t c) const { return {x, shifts + c * kPlaces, rows}; }
  TwoShifts of(uint32_t a, uint32_t b) const { return {x, shifts + rows[a], shifts + rows[b]}; }
};

// `count` sums of one row to their place in the output, what is added to it, and ReLU.
template <bool kRelu>
void finish_row(const float* sums, const float* residual, float* y, int64_t count) {
  if (count < kW) {
    for (int64_t i = 0; i < count; ++i) {
      const float v = residual ? sums[i] + residual[i] : sums[i];
      y[i] = kRelu && v < 0.0f ? 0.0f : v;
    }
    return;
  }
  for (int64_t i = 0; i < count; i += kW) {
    i = least(i, count - kW);  // the last vector, some of it for the second time
    Vec v = Simd::load(sums + i);
    if (residual) v = Simd::add(v, Simd::load(residual + i));
    Simd::store(y + i, kRelu ? Simd::relu(v) : v);
  }
}

template <bool kRelu>
void finish_rows(const float* sums, const Pixels& tile, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row, sums += tile.width) {
    for (const Segment* s = tile.segments; s < tile.segments + tile.segment_count; ++s) {
      const int64_t to = row * tile.plane + s->to;
      const float* residual = tile.residual ? tile.residual + to : nullptr;
      finish_row<kRelu>(sums + s->at, residual, tile.y + to, s->count);
    }
  }
}

// Rows of a weight with one chunk of columns, in a tile that lies together in the output: their
// sums never wait in memory.
template <int V, bool kRelu>
struct Straight {
  const Pixels& tile;
  int64_t begin, rows;
  bool* done;

  [[gnu::always_inline]] void load(int64_t row, Vec* v) const {
    const bool given = tile.bias && row < rows;
    const Vec start = Simd::broadcast(given ? tile.bias[begin + row] : 0.0f);
    each<V>([&](int i) SW_INLINED { v[i] = start; });
  }
  [[gnu::always_inline]] void store(int64_t row, const Vec* v) const {
    if (row >= rows) return;
    done[row] = true;
    const Segment& s = tile.segments[0];
    const int64_t to = (begin + row) * tile.plane + s.to;
    const float* residual = tile.residual ? tile.residual + to : nullptr;
    if (s.count == V * kW) {
      each<V>([&](int i) SW_INLINED {
        const Vec sum = residual ? Simd::add(v[i], Simd::load(residual + i * kW)) : v[i];
        Simd::store(tile.y + to + i * kW, kRelu ? Simd::relu(sum) : sum);
      });
      return;
    }
    float sums[V * kW];
    each<V>([&](int i) SW_INLINED { Simd::store(sums + i * kW, v[i]); });
    finish_row<kRelu>(sums + s.at, residual, tile.y + to, s.count);
  }
};

template <int V, bool kRelu, class Where>
void csb_straight(const Csb& w, const Pixels& tile, int64_t block, const Where& where) {
  const int64_t begin = block * w.block, rows = least(w.out - begin, w.block);
  bool done[kMaxBlock] = {};
  const Straight<V, kRelu> out{tile, begin, rows, done};
  csb_chunk<V, float>(w, block, 0, where, out);
  for (int64_t row = 0; row < rows; ++row) {
    if (done[row]) continue;  // else a row without weights
    Vec v[V];
    out.load(row, v);
    out.store(row, v);
  }
}

// The sums of a block's rows to their places in the output, and what follows.
void finish_pixels(float* sums, const Csb& w, const Pixels& tile, int64_t block) {
  const int64_t begin = block * w.block, end = least(w.out, begin + w.block);
  scale_block(sums, w.values, tile.bias, tile.width, begin, end);
  if (tile.activation == Activation::kRelu) return finish_rows<true>(sums, tile, begin, end);
  finish_rows<false>(sums, tile, begin, end);
  if (tile.activation == Activation::kNone) return;
  for (int64_t row = begin; row < end; ++row)
    for (const Segment* s = tile.segments; s < tile.segments + tile.segment_count; ++s)
      activate(tile.y + row * tile.plane + s->to, s->count, tile.activation);
}

// f(where the activations of a chunk begin)
template <int V, class F>
void by_where(const Pixels& tile, int64_t chunk, const F& f) {
  if (tile.laid) return f(Columns<V>{tile.laid});
  if (tile.rows) return f(GroupShifts{tile.x, tile.shifts, tile.rows}.chunk(chunk));
  f(Shifts{tile.x, tile.shifts}.chunk(chunk));
}

template <int V>
void csb_straight_blocks(const Csb& w, const Pixels& tile, int64_t begin, int64_t end) {
  by_where<V>(tile, 0, [&](const auto& where) {
    for (int64_t block = begin; block < end; ++block) {
      if (tile.activation == Activation::kRelu)
        csb_straight<V, true>(w, tile, block, where);
      else
        csb_straight<V, false>(w, tile, block, where);
    }
  });
}

// A chunk for all blocks before the next one: its activations are laid into the nearest cache and
// used there.
template <int V>
void csb_waiting_blocks(const Csb& w, const Pixels& tile, int64_t begin, int64_t end) {
  const int64_t step = (w.block + 1) * tile.width;
  const auto sums = [&](int64_t block) { return tile.sums + (block - begin) * step; };
  for (int64_t block = begin; block < end; ++block)
    begin_csb(sums(block), w, tile.bias, tile.width, block * w.block,
              least(w.out, (block + 1) * w.block));
  by_number(w.values, [&]<class T>() {
    for (int64_t c = 0; c < w.chunks; ++c) {
      if (tile.laid) lay_chunk(w, c, tile.x, tile.shifts, tile.count, tile.width, tile.laid);
      by_where<V>(tile, c, [&](const auto& where) {
        for (int64_t block = begin; block < end; ++block)
          csb_chunk<V, T>(w, block, c, where, Waiting<V>{sums(block)});
      });
    }
  });
  for (int64_t block = begin; block < end; ++block) finish_pixels(sums(block), w, tile, block);
}

// Whether the sums of a tile need not wait in memory, for other chunks or to be cut.
bool is_straight(const Csb& w, const Pixels& tile) {
  const bool usual = tile.activation == Activation::kNone || tile.activation == Activation::kRelu;
  return usual && w.chunks == 1 && tile.segment_count == 1 && w.values.number == Number::kFloat;
}

void csb_pixels(const Csb& w, const Pixels& tile, int64_t begin, int64_t end) {
  by_vectors<kPixelVectors>(tile.width / kW, [&]<int V>() {
    if (!is_straight(w, tile)) return csb_waiting_blocks<V>(w, tile, begin, end);
    if (tile.laid) lay_chunk(w, 0, tile.x, tile.shifts, tile.count, tile.width, tile.laid);
    csb_straight_blocks<V>(w, tile, begin, end);
  });
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
