// What packing a weight in a layout needs. The layouts' own Python says what comes out, and does it
// where there is no compiled library; a deployment packs every layer, each time.
#pragma once
#include <initializer_list>
#include <tuple>

#include "ops.h"

namespace sparsewright {

// Empty and contiguous.
inline Tensor made(std::initializer_list<int64_t> shape, int32_t dtype) {
  int64_t strides[4];
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape.begin()[i], 1);
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()),
                                                         shape.begin(), strides, dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// A weight (out, in), of which is present what is not 0.
struct Matrix {
  const float* at;
  int64_t out, in;
  const float* row(int64_t r) const { return at + r * in; }
};

inline Matrix matrix_of(const Tensor& weight) {
  check_tensor(weight, "weight", ScalarType::Float, "float32");
  SW_CHECK(weight.dim() == 2, "weight must have shape (out, in)");
  SW_CHECK(weight.numel() < int64_t{1} << 30, "weight must have fewer than 2**30 places");
  return {static_cast<const float*>(weight.const_data_ptr()), weight.size(0), weight.size(1)};
}

inline int32_t count_of(const float* from, int64_t places) {
  int32_t count = 0;
  for (int64_t i = 0; i < places; ++i) count += from[i] != 0.0f;
  return count;
}

// Whether starts, `width` numbers to each, run from 0 and do not descend: then they stay inside
// what the last of them has been compared with.
inline bool ascend(const int32_t* starts, int64_t count, int64_t width) {
  for (int64_t i = 0; i < width; ++i)
    if (starts[i] != 0) return false;
  for (int64_t i = width; i < count * width; ++i)
    if (starts[i] < starts[i - width]) return false;
  return true;
}

// f(values) by the type they are stored in, of which present is what is not 0.
template <class F>
bool by_values(const Tensor& values, const F& f) {
  const void* const at = values.const_data_ptr();
  switch (values.scalar_type()) {
    case ScalarType::Float:
      return f([at](int64_t i) { return static_cast<const float*>(at)[i] != 0.0f; });
    case ScalarType::BFloat16:  // two zeros
      return f([at](int64_t i) { return (static_cast<const uint16_t*>(at)[i] & 0x7fff) != 0; });
    case ScalarType::Char:
      return f([at](int64_t i) { return static_cast<const int8_t*>(at)[i] != 0; });
    default:
      fail("values must be float32, bfloat16 or int8");
  }
}

// Shared out over the threads, so many floats to an item.
template <class Body>
void over(int64_t items, int64_t floats, const Body& body) {
  constexpr int64_t kFloats = 64 * 1024;  // that a thread looks through before it pays for itself
  torch::stable::parallel_for(0, items, ceil_div(kFloats, std::max<int64_t>(floats, 1)),
                              [&](int64_t from, int64_t to) {
                                for (int64_t i = from; i < to; ++i) body(i);
                              });
}

// Whether body(i) is true of all items; as `over`, so many places to an item.
template <class Body>
bool holds_of(int64_t items, int64_t places, const Body& body) {
  std::atomic<bool> all = true;
  over(items, places, [&](int64_t i) {
    if (all && !body(i)) all = false;
  });
  return all;
}

}  // namespace sparsewright
