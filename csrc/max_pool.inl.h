// Max pooling of a plane: the maximum of whole rows first, then along the row that this gives.
#pragma once
#include <cstdint>
#include <limits>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// NaN where either is.
float greater(float a, float b) { return a > b || a != a ? a : b; }

// Each of `count` floats and that of the other row, the greater one.
void most_of_rows(float* row, const float* other, int64_t count) {
  if (count < kW) {
    for (int64_t i = 0; i < count; ++i) row[i] = greater(row[i], other[i]);
    return;
  }
  for (int64_t i = 0; i < count; i += kW) {
    i = least(i, count - kW);  // the last vector, some of it for the second time
    Simd::store(row + i, Simd::most(Simd::load(row + i), Simd::load(other + i)));
  }
}

// Of the columns step * i, ... + kernel - 1 of a row, kStep 1 or 2.
template <int kStep>
Vec most_of_columns(const float* row, int64_t kernel) {
  if constexpr (kStep == 1) {
    Vec most = Simd::load(row);
    for (int64_t k = 1; k < kernel; ++k) most = Simd::most(most, Simd::load(row + k));
    return most;
  } else {
    Vec a = Simd::load(row), b = Simd::load(row + kW), most = Simd::evens(a, b);
    for (int64_t k = 1; k < kernel; ++k) {
      if (k % 2 == 1) {
        most = Simd::most(most, Simd::odds(a, b));
        continue;
      }
      a = Simd::load(row + k), b = Simd::load(row + k + kW);
      most = Simd::most(most, Simd::evens(a, b));
    }
    return Simd::in_order(most);
  }
}

template <int kStep>
void pool_row(const float* row, int64_t kernel, float* y, int64_t count) {
  if (count < kW) {
    float lanes[kW];
    Simd::store(lanes, most_of_columns<kStep>(row, kernel));
    for (int64_t i = 0; i < count; ++i) y[i] = lanes[i];
    return;
  }
  for (int64_t i = 0; i < count; i += kW) {
    i = least(i, count - kW);
    Simd::store(y + i, most_of_columns<kStep>(row + kStep * i, kernel));
  }
}

void pool_row_by(const float* row, int64_t kernel, int64_t step, float* y, int64_t count) {
  if (step == 1) return pool_row<1>(row, kernel, y, count);
  if (step == 2) return pool_row<2>(row, kernel, y, count);
  for (int64_t i = 0; i < count; ++i, row += step) {
    float most = row[0];
    for (int64_t k = 1; k < kernel; ++k) most = greater(most, row[k]);
    y[i] = most;
  }
}

// row: of p.row floats, which hold the least of all numbers.
void max_pool(const MaxPool& p, const float* x, float* y, float* row) {
  for (int64_t r = 0; r < p.out_height; ++r, y += p.out_width) {
    const int64_t from = r * p.stride_h - p.padding_h;
    const int64_t begin = from < 0 ? 0 : from, end = least(p.height, from + p.kernel_h);
    float* const inner = row + p.padding_w;
    const float* first = x + begin * p.width;
    for (int64_t c = 0; c < p.width; ++c) inner[c] = first[c];
    for (int64_t i = begin + 1; i < end; ++i) most_of_rows(inner, x + i * p.width, p.width);
    pool_row_by(row, p.kernel_w, p.stride_w, y, p.out_width);
  }
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
