// What the convolutions' ops share: one direction of the image, and the checks of their arguments.
#pragma once
#include "ops.h"

namespace sparsewright {

// One direction of the image.
struct Axis {
  int64_t size, kernel, stride, padding, dilation;
  int64_t reach() const { return (kernel - 1) * dilation; }
  int64_t out() const { return (size + 2 * padding - reach() - 1) / stride + 1; }
  int64_t phases() const { return kernel == 1 ? 1 : stride; }  // planes per channel
  int64_t rows() const { return out() + reach() / stride; }    // of one plane
  int64_t phase(int64_t k) const { return k * dilation % stride; }
  int64_t shift(int64_t k) const { return k * dilation / stride; }
};

inline void check_axis(const Axis& a, const char* name) {
  SW_CHECK(a.kernel >= 1 && a.stride >= 1 && a.dilation >= 1 && a.padding >= 0, "kernel_", name,
           ", stride_", name, " and dilation_", name, " must be at least 1 and padding_", name,
           " at least 0; got ", a.kernel, ", ", a.stride, ", ", a.dilation, " and ", a.padding);
  SW_CHECK(a.kernel <= 4096 && a.stride <= 4096 && a.dilation <= 4096 && a.padding <= 4096,
           "a kernel, stride, dilation or padding is at most 4096");
  SW_CHECK(a.size + 2 * a.padding > a.reach(), "the kernel reaches over ", a.reach() + 1,
           " places, the padded image has ", a.size + 2 * a.padding, " (", name, ")");
}

inline void check_pool_padding(const Axis& h, const Axis& w) {
  SW_CHECK(2 * h.padding <= h.kernel && 2 * w.padding <= w.kernel,
           "padding is at most half of the kernel; got ", h.padding, " and ", w.padding, " for ",
           h.kernel, " and ", w.kernel);
}

inline void check_image(const Tensor& x) {
  SW_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float, "x must be float32 on the CPU");
  SW_CHECK(x.dim() == 4, "x must have shape (batch, channels, height, width); got ", x.dim(),
           " dimensions");
}

// What is added to an output of four sizes, contiguous.
inline std::optional<Tensor> residual_of(const std::optional<Tensor>& residual,
                                         const int64_t* shape) {
  if (!residual) return std::nullopt;
  SW_CHECK(residual->is_cpu() && residual->scalar_type() == ScalarType::Float,
           "residual must be float32 on the CPU");
  const auto sizes = residual->sizes();
  SW_CHECK(sizes.size() == 4 && std::equal(shape, shape + 4, sizes.begin()),
           "residual must have the output's shape, (", shape[0], ", ", shape[1], ", ", shape[2],
           ", ", shape[3], ")");
  return residual->is_contiguous() ? *residual : torch::stable::contiguous(*residual);
}

}  // namespace sparsewright
