// Zeros where weights are absent, the one thing that masked training adds to every step: a pass
// over the weights, as wide as the vectors are (torch's masked_fill goes weight by weight).
#pragma once
#include "kernels.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// `to` may be `from`. What is put to zero may have been NaN.
void zero_where(const float* from, const uint8_t* where, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = from[i];
    to[i] = where[i] ? 0.0f : value;
  }
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
