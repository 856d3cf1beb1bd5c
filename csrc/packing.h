// What packing a weight in a layout needs. The layouts' own Python says what comes out, and does it
// where there is no compiled library; a deployment packs every layer, each time.
#pragma once
#include <bit>
#include <initializer_list>
#include <limits>
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

// What is not 0, to the thread that made it: one that flushes subnormal numbers takes them for 0.
// Those that help it may not do as it does, so it is the bits that are compared.
class Presence {
 public:
  Presence() {
    const volatile float least = std::numeric_limits<float>::denorm_min();
    if (!(least != 0.0f)) absent_ = 0x007fffff;
  }
  bool operator()(float v) const { return (std::bit_cast<int32_t>(v) & 0x7fffffff) > absent_; }
  bool operator()(Bf16 v) const { return (v.bits & 0x7fff) > absent_ >> 16; }
  bool operator()(int8_t v) const { return v != 0; }

 private:
  int32_t absent_ = 0;
};

// A weight (out, in).
struct Matrix {
  const float* at;
  int64_t out, in;
  Presence is_present;
  const float* row(int64_t r) const { return at + r * in; }
};

inline Matrix matrix_of(const Tensor& weight) {
  check_tensor(weight, "weight", ScalarType::Float, "float32");
  SW_CHECK(weight.dim() == 2, "weight must have shape (out, in)");
  SW_CHECK(weight.numel() < int64_t{1} << 30, "weight must have fewer than 2**30 places");
  return {static_cast<const float*>(weight.const_data_ptr()), weight.size(0), weight.size(1), {}};
}

inline int32_t count_of(Presence is_present, const float* from, int64_t places) {
  int32_t count = 0;
  for (int64_t i = 0; i < places; ++i) count += is_present(from[i]);
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

// f(is_present), which says it of each of some values, by the type they are stored in.
template <class F>
bool by_values(const Tensor& values, const F& f) {
  const auto typed = [&, presence = Presence()]<class T>(const T* at) {
    return f([at, presence](int64_t i) { return presence(at[i]); });
  };
  const void* const at = values.const_data_ptr();
  switch (values.scalar_type()) {
    case ScalarType::Float:
      return typed(static_cast<const float*>(at));
    case ScalarType::BFloat16:
      return typed(static_cast<const Bf16*>(at));
    case ScalarType::Char:
      return typed(static_cast<const int8_t*>(at));
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

// A weight is looked through twice: to count, and to fill what was made for so many.
inline void check_same(bool same) { SW_CHECK(same, "the weight was changed while it was packed"); }

}  // namespace sparsewright
