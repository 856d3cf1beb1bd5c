// Depthwise convolution: each output plane is one channel times one small kernel of weights
// (Howard et al. 2017). For the usual kernels four output rows are computed at once, straight from
// the image: what is loaded of a row serves every output row that it is part of.
#pragma once
#include <cstdint>

#include "depthwise_any.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// What is left of the sums: ReLU and its like need no pass of their own. NaN stays NaN.
struct Clamp {
  Vec low, high;
  Vec operator()(Vec sum) const { return Simd::min(high, Simd::max(low, sum)); }
};

// The same pointer, of which the compiler knows nothing: else it would work out the addresses of
// all loads before the first one, and run out of registers.
[[gnu::always_inline]] inline const float* opaque(const float* p) {
  __asm__("" : "+r"(p));
  return p;
}

// Adds an input row, from `row` on, times a row of weights each, to the R outputs that it is part
// of. M: the row ends inside a vector, and `masks` say for each load which lanes lie in it.
template <int K, int S, int R, bool M>
[[gnu::always_inline]] inline void add_row(const float* row, int t, const int32_t* masks,
                                           const Vec* w, Vec (&sums)[R]) {
  const auto load = [&](int64_t i) SW_INLINED {
    const float* from = row + depthwise_column(i, S, kW);
    if constexpr (M) return Simd::load_some(from, masks + i * kW);
    return Simd::load(from);
  };
  const auto add = [&](int kx, Vec x) SW_INLINED {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int ky = t - r * S;
      if (0 <= ky && ky < K) sums[r] = Simd::fma(w[ky * K + kx], x, sums[r]);
    }
  };
#pragma GCC unroll 8
  for (int kx = 0; kx < K; kx += S) {
    if constexpr (S == 1) {
      add(kx, load(kx));
    } else {
      const Vec low = load(kx), high = load(kx + 1);
      add(kx, Simd::evens(low, high));
      if (kx + 1 < K) add(kx + 1, Simd::odds(low, high));
    }
  }
}

// R output rows from `first` on. N: they may be narrower than a vector.
template <int K, int S, int R, bool N>
void square_rows(const Planes& p, const float* x, const float* weights, float bias,
                 const Clamp& clamp, const Place& to, int64_t first) {
  constexpr int kTall = (R - 1) * S + K;
  constexpr int64_t kLoads = depthwise_loads(K, S);
  constexpr int64_t kReach = depthwise_column(kLoads - 1, S, kW) + kW;
  const float* rows[kTall];
  for (int t = 0; t < kTall; ++t) {
    const int64_t row = first * S + t - p.padding_h;
    rows[t] = 0 <= row && row < p.height ? x + row * p.width : p.zeros;
  }
  Vec w[K * K];
  for (int i = 0; i < K * K; ++i) w[i] = Simd::broadcast(weights[i]);
  const Vec start = Simd::broadcast(bias);
  const int32_t* masks = p.masks;
  for (int64_t c = 0; c < p.out_width; c += kW, masks += kLoads * kW) {
    const int64_t out = most(0, least(c, p.out_width - kW)), at = out * S - p.padding_w;
    Vec sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r] = start;
    if (at >= 0 && at + kReach <= p.width) {
#pragma GCC unroll 16
      for (int t = 0; t < kTall; ++t)
        add_row<K, S, R, false>(opaque(rows[t]) + at, t, nullptr, w, sums);
    } else {
#pragma GCC unroll 16
      for (int t = 0; t < kTall; ++t)
        add_row<K, S, R, true>(opaque(rows[t]) + at, t, masks, w, sums);
    }
    float* y = to.y + first * p.out_width + out;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, y += p.out_width) {
      const Vec sum = clamp(S == 1 ? sums[r] : Simd::in_order(sums[r]));
      if constexpr (N) {
        to.put(y - to.y, sum);
      } else {
        Simd::store(y, sum);
      }
    }
  }
}

template <int K, int S>
void square(const Planes& p, const float* x, const float* weights, float bias, const Clamp& clamp,
            const Place& to) {
  constexpr int kRows = 4;
  const int64_t rows = p.out_height;
  if (rows < kRows) {
    for (int64_t r = 0; r < rows; ++r)
      square_rows<K, S, 1, true>(p, x, weights, bias, clamp, to, r);
    return;
  }
  for (int64_t r = 0; r < rows; r += kRows) {
    const int64_t first = least(r, rows - kRows);  // the last four may be partly done again
    if (p.out_width >= kW) {
      square_rows<K, S, kRows, false>(p, x, weights, bias, clamp, to, first);
    } else {
      square_rows<K, S, kRows, true>(p, x, weights, bias, clamp, to, first);
    }
  }
}

void depthwise(const Planes& p, const float* x, const float* weights, float bias,
               const float* residual, float* y, float* band) {
  const Place to = {y, y + p.out_height * p.out_width};
  const bool six = p.activation == Activation::kRelu6;
  const bool clamps = !residual && (six || p.activation == Activation::kRelu);
  const float infinite = __builtin_inff();
  const Clamp clamp = {Simd::broadcast(clamps ? 0.0f : -infinite),
                       Simd::broadcast(clamps && six ? 6.0f : infinite)};
  const auto by = [&](auto how) { how(p, x, weights, bias, clamp, to); };
  if (!p.masks) {
    depthwise_any(p, x, weights, bias, band, to);
    return finish_plane(p, residual, y);
  }
  switch (10 * p.kernel_h + p.stride_h) {
    case 31:
      by(square<3, 1>);
      break;
    case 32:
      by(square<3, 2>);
      break;
    case 51:
      by(square<5, 1>);
      break;
    case 52:
      by(square<5, 2>);
      break;
    default:
      by(square<7, 1>);
  }
  if (!clamps) finish_plane(p, residual, y);
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
