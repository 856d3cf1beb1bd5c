// Zeros where weights are absent, in place or in a copy.
#include "ops.h"

namespace sparsewright {
namespace {

constexpr int64_t kMaskGrain = 64 * 1024;  // bytes pass by faster than threads are started

void mask(const Tensor& from, const Tensor& where, const Tensor& to, int64_t isa) {
  check_tensor(from, "values", ScalarType::Float, "float32");
  check_tensor(where, "where", ScalarType::Bool, "bool");
  SW_CHECK(from.numel() == where.numel(), "where must have an entry for each of ", from.numel(),
           " values; got ", where.numel());
  const Kernels& k = kernels_for(isa);
  const float* in = static_cast<const float*>(from.const_data_ptr());
  const uint8_t* zeros = static_cast<const uint8_t*>(where.const_data_ptr());
  float* out = static_cast<float*>(to.mutable_data_ptr());
  torch::stable::parallel_for(0, from.numel(), kMaskGrain, [&](int64_t begin, int64_t end) {
    k.zero_where(in + begin, zeros + begin, out + begin, end - begin);
  });
}

}  // namespace

void zero_where_(const Tensor& values, const Tensor& where, int64_t isa) {
  mask(values, where, values, isa);
}

Tensor zero_where(const Tensor& values, const Tensor& where, int64_t isa) {
  Tensor out = new_output(values.sizes().data(), values.sizes().size());
  mask(values, where, out, isa);
  return out;
}

}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def("zero_where_(Tensor(a!) values, Tensor where, int isa) -> ()");
  m.def("zero_where(Tensor values, Tensor where, int isa) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("zero_where_", TORCH_BOX(&sparsewright::zero_where_));
  m.impl("zero_where", TORCH_BOX(&sparsewright::zero_where));
}
