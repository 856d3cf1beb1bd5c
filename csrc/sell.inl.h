// Layout sell (sliced ELLPACK with sorted rows, SELL-C-sigma: Kreutzer, Hager, Wellein, Fehske and
// Bishop, 2014): 16 rows of like counts side by side, so that no row has a sum across lanes or an
// end of its own.
#pragma once
#include <cstdint>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// The sums of one slice's lanes, of R rows of the batch, are finished and go where they belong.
template <int R>
void put_lanes(const Slices& w, int64_t slice, float (*lanes)[kLanes], const float* bias,
               float* y) {
  const int32_t* const order = w.order + slice * kLanes;
  const int64_t y_step = w.y_step, y_stride = w.y_stride;
  if (bias || w.values.scales) {
    for (int l = 0; l < kLanes; ++l) {
      const int64_t row = order[l];
      if (row < 0) continue;
      const float start = start_of(w.values, bias, row);
      for (int r = 0; r < R; ++r) lanes[r][l] = finished(w.values, bias, row, lanes[r][l] + start);
    }
  }
  if (w.in_lanes) {  // of a batch of 1
    for (int l = 0; l < kLanes; ++l) y[slice * kLanes + l] = lanes[0][l];
    return;
  }
  for (int l = 0; l < kLanes; ++l) {
    const int64_t row = order[l];
    if (row < 0) continue;
    float* const to = y + row * y_stride;
    for (int r = 0; r < R; ++r) to[r * y_step] = lanes[r][l];
  }
}

// R rows of the batch over slices [begin, end): values and places are read once for all of them.
template <class Index, class T, int R>
void sell_rows(const Sell& w, const float* x, const float* bias, float* y, int64_t begin,
               int64_t end) {
  constexpr int kParts = kLanes / kW;
  // A single vector of sums would wait for its own fma: then every second step has one of its own.
  constexpr int kSets = R * kParts == 1 ? 2 : 1;
  const Index* columns = static_cast<const Index*>(w.columns);
  const T* first = values_of<T>(w.values);
  for (int64_t slice = begin; slice < end; ++slice) {
    Vec sums[kSets][R][kParts];
    const auto clear = [&](int set) {
      for (int r = 0; r < R; ++r)
        for (int k = 0; k < kParts; ++k) sums[set][r][k] = Simd::zero();
    };
    const auto step = [&](int64_t i, int set) {
      const T* values = first + i * kLanes;
      const Index* at = columns + i * kLanes;
      for (int k = 0; k < kParts; ++k) {
        const Vec value = Simd::load(values + k * kW);
        for (int r = 0; r < R; ++r)
          sums[set][r][k] =
              Simd::fma(value, Simd::pick(x + r * w.x_step, at + k * kW), sums[set][r][k]);
      }
    };
    for (int set = 0; set < kSets; ++set) clear(set);
    int64_t i = w.starts[slice];
    const int64_t last = w.starts[slice + 1];
    for (; i + kSets <= last; i += kSets)
      for (int set = 0; set < kSets; ++set) step(i + set, set);
    for (; i < last; ++i) step(i, 0);
    if constexpr (kSets == 2) sums[0][0][0] = Simd::add(sums[0][0][0], sums[1][0][0]);
    alignas(64) float lanes[R][kLanes];
    for (int r = 0; r < R; ++r)
      for (int k = 0; k < kParts; ++k) Simd::store(lanes[r] + k * kW, sums[0][r][k]);
    put_lanes<R>(w, slice, lanes, bias, y);
  }
}

template <class Index, class T>
void sell_dot_of(const Sell& w, const float* x, int64_t batch, const float* bias, float* y,
                 int64_t begin, int64_t end) {
  int64_t r = 0;
  for (; r + 2 <= batch; r += 2)
    sell_rows<Index, T, 2>(w, x + r * w.x_step, bias, y + r * w.y_step, begin, end);
  if (r < batch) sell_rows<Index, T, 1>(w, x + r * w.x_step, bias, y + r * w.y_step, begin, end);
}

void sell_dot(const Sell& w, const float* x, int64_t batch, const float* bias, float* y,
              int64_t begin, int64_t end) {
  by_types(w.values, w.wide, [&]<class Index, class T>() {
    sell_dot_of<Index, T>(w, x, batch, bias, y, begin, end);
  });
}

// Lanes l and l + 1 in lockstep over some steps, the batch along the vector. values, columns: those
// of the steps, 16 each.
template <int V, class T, class Index>
void two_lanes(const T* values, const Index* columns, int64_t steps, const float* x, int l,
               float* sums) {
  constexpr int64_t width = V * kW;
  Sums<V> s;
  s.load(sums);
  for (int v = 0; v < V; ++v) s.b[v] = Simd::load(sums + width + v * kW);
  for (int64_t at = l; at < steps * kLanes; at += kLanes) {
    s.to_a(values[at], x + static_cast<int64_t>(columns[at]) * width);
    s.to_b(values[at + 1], x + static_cast<int64_t>(columns[at + 1]) * width);
  }
  for (int v = 0; v < V; ++v) {
    Simd::store(sums + v * kW, s.a[v]);
    Simd::store(sums + width + v * kW, s.b[v]);
  }
}

// Some steps of a slice, 16 columns and values to each.
template <class Index, class T>
struct Steps {
  const Index* columns;
  const T* values;
};

// One slice of a tile, of any layout that has slices, `most` steps at a time. steps_of(from, to):
// columns and values of these steps, 16 each.
template <class T, class StepsOf>
void slice_tile(const Slices& w, const Tile& tile, int64_t slice, int64_t most,
                const StepsOf& steps_of) {
  alignas(64) float sums[kLanes * kTileWidth];
  const int32_t* order = w.order + slice * kLanes;
  for (int l = 0; l < kLanes; ++l) {
    const Vec start =
        Simd::broadcast(order[l] < 0 ? 0.0f : start_of(w.values, tile.bias, order[l]));
    for (int64_t i = 0; i < tile.width; i += kW) Simd::store(sums + l * tile.width + i, start);
  }
  const int64_t end = w.starts[slice + 1];
  for (int64_t from = w.starts[slice]; from < end; from += most) {
    const int64_t steps = least(most, end - from);
    const auto at = steps_of(from, from + steps);
    by_vectors<kVectors>(tile.width / kW, [&]<int V>() {
      for (int l = 0; l < kLanes; l += 2)
        two_lanes<V>(at.values, at.columns, steps, tile.x, l, sums + l * tile.width);
    });
  }
  for (int l = 0; l < kLanes; ++l) {
    if (order[l] < 0 || !w.values.scales) continue;
    float* p = sums + l * tile.width;
    scale_block(p, w.values, tile.bias, tile.width, order[l], order[l] + 1);
  }
  activate(sums, kLanes * tile.width, tile.activation);
  for (int l = 0; l < kLanes; ++l) {
    if (order[l] < 0) continue;
    if (tile.next) to_columns(sums + l * tile.width, tile, order[l], order[l] + 1);
    for (int64_t r = 0; !tile.next && r < tile.batch; ++r)
      tile.y[r * w.out + order[l]] = sums[l * tile.width + r];
  }
}

void sell_tile(const Sell& w, const Tile& tile, int64_t slice) {
  by_types(w.values, w.wide, [&]<class Index, class T>() {
    const Index* columns = static_cast<const Index*>(w.columns);
    slice_tile<T>(
        w, tile, slice, w.starts[slice + 1] - w.starts[slice], [&](int64_t from, int64_t) {
          return Steps<Index, T>{columns + from * kLanes, values_of<T>(w.values) + from * kLanes};
        });
  });
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
