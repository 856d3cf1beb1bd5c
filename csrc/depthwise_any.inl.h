// Depthwise convolution of any kernel, stride and dilation: a band of rows is copied with its
// padding into the nearest cache, columns of like remainder by the stride beside each other.
#pragma once
#include <cstdint>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Where outputs go: vectors that reach beyond the end are cut.
struct Place {
  float* y;
  float* end;
  void put(int64_t at, Vec sum) const {
    float* to = y + at;
    if (to + kW <= end) return Simd::store(to, sum);
    float lanes[kW];
    Simd::store(lanes, sum);
    for (int64_t i = 0; to + i < end; ++i) to[i] = lanes[i];
  }
};

// Every stride-th column of a row of x, from `column` on (it may lie before the row), with zeros
// where x has none.
void spread_row(const float* row, int64_t size, int64_t column, int64_t stride, float* out,
                int64_t n) {
  const int64_t before = column < 0 ? least(n, (stride - 1 - column) / stride) : 0;
  const int64_t inside = least(n, most(before, (size - column + stride - 1) / stride));
  int64_t c = 0;
  for (; c < before; ++c) out[c] = 0.0f;
  if (stride == 1) {  // a copy, as the compiler sees then
    for (; c < inside; ++c) out[c] = row[column + c];
  } else {
    for (; c < inside; ++c) out[c] = row[column + stride * c];
  }
  for (; c < n; ++c) out[c] = 0.0f;
}

// The padded rows that output rows [begin, end) read.
void fill_band(const Planes& p, const float* x, int64_t begin, int64_t end, float* band) {
  const int64_t last = (end - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
  for (int64_t r = begin * p.stride_h; r < last; ++r) {
    const int64_t row = r - p.padding_h, part = p.row / p.phases;
    const bool inside = 0 <= row && row < p.height;
    for (int64_t phase = 0; phase < p.phases; ++phase, band += part)
      spread_row(inside ? x + row * p.width : x, inside ? p.width : 0, phase - p.padding_w,
                 p.stride_w, band, part);
  }
}

// One output row, V vectors of it.
template <int V>
void any_sums(const Planes& p, const float* band, const float* weights, float bias,
              const int64_t* at, const Place& to) {
  Vec sums[V];
  for (int v = 0; v < V; ++v) sums[v] = Simd::broadcast(bias);
  for (int64_t ky = 0; ky < p.kernel_h; ++ky) {
    const float* x = band + ky * p.dilation_h * p.row;
    for (int64_t kx = 0; kx < p.kernel_w; ++kx) {
      const Vec weight = Simd::broadcast(*weights++);
      for (int v = 0; v < V; ++v)
        sums[v] = Simd::fma(weight, Simd::load(x + p.shifts[kx] + at[v]), sums[v]);
    }
  }
  for (int v = 0; v < V; ++v) to.put(at[v], sums[v]);
}

// What follows the sums, over a whole plane.
void finish_plane(const Planes& p, const float* residual, float* y) {
  const int64_t floats = p.out_height * p.out_width;
  for (int64_t i = 0; residual && i < floats; ++i) y[i] += residual[i];
  activate(y, floats, p.activation);
}

void depthwise_any(const Planes& p, const float* x, const float* weights, float bias, float* band,
                   const Place& to) {
  constexpr int kWide = 4;
  for (int64_t r = 0; r < p.out_height; ++r) {
    const int64_t in_band = r % p.band;
    if (in_band == 0) fill_band(p, x, r, least(p.out_height, r + p.band), band);
    const float* rows = band + in_band * p.stride_h * p.row;
    const Place row = {to.y + r * p.out_width, to.end};
    for (int64_t c = 0; c < p.out_width; c += kWide * kW) {
      int64_t at[kWide];
      for (int v = 0; v < kWide; ++v) at[v] = most(0, least(c + v * kW, p.out_width - kW));
      if (p.out_width - c > kW) {
        any_sums<kWide>(p, rows, weights, bias, at, row);
      } else {
        any_sums<1>(p, rows, weights, bias, at, row);
      }
    }
  }
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
