// Layout csr: a dot product per row for single activations (csr_dot), tiles for batches (csr_tile).
#pragma once
#include <cstdint>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// Whether a row lies inside the arrays, and (places ascend) inside the activations.
template <class Index>
bool row_fits(const Csr& w, const Index* columns, int64_t row) {
  const int64_t begin = w.rows[row], end = w.rows[row + 1];
  if (begin < 0 || end < begin || end > w.nnz) return false;
  return begin == end || static_cast<uint64_t>(columns[end - 1]) < static_cast<uint64_t>(w.in);
}

template <class Index, class T>
float dot(const T* values, const Index* columns, int64_t n, const float* x) {
  Vec a = Simd::zero(), b = Simd::zero();
  int64_t i = 0;
  for (; i + 2 * kW <= n; i += 2 * kW) {
    a = Simd::fma(Simd::load(values + i), Simd::gather(x, columns + i), a);
    b = Simd::fma(Simd::load(values + i + kW), Simd::gather(x, columns + i + kW), b);
  }
  float even = 0.0f, odd = 0.0f;
  for (; i + 2 <= n; i += 2) {
    even += Simd::widen(values[i]) * x[columns[i]];
    odd += Simd::widen(values[i + 1]) * x[columns[i + 1]];
  }
  if (i < n) even += Simd::widen(values[i]) * x[columns[i]];
  return (Simd::sum(a) + Simd::sum(b)) + (even + odd);
}

template <class Index, class T>
bool csr_dot_of(const Csr& w, const float* x, int64_t batch, const float* bias, float* y,
                int64_t begin, int64_t end) {
  const Index* columns = static_cast<const Index*>(w.columns);
  for (int64_t row = begin; row < end; ++row) {
    if (!row_fits(w, columns, row)) return false;
    const int64_t first = w.rows[row], n = w.rows[row + 1] - first;
    const T* values = values_of<T>(w.values) + first;
    const float start = start_of(w.values, bias, row);
    for (int64_t r = 0; r < batch; ++r) {
      const float sum = start + dot(values, columns + first, n, x + r * w.in);
      y[r * w.out + row] = finished(w.values, bias, row, sum);
    }
  }
  return true;
}

bool csr_dot(const Csr& w, const float* x, int64_t batch, const float* bias, float* y,
             int64_t begin, int64_t end) {
  return by_types(w.values, w.wide, [&]<class Index, class T>() {
    return csr_dot_of<Index, T>(w, x, batch, bias, y, begin, end);
  });
}

// No steps over the columns here: cutting rows into short pieces, whose ends the CPU cannot
// predict, cost more than activations read from L2 (measured at 1024 to 4096 columns).
template <class Index, class T, int V>
bool csr_block(const Csr& w, const Tile& tile, float* sums, int64_t begin, int64_t end) {
  constexpr int64_t width = V * kW;
  const Index* columns = static_cast<const Index*>(w.columns);
  const T* values = values_of<T>(w.values);
  for (int64_t row = begin; row < end; ++row) {
    if (!row_fits(w, columns, row)) return false;
    const int64_t last = w.rows[row + 1];
    int64_t i = w.rows[row];
    Sums<V> s;
    s.begin(start_of(w.values, tile.bias, row));
    for (; i + 2 <= last; i += 2) {
      s.to_a(values[i], tile.x + static_cast<int64_t>(columns[i]) * width);
      s.to_b(values[i + 1], tile.x + static_cast<int64_t>(columns[i + 1]) * width);
    }
    if (i < last) s.to_a(values[i], tile.x + static_cast<int64_t>(columns[i]) * width);
    s.store_total(sums + (row - begin) * width);
  }
  return true;
}

bool csr_tile(const Csr& w, const Tile& tile, int64_t begin, int64_t end) {
  alignas(64) float sums[kRowBlock * kTileWidth];
  for (int64_t from = begin; from < end; from += kRowBlock) {
    const int64_t to = least(end, from + kRowBlock);
    bool fits = false;
    by_types(w.values, w.wide, [&]<class Index, class T>() {
      by_vectors<kVectors>(tile.width / kW, [&]<int V>() {
        fits = csr_block<Index, T, V>(w, tile, sums, from, to);
      });
    });
    if (!fits) return false;
    finish_block(sums, w.values, tile, from, to, w.out);
  }
  return true;
}

// V vectors of the batch at a time, of activations and sums that lie as columns: all of them in
// one pass over the weight, so that what lies beside each other in memory is read at once.
template <class Index, class T, int V>
bool csr_across_of(const Csr& w, const Across& a, int64_t begin, int64_t end) {
  constexpr int64_t width = V * kW;
  constexpr int kSets = V <= 4 ? 2 : 1;  // few sums would wait for each other's fma
  const Index* columns = static_cast<const Index*>(w.columns);
  const T* values = values_of<T>(w.values);
  for (int64_t row = begin; row < end; ++row) {
    if (!row_fits(w, columns, row)) return false;
    const int64_t last = w.rows[row + 1];
    Vec sums[kSets][V];
    for (int v = 0; v < V; ++v) {
      sums[kSets - 1][v] = Simd::zero();
      sums[0][v] = Simd::broadcast(start_of(w.values, a.bias, row));
    }
    const auto add = [&](int64_t i, int set) {
      const Vec value = Simd::broadcast(Simd::widen(values[i]));
      const float* const x = a.x + static_cast<int64_t>(columns[i]) * a.step;
      for (int v = 0; v < V; ++v)
        sums[set][v] = Simd::fma(value, Simd::load(x + v * kW), sums[set][v]);
    };
    int64_t i = w.rows[row];
    for (; i + kSets <= last; i += kSets)
      for (int set = 0; set < kSets; ++set) add(i + set, set);
    if (i < last) add(i, 0);
    float* const y = a.y + row * a.step;
    for (int v = 0; v < V; ++v)
      Simd::store(y + v * kW, kSets == 1 ? sums[0][v] : Simd::add(sums[0][v], sums[kSets - 1][v]));
    scale_block(y, w.values, a.bias, width, row, row + 1);
    if (a.activation != Activation::kNone) activate(y, width, a.activation);
  }
  return true;
}

bool csr_across(const Csr& w, const Across& a, int64_t width, int64_t begin, int64_t end) {
  return by_types(w.values, w.wide, [&]<class Index, class T>() {
    switch (width / kW) {
      case 1:
        return csr_across_of<Index, T, 1>(w, a, begin, end);
      case 2:
        return csr_across_of<Index, T, 2>(w, a, begin, end);
      case 4:
        return csr_across_of<Index, T, 4>(w, a, begin, end);
      case 8:
        return csr_across_of<Index, T, 8>(w, a, begin, end);
      default:
        return csr_across_of<Index, T, Simd::kAcross>(w, a, begin, end);
    }
  });
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
