// Convolutions with weights in layout csb, without im2col: every weight multiplies a shifted row of
// the image (Park et al. 2017; Elsen et al. 2020).
//
// The padded image is laid out so that a step of one position in the output is a step of one
// position in memory, whatever the stride: positions of like remainder by the stride lie in a plane
// of their own. A 1x1 convolution reads the image as it is.
#include <array>
#include <vector>

#include "ops.h"

namespace sparsewright {
namespace {

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

struct Image {
  Axis h, w;
  int64_t channels;
  bool direct;     // the planes are those of x itself
  int64_t step;    // from one row of a plane to the next
  int64_t plane;   // floats of a plane
  int64_t planes;  // of one image
  int64_t positions() const { return (h.out() - 1) * step + w.out(); }
};

constexpr int64_t kSlack = 128;       // floats that a tile may read beyond a plane
constexpr int64_t kBadStride = 1024;  // bytes between planes that crowd the same cache lines
constexpr int64_t kImageFloats = 1024 * 1024;  // floats of padded images held at once

Image image_of(const Axis& h, const Axis& w, int64_t channels, int64_t width, int64_t tile) {
  Image i = {h, w, channels, false, w.size, h.size * w.size, channels};
  const bool plain = h.kernel == 1 && w.kernel == 1 && h.stride == 1 && w.stride == 1 &&
                     h.padding == 0 && w.padding == 0;
  const bool whole = i.plane >= tile || i.plane % width == 0;  // no tile reaches beyond x
  i.direct = plain && whole && i.plane * 4 % kBadStride != 0;
  if (i.direct) return i;
  // With a stride of one, the zeros right of a row are those left of the next one.
  const int64_t right = w.rows() - w.padding - w.size;
  const int64_t shared = w.stride == 1 ? std::max<int64_t>(0, std::min(w.padding, right)) : 0;
  i.step = w.rows() - shared;
  i.plane = ceil_div(h.rows() * i.step + shared, 16) * 16;
  if (i.plane * 4 % kBadStride == 0) i.plane += 16;
  i.planes = channels * h.phases() * w.phases();
  return i;
}

// The planes of one channel of x (rows of `h.size` by `w.size`).
void lay_out(const Image& i, const float* x, float* planes) {
  for (int64_t a = 0; a < i.h.phases(); ++a) {
    for (int64_t b = 0; b < i.w.phases(); ++b, planes += i.plane) {
      std::fill_n(planes, i.plane, 0.0f);
      // Rows and columns of the plane that lie inside the image.
      const auto first = [](const Axis& axis, int64_t phase) {
        return std::max<int64_t>(0, ceil_div(axis.padding - phase, axis.stride));
      };
      const auto last = [](const Axis& axis, int64_t phase) {
        return std::min(axis.rows(), ceil_div(axis.size + axis.padding - phase, axis.stride));
      };
      const int64_t from = first(i.w, b), to = last(i.w, b);
      for (int64_t r = first(i.h, a); r < last(i.h, a); ++r) {
        const float* row = x + (r * i.h.stride + a - i.h.padding) * i.w.size + b - i.w.padding;
        float* out = planes + r * i.step;
        if (i.w.stride == 1) {
          if (from < to) std::copy(row + from, row + to, out + from);
        } else {
          for (int64_t c = from; c < to; ++c) out[c] = row[c * i.w.stride];
        }
      }
    }
  }
}

// Where the activation of every place of the weight lies, from the first position of an image; the
// places of padding are filled for every image.
void fill_shifts(const Image& i, int64_t chunk, int64_t* shifts) {
  int64_t column = 0, chunk_of = 0;
  for (int64_t c = 0; c < i.channels; ++c) {
    for (int64_t y = 0; y < i.h.kernel; ++y) {
      for (int64_t x = 0; x < i.w.kernel; ++x) {
        const int64_t plane = (c * i.h.phases() + i.h.phase(y)) * i.w.phases() + i.w.phase(x);
        shifts[chunk_of * kPlaces + column] =
            plane * i.plane + i.h.shift(y) * i.step + i.w.shift(x);
        if (++column == chunk) column = 0, ++chunk_of;
      }
    }
  }
}

// The parts of positions [from, to) that are output, as places behind `base`.
int64_t segments_of(const Image& i, int64_t from, int64_t to, int64_t base, Segment* out) {
  int64_t n = 0;
  for (int64_t p = from; p < to;) {
    const int64_t y = p / i.step, x = p % i.step;
    const int64_t end = std::min(to, y * i.step + i.w.out());
    if (end > p) out[n++] = {p - base, end - p, y * i.w.out() + x};
    p = (y + 1) * i.step;
  }
  return n;
}

void check_axis(const Axis& a, const char* name) {
  SW_CHECK(a.kernel >= 1 && a.stride >= 1 && a.dilation >= 1 && a.padding >= 0, "kernel_", name,
           ", stride_", name, " and dilation_", name, " must be at least 1 and padding_", name,
           " at least 0; got ", a.kernel, ", ", a.stride, ", ", a.dilation, " and ", a.padding);
  SW_CHECK(a.kernel <= 4096 && a.stride <= 4096 && a.dilation <= 4096 && a.padding <= 4096,
           "a kernel, stride, dilation or padding is at most 4096");
  SW_CHECK(a.size + 2 * a.padding > a.reach(), "the kernel reaches over ", a.reach() + 1,
           " places, the padded image has ", a.size + 2 * a.padding, " (", name, ")");
}

}  // namespace

Tensor csb_conv2d(const Tensor& input, const Tensor& starts, const Tensor& pairs,
                  const Tensor& columns, const Tensor& values, const std::optional<Tensor>& scales,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                  int64_t out_features, int64_t chunk, int64_t block, int64_t kernel_h,
                  int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t padding_h,
                  int64_t padding_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                  int64_t activation, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  SW_CHECK(input.is_cpu() && input.scalar_type() == ScalarType::Float,
           "x must be float32 on the CPU");
  SW_CHECK(input.dim() == 4, "x must have shape (batch, channels, height, width); got ",
           input.dim(), " dimensions");
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  const int64_t batch = x.size(0), channels = x.size(1);
  const Axis h = {x.size(2), kernel_h, stride_h, padding_h, dilation_h};
  const Axis w = {x.size(3), kernel_w, stride_w, padding_w, dilation_w};
  SW_CHECK(groups == 1, "layout csb has no convolution in groups; got ", groups);
  check_axis(h, "h");
  check_axis(w, "w");
  const Csb weight = csb_of(starts, pairs, columns, values, scales, channels * kernel_h * kernel_w,
                            out_features, chunk, block);
  const float* bias_data = nullptr;
  if (bias) {
    check_tensor(*bias, "bias", ScalarType::Float, "float32");
    SW_CHECK(bias->dim() == 1 && bias->size(0) == out_features, "bias must have shape (",
             out_features, ",)");
    bias_data = static_cast<const float*>(bias->const_data_ptr());
  }
  const int64_t shape[] = {batch, out_features, h.out(), w.out()};
  Tensor output = new_output(shape, 4);
  std::optional<Tensor> added;
  if (residual) {
    SW_CHECK(residual->is_cpu() && residual->scalar_type() == ScalarType::Float,
             "residual must be float32 on the CPU");
    const auto sizes = residual->sizes();
    SW_CHECK(sizes.size() == 4 && std::equal(shape, shape + 4, sizes.begin()),
             "residual must have the output's shape, (", batch, ", ", out_features, ", ", shape[2],
             ", ", shape[3], ")");
    added = residual->is_contiguous() ? *residual : torch::stable::contiguous(*residual);
  }
  const Activation then = activation_of(activation);
  if (batch == 0 || out_features == 0) return output;

  const Image image = image_of(h, w, channels, k.width, k.tile);
  const int64_t positions = image.positions(), out_plane = shape[2] * shape[3];
  const int64_t laid = image.direct ? 0 : image.planes * image.plane + kSlack;
  const int64_t turn = image.direct ? batch : std::clamp<int64_t>(kImageFloats / laid, 1, batch);
  const int64_t zeros = ceil_div(positions + kSlack, 16) * 16;
  const int64_t table = std::max<int64_t>(weight.chunks, 1) * kPlaces * 2;  // int64 in floats
  float* memory = scratch(table + zeros + turn * laid);
  int64_t* shifts = reinterpret_cast<int64_t*>(memory);
  float* zero = memory + table;
  std::fill_n(zero, zeros, 0.0f);
  float* padded = zero + zeros;
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const float* more = added ? static_cast<const float*>(added->const_data_ptr()) : nullptr;
  fill_shifts(image, weight.chunk, shifts);

  const int64_t tiles = ceil_div(positions, k.tile), items = tiles * weight.blocks;
  const int64_t per_item = std::max<int64_t>(
      (values.size(0) * 2 + out_features) / weight.blocks * (k.tile / k.width), 1);
  for (int64_t first = 0; first < batch; first += turn) {
    const int64_t images = std::min(turn, batch - first);
    if (!image.direct) {
      const int64_t per_channel = image.planes / std::max<int64_t>(channels, 1) * image.plane;
      torch::stable::parallel_for(
          0, images * channels, ceil_div(kGrain, ceil_div(per_channel, k.width)),
          [&](int64_t a, int64_t b) {
            for (int64_t i = a; i < b; ++i)
              lay_out(image, from + (first * channels + i) * h.size * w.size,
                      padded + i / channels * laid + i % channels * per_channel);
          });
    }
    torch::stable::parallel_for(
        0, images * items, ceil_div(kGrain, per_item), [&](int64_t a, int64_t b) {
          std::vector<int64_t> own;  // the table with zeros as seen from this image
          int64_t seen = -1;
          for (int64_t i = a; i < b; ++i) {
            const int64_t n = i / items, tile = i % items / weight.blocks;
            const float* base =
                image.direct ? from + (first + n) * channels * image.plane : padded + n * laid;
            if (n != seen) {
              own.assign(shifts, shifts + table / 2);
              for (int64_t c = 0; c < weight.chunks; ++c)
                own[c * kPlaces + kPlaces - 1] = zero - base;
              seen = n;
            }
            // Positions [begin, end); where the planes are x's own, nothing beyond them is read.
            const int64_t begin = tile * k.tile, end = std::min(positions, begin + k.tile);
            const int64_t width = ceil_div(end - begin, k.width) * k.width;
            const int64_t start = image.direct ? std::min(begin, positions - width) : begin;
            std::array<Segment, 64> segments;
            const int64_t count = segments_of(image, begin, end, start, segments.data());
            const int64_t image_out = (first + n) * out_features * out_plane;
            k.csb_pixels(weight,
                         {base + start, own.data(), width, segments.data(), count, y + image_out,
                          more ? more + image_out : nullptr, out_plane, bias_data, then},
                         i % weight.blocks);
          }
        });
  }
  return output;
}

}  // namespace sparsewright
