// The columns of a topology, in the one of two types that they have.
#pragma once
#include "ops.h"

namespace sparsewright {

inline bool is_wide(const Tensor& columns) {
  const bool wide = columns.scalar_type() == ScalarType::Int;
  check_tensor(columns, "columns", wide ? ScalarType::Int : ScalarType::UInt16, "uint16 or int32");
  return wide;
}

// f(columns), with their type.
template <class F>
void by_index(const Tensor& columns, const F& f) {
  if (is_wide(columns))
    f(static_cast<const int32_t*>(columns.const_data_ptr()));
  else
    f(static_cast<const uint16_t*>(columns.const_data_ptr()));
}

// The first weight of every row, checked.
inline const int64_t* starts_of(const Tensor& starts, const Tensor& columns) {
  check_tensor(starts, "starts", ScalarType::Long, "int64");
  SW_CHECK(starts.numel() >= 1, "starts must not be empty");
  const int64_t* start = static_cast<const int64_t*>(starts.const_data_ptr());
  SW_CHECK(start[0] == 0 && start[starts.numel() - 1] == columns.numel(),
           "starts must run from 0 to ", columns.numel());
  return start;
}

}  // namespace sparsewright
