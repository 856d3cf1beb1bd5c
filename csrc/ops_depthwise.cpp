// Convolutions with a dense weight where every output reads a single channel (depthwise).
#include <vector>

#include "conv.h"

namespace sparsewright {
namespace {

constexpr int64_t kBandFloats = 4096;  // of padded rows that stay in the nearest cache

// Which lanes of every load that a row of outputs takes lie in a row of x.
std::vector<int32_t> masks_of(const Axis& w, int64_t width) {
  const int64_t loads = depthwise_loads(w.kernel, w.stride), vectors = ceil_div(w.out(), width);
  std::vector<int32_t> masks(vectors * loads * width);
  for (int64_t i = 0; i < vectors * loads; ++i) {
    const int64_t out = std::max<int64_t>(0, std::min(i / loads * width, w.out() - width));
    const int64_t from = out * w.stride - w.padding + depthwise_column(i % loads, w.stride, width);
    for (int64_t lane = 0; lane < width; ++lane)
      masks[i * width + lane] = 0 <= from + lane && from + lane < w.size ? -1 : 0;
  }
  return masks;
}

}  // namespace

Tensor dense_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& residual, int64_t kernel_h, int64_t kernel_w,
                    int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
                    int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t activation,
                    int64_t isa) {
  const Kernels& k = kernels_for(isa);
  check_image(input);
  check_tensor(weight, "weight", ScalarType::Float, "float32");
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  const int64_t batch = x.size(0), channels = x.size(1);
  SW_CHECK(weight.dim() == 4 && weight.size(1) == 1 && weight.size(2) == kernel_h &&
               weight.size(3) == kernel_w,
           "weight must have shape (out, 1, ", kernel_h, ", ", kernel_w, ")");
  const int64_t out = weight.size(0);
  SW_CHECK(groups >= 1 && groups == channels && out % groups == 0,
           "groups must be the channels of x and divide those of the output; got ", groups, " for ",
           channels, " and ", out);
  const Axis h = {x.size(2), kernel_h, stride_h, padding_h, dilation_h};
  const Axis w = {x.size(3), kernel_w, stride_w, padding_w, dilation_w};
  check_axis(h, "h");
  check_axis(w, "w");
  const float* starts = bias_of(bias, out);
  const int64_t shape[] = {batch, out, h.out(), w.out()};
  const std::optional<Tensor> added = residual_of(residual, shape);
  Tensor output = new_output(shape, 4);
  const Activation then = activation_of(activation);
  if (batch == 0 || out == 0) return output;

  const bool usual = kernel_h == kernel_w && stride_h == stride_w && dilation_h == 1 &&
                     dilation_w == 1 && depthwise_is_usual(kernel_h, stride_h);
  std::vector<int32_t> masks;
  std::vector<int64_t> shifts;
  Planes planes = {h.size,   w.size,   h.out(),   w.out(),   kernel_h,   kernel_w,
                   stride_h, stride_w, padding_h, padding_w, dilation_h, then,
                   nullptr,  nullptr,  0,         0,         0,          nullptr};
  int64_t floats = w.size;  // a row of zeros, or a band
  if (usual) {
    masks = masks_of(w, k.width);
    planes.masks = masks.data();
  } else {
    const int64_t part = ceil_div(std::max(w.out(), k.width) + w.reach() / stride_w, 8) * 8;
    for (int64_t i = 0; i < kernel_w; ++i) shifts.push_back(w.phase(i) * part + w.shift(i));
    planes.row = part * w.phases(), planes.phases = w.phases(), planes.shifts = shifts.data();
    planes.band = std::max<int64_t>((kBandFloats / planes.row - h.reach() - 1) / stride_h + 1, 1);
    floats = ((planes.band - 1) * stride_h + h.reach() + 1) * planes.row;
  }
  const int64_t in_plane = h.size * w.size, out_plane = shape[2] * shape[3];
  const float* from = static_cast<const float*>(x.const_data_ptr());
  const float* weights = static_cast<const float*>(weight.const_data_ptr());
  const float* more = added ? static_cast<const float*>(added->const_data_ptr()) : nullptr;
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const int64_t work = h.out() * ceil_div(w.out(), k.width) * kernel_h * kernel_w;
  torch::stable::parallel_for(
      0, batch * out, ceil_div(kGrain, work), [&](int64_t begin, int64_t end) {
        float* memory = scratch(floats);
        Planes own = planes;
        own.zeros = memory;
        if (usual) std::fill_n(memory, floats, 0.0f);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t filter = i % out, channel = i / out * channels + filter / (out / groups);
          k.depthwise(own, from + channel * in_plane, weights + filter * kernel_h * kernel_w,
                      starts ? starts[filter] : 0.0f, more ? more + i * out_plane : nullptr,
                      y + i * out_plane, memory);
        }
      });
  return output;
}

}  // namespace sparsewright
