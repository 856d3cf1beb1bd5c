// Max pooling of images. torch's own walks over the windows of a contiguous image one number at a
// time.
#include <limits>

#include "conv.h"

namespace sparsewright {
namespace {

Tensor max_pool2d(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                  int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  check_image(input);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  const Axis h = {x.size(2), kernel_h, stride_h, padding_h, 1};
  const Axis w = {x.size(3), kernel_w, stride_w, padding_w, 1};
  check_axis(h, "h");
  check_axis(w, "w");
  check_pool_padding(h, w);
  const int64_t shape[] = {x.size(0), x.size(1), h.out(), w.out()};
  Tensor output = new_output(shape, 4);
  const int64_t planes = shape[0] * shape[1];
  if (planes == 0) return output;

  // Vectors of the last outputs may read beyond the padding: with stride two, twice their length.
  const int64_t row = w.size + 2 * padding_w + kernel_w + 2 * k.width;
  const MaxPool pool = {h.size,   w.size,   shape[2], shape[3],  kernel_h,
                        kernel_w, stride_h, stride_w, padding_h, padding_w};
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* to = static_cast<float*>(output.mutable_data_ptr());
  const int64_t work = ceil_div(h.out() * (kernel_h * w.size + kernel_w * w.out()), k.width);
  torch::stable::parallel_for(0, planes, ceil_div(kGrain, work), [&](int64_t begin, int64_t end) {
    float* memory = scratch(row);
    std::fill_n(memory, row, -std::numeric_limits<float>::infinity());
    for (int64_t i = begin; i < end; ++i)
      k.max_pool(pool, from + i * h.size * w.size, to + i * shape[2] * shape[3], memory);
  });
  return output;
}

}  // namespace
}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def(
      "max_pool2d(Tensor x, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, "
      "int padding_w, int isa) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&sparsewright::max_pool2d));
}
