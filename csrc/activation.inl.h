// What may follow the bias inside a kernel: ReLU, GELU, SiLU, ReLU6, hard swish (Howard et al.
// 2019), over values that are still in cache. Plain loops that the compiler turns into vectors of
// the instruction set at hand.
#pragma once
#include <bit>
#include <cstdint>

#include "kernels.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// e^x to about 2 ulp: x = n ln 2 + r, a polynomial of e^r, n into the exponent (Cody and Waite,
// 1980). Beyond 88 infinity, below -87 zero; NaN is the caller's.
inline float exponential(float x) {
  const float inside = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float n = (inside * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounds to nearest
  const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  const float y = p * scale;
  return x > 88.0f ? __builtin_inff() : x < -87.0f ? 0.0f : y;
}

// erf by Abramowitz and Stegun (1964), 7.1.26: off by at most 1.5e-7.
inline float gelu(float x) {
  const float z = x * 0.70710678f, a = z < 0.0f ? -z : z;
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = p * t * exponential(-a * a);  // 1 - erf(|z|)
  // For negative x the small tail itself, not its difference from one.
  return 0.5f * x * (x < 0.0f ? tail : 2.0f - tail);
}

inline float silu(float x) { return x / (1.0f + exponential(-x)); }

inline float relu6(float x) { return x > 6.0f ? 6.0f : x > 0.0f ? x : 0.0f; }

inline float hardswish(float x) { return x * relu6(x + 3.0f) / 6.0f; }

template <class F>
void each(float* y, int64_t n, const F& f) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = y[i];
    y[i] = x != x ? x : f(x);  // NaN stays NaN
  }
}

void activate(float* y, int64_t n, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return each(y, n, [](float x) { return x > 0.0f ? x : 0.0f; });
    case Activation::kGelu:
      return each(y, n, gelu);
    case Activation::kSilu:
      return each(y, n, silu);
    case Activation::kRelu6:
      return each(y, n, relu6);
    case Activation::kHardswish:
      return each(y, n, hardswish);
  }
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
