// The way of images side by side, and back; their pooling.
#include <vector>

#include "beside.h"

namespace sparsewright {
namespace {

// Runs f(group, channel, memory) for all channels of so many groups of images; of each channel
// there are `floats` of memory.
template <class F>
void over_channels(int64_t groups, int64_t channels, int64_t floats, const F& f) {
  const int64_t cost = ceil_div(floats, kImages) * kLayingCost;
  torch::stable::parallel_for(0, groups * channels, ceil_div(kGrain, std::max<int64_t>(cost, 1)),
                              [&](int64_t a, int64_t b) {
                                float* const memory = scratch<kShare>(floats);
                                for (int64_t i = a; i < b; ++i)
                                  f(i / channels, i % channels, memory);
                              });
}

// (batch, channels, height, width) -> side by side; beyond the batch and the columns are zeros.
Tensor to_beside(const Tensor& input, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  check_image(input);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  const int64_t batch = x.size(0);
  const Inside to(ceil_div(batch, kImages), x.size(1), x.size(2), x.size(3));
  const auto shape = to.shape();
  Tensor output = new_output(shape.data(), shape.size());
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const int64_t plane = to.height * to.width, floats = to.channels * plane;
  over_channels(to.groups, to.channels, plane * kImages, [&](int64_t g, int64_t c, float* memory) {
    const int64_t first = g * kImages;
    k.transpose_in(from + first * floats + c * plane, floats, std::min(kImages, batch - first),
                   memory, kImages, 0, plane);
    for (int64_t r = 0; r < to.height; ++r) {
      for (int64_t t = 0; t < to.tiles; ++t) {
        const int64_t column = t * to.columns, count = std::min(to.columns, to.width - column);
        float* const tile = y + g * to.group() + to.place(r, column) + c * to.channel();
        std::copy_n(memory + (r * to.width + column) * kImages, count * kImages, tile);
        std::fill(tile + count * kImages, tile + to.channel(), 0.0f);
      }
    }
  });
  return output;
}

// The way back, of the first `batch` images.
Tensor from_beside(const Tensor& input, int64_t batch, int64_t width, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  const Inside in = inside_of(input, width);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  SW_CHECK(0 <= batch && batch <= in.groups * kImages, "batch must be in [0, ", in.groups * kImages,
           "]; got ", batch);
  const int64_t shape[] = {batch, in.channels, in.height, in.width};
  Tensor output = new_output(shape, 4);
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const int64_t plane = in.height * in.width, floats = in.channels * plane;
  over_channels(ceil_div(batch, kImages), in.channels, plane * kImages,
                [&](int64_t g, int64_t c, float* memory) {
                  const float* const channel = from + g * in.group() + c * in.channel();
                  for (int64_t r = 0; r < in.height; ++r)
                    for (int64_t column = 0; column < in.width; column += in.columns)
                      std::copy_n(channel + in.place(r, column),
                                  std::min(in.columns, in.width - column) * kImages,
                                  memory + (r * in.width + column) * kImages);
                  const int64_t first = g * kImages;
                  k.transpose(memory, kImages, plane, std::min(kImages, batch - first),
                              y + first * floats + c * plane, floats);
                });
  return output;
}

Tensor max_pool2d_beside(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                         int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t width,
                         int64_t isa) {
  const Kernels& k = kernels_for(isa);
  const Inside in = inside_of(input, width);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  const Axis h = {in.height, kernel_h, stride_h, padding_h, 1};
  const Axis w = {in.width, kernel_w, stride_w, padding_w, 1};
  check_axis(h, "h");
  check_axis(w, "w");
  check_pool_padding(h, w);
  const Inside out(in.groups, in.channels, h.out(), w.out());
  const auto shape = out.shape();
  Tensor output = new_output(shape.data(), shape.size());
  if (output.numel() == 0) return output;
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const Laying laying(h, w, out.columns, false);
  const int64_t tiles = out.height * out.tiles;
  const int64_t cost = out.channels * laying.columns() * kImages / k.width;
  torch::stable::parallel_for(
      0, out.groups * tiles, ceil_div(kGrain, cost), [&](int64_t a, int64_t b) {
        std::vector<int64_t> where(static_cast<size_t>(laying.columns()));
        for (int64_t t = a; t < b; ++t) {
          const int64_t tile = t % tiles, row = tile / out.tiles;
          laying.find(in, row, tile % out.tiles * out.columns, where.data());
          k.max_beside(from + t / tiles * in.group(), in.channel(), where.data(), laying.places(),
                       out.columns * kImages, kImages, out.channels, y + t * out.tile());
        }
      });
  return output;
}

}  // namespace
}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def(
      "max_pool2d_beside(Tensor x, int kernel_h, int kernel_w, int stride_h, int stride_w, int "
      "padding_h, int padding_w, int width, int isa) -> Tensor");
  m.def("to_beside(Tensor x, int isa) -> Tensor");
  m.def("from_beside(Tensor x, int batch, int width, int isa) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("max_pool2d_beside", TORCH_BOX(&sparsewright::max_pool2d_beside));
  m.impl("to_beside", TORCH_BOX(&sparsewright::to_beside));
  m.impl("from_beside", TORCH_BOX(&sparsewright::from_beside));
}
