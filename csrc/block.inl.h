// Layout block: strips of 4, 8 or 16 rows side by side, so that a column of the activations is
// loaded once for all rows of a strip (register blocking: Im, Yelick and Vuduc, 2004). A strip's
// whole columns come first; its others, where some value is 0, mask the activations.
#pragma once
#include <cstdint>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

constexpr int kGroup = 4;                           // rows whose sums are in registers at once
constexpr int kBlockVectors = Simd::kBlockVectors;  // of the batch in a tile: 4 rows times these

// Where every range of a few strips stands: columns are taken in chunks that fit the nearest cache.
struct Cursors {
  int64_t at[2 * kBlockStrips];
  Cursors(const Block& w, int64_t begin, int64_t end) {
    for (int64_t i = 2 * begin; i < 2 * end; ++i) at[i - 2 * begin] = w.starts[i];
  }
};

template <bool kWhole, int V, class T>
void block_column(const T* values, const float* x, Vec (*sums)[V]) {
  Vec from[V];
  for (int v = 0; v < V; ++v) from[v] = Simd::load(x + v * kW);
  for (int k = 0; k < kGroup; ++k) {
    const float one = Simd::widen(values[k]);
    if (!kWhole && one == 0.0f) continue;
    const Vec value = Simd::broadcast(one);
    for (int v = 0; v < V; ++v) sums[k][v] = Simd::fma(value, from[v], sums[k][v]);
  }
}

// The batch along the vector: steps [i, end) of a strip of R rows up to column `limit`, for each
// group of its rows. Returns the first step that is left.
template <bool kWhole, int V, int R, class Index, class T>
int64_t block_steps(const Block& w, int64_t i, int64_t end, int64_t limit, const float* x,
                    float* sums) {
  constexpr int64_t width = V * kW;
  const Index* columns = static_cast<const Index*>(w.columns);
  if (i == end || columns[i] >= limit) return i;
  int64_t last = end;
  for (int group = 0; group < R; group += kGroup, sums += kGroup * width) {
    Vec s[kGroup][V];
    for (int k = 0; k < kGroup; ++k)
      for (int v = 0; v < V; ++v) s[k][v] = Simd::load(sums + k * width + v * kW);
    const T* values = values_of<T>(w.values) + i * R + group;
    int64_t j = i;
    do {
      block_column<kWhole, V>(values, x + columns[j] * width, s);
      values += R;
    } while (++j < last && columns[j] < limit);
    last = j;
    for (int k = 0; k < kGroup; ++k)
      for (int v = 0; v < V; ++v) Simd::store(sums + k * width + v * kW, s[k][v]);
  }
  return last;
}

template <int V, int R, class Index, class T>
void block_tile_of(const Block& w, const Tile& tile, int64_t begin, int64_t end) {
  constexpr int64_t width = V * kW;
  constexpr int64_t kChunk = kBlockFloats / width;
  alignas(64) float sums[kBlockRows * width];
  const int64_t row = begin * R, rows = least(w.out, end * R) - row;
  begin_block(sums, w.values, tile.bias, width, row, row + rows);
  for (int64_t i = rows * width; i < (end - begin) * R * width; ++i) sums[i] = 0.0f;
  Cursors cursors(w, begin, end);
  for (int64_t first = 0; first < w.in; first += kChunk) {
    const int64_t limit = least(w.in, first + kChunk);
    for (int64_t s = begin; s < end; ++s) {
      int64_t* at = cursors.at + 2 * (s - begin);
      float* to = sums + (s - begin) * R * width;
      at[0] = block_steps<true, V, R, Index, T>(w, at[0], w.starts[2 * s + 1], limit, tile.x, to);
      at[1] = block_steps<false, V, R, Index, T>(w, at[1], w.starts[2 * s + 2], limit, tile.x, to);
    }
  }
  finish_block(sums, w.values, tile, row, row + rows, w.out);
}

template <int R, class Index, class T>
void block_tile_by(const Block& w, const Tile& tile, int64_t begin, int64_t end) {
  by_vectors<kBlockVectors>(tile.width / kW,
                            [&]<int V>() { block_tile_of<V, R, Index, T>(w, tile, begin, end); });
}

// The values along the vector: B rows of the batch, read where they lie.
template <int B, int R, class Index, class T>
struct Lanes {
  static constexpr int kParts = R > kW ? R / kW : 1;    // vectors of a column
  static constexpr int kColumns = R < kW ? kW / R : 1;  // columns of a vector
  // Few sums would wait for each other's fma: then several columns have sums of their own.
  static constexpr int kSets = B * kParts >= 5 ? 1 : B * kParts >= 3 ? 2 : 8 / (B * kParts);
  Vec sums[kSets][B][kParts];

  template <bool kWhole>
  void step(int set, const T* values, const Index* columns, const float* x, int64_t in) {
    Vec value[kParts];
    for (int k = 0; k < kParts; ++k) value[k] = Simd::load(values + k * kW);
    for (int b = 0; b < B; ++b) {
      const Vec from = Simd::template spread<R>(x + b * in, columns);
      for (int k = 0; k < kParts; ++k) {
        const Vec seen = kWhole ? from : Simd::where_present(value[k], from);
        sums[set][b][k] = Simd::fma(value[k], seen, sums[set][b][k]);
      }
    }
  }

  // Fewer columns than a vector has: values of the others are 0, and so are their activations.
  void last_steps(const T* values, const Index* columns, int64_t n, const float* x, int64_t in) {
    alignas(64) T held[kColumns * R] = {};
    Index at[kColumns];
    for (int64_t i = 0; i < n * R; ++i) held[i] = values[i];
    for (int64_t i = 0; i < kColumns; ++i) at[i] = columns[i < n ? i : 0];
    step<false>(0, held, at, x, in);
  }

