// The gradient of present weights: for each one the dot product of a row of dy and a column of x
// over the batch (sampled dense-dense product; Nisa et al., 2018). Eight weights at a time keep a
// sum each in a register, which one transposing reduction turns into eight floats.
#pragma once
#include <cstdint>
#include <cstring>

#include "csr.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

template <int V>
struct Row {
  Vec v[V];
  explicit Row(const float* p) {
    for (int i = 0; i < V; ++i) v[i] = Simd::load(p + i * kW);
  }
  [[gnu::always_inline]] Vec times(const float* x) const {
    if constexpr (V >= 4) __asm__("" : "+r"(x));  // an index beside the base would cost each load
    Vec sum = Simd::mul(v[0], Simd::load(x));
    for (int i = 1; i < V; ++i) sum = Simd::fma(v[i], Simd::load(x + i * kW), sum);
    return sum;
  }
};

// kCount weights of a, b, a, b ...: eight or four. Inlined, or a and b would not stay in registers.
template <int V, int kCount>
[[gnu::always_inline]] inline void outer_places(const Row<V>& a, const Row<V>& b, const float* xa,
                                                const float* xb, const uint8_t* places,
                                                float* sums) {
  constexpr int64_t width = V * kW;
  uint64_t eight = 0;  // places, by one load
  std::memcpy(&eight, places, kCount);
  Vec all[8];
  for (int i = 0; i < kCount; i += 2) {
    all[i] = a.times(xa + (eight >> 8 * i & 255) * width);
    all[i + 1] = b.times(xb + (eight >> (8 * i + 8) & 255) * width);
  }
  for (int i = kCount; i < 8; ++i) all[i] = Simd::zero();
  Simd::add_sums(all, sums);
}

template <int V, bool kGroups>
void csb_outer_of(const Csb& w, const float* x, const float* dy, const int64_t* rows, int64_t first,
                  int64_t last, int64_t step, float* sums) {
  constexpr int64_t width = V * kW;
  const uint8_t* places = w.columns + 2 * step;
  for (int64_t p = first; p < last; ++p) {
    const uint32_t pair = static_cast<uint32_t>(w.pairs[p]);
    const int64_t steps = pair >> 16;
    const uint32_t row_a = pair & 255, row_b = pair >> 8 & 255;
    const Row<V> a(dy + row_a * width), b(dy + row_b * width);
    const float* xa = kGroups ? x + rows[row_a] * width : x;
    const float* xb = kGroups ? x + rows[row_b] * width : x;
    int64_t i = 0;
    for (; i + 4 <= steps; i += 4, places += 8, sums += 8)
      outer_places<V, 8>(a, b, xa, xb, places, sums);
    if (i < steps) {  // steps are even
      outer_places<V, 4>(a, b, xa, xb, places, sums);
      places += 4, sums += 4;
    }
  }
}

void csb_outer(const Csb& w, const float* x, const float* dy, int64_t width, const int64_t* rows,
               int64_t first, int64_t last, int64_t step, float* sums) {
  by_vectors<kVectors>(width / kW, [&]<int V>() {
    rows ? csb_outer_of<V, true>(w, x, dy, rows, first, last, step, sums)
         : csb_outer_of<V, false>(w, x, dy, rows, first, last, step, sums);
  });
}

template <class Index, int V>
bool csr_outer_of(const Csr& w, const float* x, const float* dy, int64_t begin, int64_t end,
                  float* sums) {
  constexpr int64_t width = V * kW;
  const Index* columns = static_cast<const Index*>(w.columns);
  for (int64_t row = begin; row < end; ++row) {
    if (!row_fits(w, columns, row)) return false;
    const Row<V> a(dy + row * width);
    const auto times = [&](int64_t i) { return a.times(x + int64_t{columns[i]} * width); };
    int64_t i = w.rows[row];
    for (; i + 8 <= w.rows[row + 1]; i += 8) {
      Vec all[8];
      for (int k = 0; k < 8; ++k) all[k] = times(i + k);
      Simd::add_sums(all, sums + i);
    }
    for (; i < w.rows[row + 1]; ++i) sums[i] += Simd::sum(times(i));
  }
  return true;
}

bool csr_outer(const Csr& w, const float* x, const float* dy, int64_t width, int64_t begin,
               int64_t end, float* sums) {
  bool fits = true;
  by_vectors<kVectors>(width / kW, [&]<int V>() {
    fits = w.wide ? csr_outer_of<int32_t, V>(w, x, dy, begin, end, sums)
                  : csr_outer_of<uint16_t, V>(w, x, dy, begin, end, sums);
  });
  return fits;
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