  template <bool kWhole>
  int64_t steps(const Block& w, int64_t i, int64_t end, int64_t limit, const float* x) {
    const Index* columns = static_cast<const Index*>(w.columns);
    const T* values = values_of<T>(w.values);
    constexpr int64_t kMany = kSets * kColumns;
    for (; i + kMany <= end && columns[i + kMany - 1] < limit; i += kMany)
      for (int set = 0; set < kSets; ++set)
        step<kWhole>(set, values + (i + set * kColumns) * R, columns + i + set * kColumns, x, w.in);
    for (; i + kColumns <= end && columns[i + kColumns - 1] < limit; i += kColumns)
      step<kWhole>(0, values + i * R, columns + i, x, w.in);
    int64_t n = 0;
    while (i + n < end && columns[i + n] < limit) ++n;
    if (n > 0) last_steps(values + i * R, columns + i, n, x, w.in);
    return i + n;
  }

  void clear() {
    for (int set = 0; set < kSets; ++set)
      for (int b = 0; b < B; ++b)
        for (int k = 0; k < kParts; ++k) sums[set][b][k] = Simd::zero();
  }

  // Adds the sums to `rows` outputs, at most R, of each row of the batch.
  void add_to(float* y, int64_t out, int64_t rows) {
    for (int b = 0; b < B; ++b, y += out) {
      for (int set = 1; set < kSets; ++set)
        for (int k = 0; k < kParts; ++k) sums[0][b][k] = Simd::add(sums[0][b][k], sums[set][b][k]);
      if (rows == R && kColumns == 1) {
        for (int k = 0; k < kParts; ++k)
          Simd::store(y + k * kW, Simd::add(Simd::load(y + k * kW), sums[0][b][k]));
        continue;
      }
      alignas(64) float all[kColumns * R];
      for (int k = 0; k < kParts; ++k) Simd::store(all + k * kW, sums[0][b][k]);
      for (int64_t r = 0; r < rows; ++r) {
        float sum = all[r];
        for (int c = 1; c < kColumns; ++c) sum += all[c * R + r];
        y[r] += sum;
      }
    }
  }
};

template <int B, int R, class Index, class T>
void block_lanes_of(const Block& w, const float* x, float* y, int64_t begin, int64_t end) {
  constexpr int64_t kChunk = kBlockFloats / B;
  Cursors cursors(w, begin, end);
  Lanes<B, R, Index, T> lanes;
  for (int64_t first = 0; first < w.in; first += kChunk) {
    const int64_t limit = least(w.in, first + kChunk);
    for (int64_t s = begin; s < end; ++s) {
      int64_t* at = cursors.at + 2 * (s - begin);
      lanes.clear();
      at[0] = lanes.template steps<true>(w, at[0], w.starts[2 * s + 1], limit, x);
      at[1] = lanes.template steps<false>(w, at[1], w.starts[2 * s + 2], limit, x);
      lanes.add_to(y + s * R, w.out, least(R, w.out - s * R));
    }
  }
}

template <int R, class Index, class T>
void block_lanes_by(const Block& w, const float* x, int64_t batch, const float* bias, float* y,
                    int64_t begin, int64_t end, Activation activation) {
  // All rows of the batch that come here, where the registers hold their sums.
  constexpr int kMost = R >= 4 * kW ? 2 : Simd::kBlockLanesBatch;
  const int64_t row = begin * R, rows = least(w.out, end * R) - row;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t r = row; r < row + rows; ++r) y[b * w.out + r] = start_of(w.values, bias, r);
  int64_t b = 0;
  for (; b + kMost <= batch; b += kMost)
    block_lanes_of<kMost, R, Index, T>(w, x + b * w.in, y + b * w.out, begin, end);
  for (; b + 4 <= batch; b += 4)
    block_lanes_of<4, R, Index, T>(w, x + b * w.in, y + b * w.out, begin, end);
  for (; b + 2 <= batch; b += 2)
    block_lanes_of<2, R, Index, T>(w, x + b * w.in, y + b * w.out, begin, end);
  if (b < batch) block_lanes_of<1, R, Index, T>(w, x + b * w.in, y + b * w.out, begin, end);
  for (b = 0; b < batch; ++b) {
    float* sums = y + b * w.out;
    for (int64_t r = row; r < row + rows; ++r) sums[r] = finished(w.values, bias, r, sums[r]);
    activate(sums + row, rows, activation);
  }
}

// f.template operator()<R, Index, T>() for the rows of a strip and the types of its columns and
// values.
template <class F>
void block_by(const Block& w, const F& f) {
  by_types(w.values, w.wide, [&]<class Index, class T>() {
    switch (w.rows) {
      case 4:
        return f.template operator()<4, Index, T>();
      case 8:
        return f.template operator()<8, Index, T>();
      default:
        return f.template operator()<16, Index, T>();
    }
  });
}

void block_tile(const Block& w, const Tile& tile, int64_t begin, int64_t end) {
  block_by(w,
           [&]<int R, class Index, class T>() { block_tile_by<R, Index, T>(w, tile, begin, end); });
}

void block_lanes(const Block& w, const float* x, int64_t batch, const float* bias, float* y,
                 int64_t begin, int64_t end, Activation activation) {
  block_by(w, [&]<int R, class Index, class T>() {
    block_lanes_by<R, Index, T>(w, x, batch, bias, y, begin, end, activation);
  });
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
