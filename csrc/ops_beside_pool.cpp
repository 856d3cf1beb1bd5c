// Pooling of images that lie side by side.
#include <bit>
#include <limits>
#include <vector>

#include "beside.h"
#include "bound.h"

namespace sparsewright {
namespace {

// Max pooling of images of one size, `relu` after it: where its windows lie is known before.
class MaxPoolBeside {
 public:
  MaxPoolBeside(const Axis& h, const Axis& w, bool relu, int64_t channels, const Spread& spread,
                int64_t isa)
      : k_(kernels_for(isa)),
        h_(checked_axis(h, "h")),
        w_(checked_axis(w, "w")),
        relu_(relu),
        channels_(channels),
        spread_(spread) {
    check_pool_padding(h, w);
    if (spread_.images == kBeside) return;
    const Inside in(spread_, spread_.images, channels, h_.size, w_.size), out = out_of(in);
    const Laying laying(h_, w_, out.columns, false);
    for (int64_t t = 0; t < out.in_all(); ++t) sources_.add(laying, in, out, t);
  }

  Tensor operator()(const Tensor& input) const {
    const Inside in = inside_of(input, spread_, h_.size, w_.size), out = out_of(in);
    SW_CHECK(in.channels == channels_, "the pooling is of ", channels_, " channels; got ",
             in.channels);
    const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
    const auto shape = out.shape();
    Tensor output = new_output(shape.data(), shape.size());
    if (output.numel() == 0) return output;
    const float* from = static_cast<const float*>(x.const_data_ptr());
    float* y = static_cast<float*>(output.mutable_data_ptr());
    const Laying laying(h_, w_, out.columns, false);
    const int64_t cost = out.channels * laying.columns() * kBeside / k_.width;
    const float least = relu_ ? 0.0f : -std::numeric_limits<float>::infinity();
    torch::stable::parallel_for(0, out.in_all(), ceil_div(kGrain, cost), [&](int64_t a, int64_t b) {
      Sources mine;
      for (int64_t t = a; t < b; ++t) {
        const bool known = spread_.images < kBeside;
        if (!known) mine.clear(), mine.add(laying, in, out, t);
        const Sources& sources = known ? sources_ : mine;
        const int64_t first = known ? t * laying.columns() : 0;
        k_.max_beside(from, in.channel(), sources.columns(first), laying.places(), out.columns,
                      out.channels, least, y + t * out.tile());
      }
    });
    return output;
  }

 private:
  Inside out_of(const Inside& in) const {
    return Inside(spread_, in.batch, in.channels, h_.out(), w_.out());
  }

  const Kernels& k_;
  Axis h_, w_;
  bool relu_;
  int64_t channels_;
  Spread spread_;
  Sources sources_;  // of images in patches
};

int64_t bind_max_pool2d_beside(int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                               int64_t stride_w, int64_t padding_h, int64_t padding_w, bool relu,
                               int64_t channels, int64_t height, int64_t width, int64_t images,
                               int64_t threads, int64_t isa) {
  auto pool = std::make_shared<const MaxPoolBeside>(
      Axis{height, kernel_h, stride_h, padding_h, 1}, Axis{width, kernel_w, stride_w, padding_w, 1},
      relu, channels, checked_spread(images, threads), isa);
  Bound call = [pool](const Tensor& x, const std::optional<Tensor>& residual) {
    SW_CHECK(!residual, "max pooling takes no residual");
    return (*pool)(x);
  };
  return keep({std::move(call), nullptr, false});
}

// All ones where a lane of a column has a number of an image, (rows, columns of a patch, lanes).
std::vector<uint32_t> there(const Inside& in) {
  std::vector<uint32_t> is(static_cast<size_t>(in.rows * in.tiles * in.columns * kBeside), 0);
  for (int64_t r = 0; r < in.rows; ++r) {
    for (int64_t c = 0; c < in.breadth; ++c) {
      for (int64_t l = 0; l < in.together * in.patches(); ++l) {
        const int64_t patch = l % in.patches();
        const bool inside = patch / in.wide * in.rows + r < in.height &&
                            patch % in.wide * in.breadth + c < in.width;
        const int64_t at = (r * in.tiles + c / in.columns) * in.columns + c % in.columns;
        is[static_cast<size_t>(at * kBeside + l)] = inside ? ~uint32_t{0} : 0;
      }
    }
  }
  return is;
}

// The mean of every channel of the first `batch` images, (batch, channels, 1, 1).
Tensor mean_beside(const Tensor& input, int64_t batch, int64_t height, int64_t width,
                   int64_t images, int64_t threads) {
  const Inside in = inside_of(input, checked_spread(images, threads), height, width);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  SW_CHECK(0 <= batch && batch <= in.batch, "batch must be in [0, ", in.batch, "]; got ", batch);
  const int64_t shape[] = {batch, in.channels, 1, 1};
  Tensor output = new_output(shape, 4);
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const std::vector<uint32_t> is = there(in);
  const int64_t tiles = in.rows * in.tiles;
  const auto count = static_cast<float>(height * width);
  torch::stable::parallel_for(
      0, in.channels, ceil_div(kGrain, std::max<int64_t>(in.in_all() * in.columns, 1)),
      [&](int64_t a, int64_t b) {
        std::vector<float> sums(static_cast<size_t>((b - a) * kBeside));
        for (int64_t g = 0; g < in.groups; ++g) {
          std::fill(sums.begin(), sums.end(), 0.0f);
          for (int64_t t = 0; t < tiles; ++t) {
            for (int64_t c = a; c < b; ++c) {
              const float* at = from + (g * tiles + t) * in.tile() + c * in.channel();
              const uint32_t* valid = is.data() + t * in.channel();
              float all[kBeside] = {};
              for (int64_t i = 0; i < in.columns; ++i, at += kBeside, valid += kBeside)
                for (int l = 0; l < kBeside; ++l)
                  all[l] += std::bit_cast<float>(std::bit_cast<uint32_t>(at[l]) & valid[l]);
              float* const sum = sums.data() + (c - a) * kBeside;
              for (int l = 0; l < kBeside; ++l) sum[l] += all[l];
            }
          }
          const int64_t first = g * in.together, end = std::min(first + in.together, batch);
          for (int64_t image = first; image < end; ++image) {
            for (int64_t c = a; c < b; ++c) {
              const float* sum = sums.data() + (c - a) * kBeside + (image - first) * in.patches();
              float total = 0;
              for (int64_t p = 0; p < in.patches(); ++p) total += sum[p];
              y[image * in.channels + c] = total / count;
            }
          }
        }
      });
  return output;
}

}  // namespace
}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def(
      "bind_max_pool2d_beside(int kernel_h, int kernel_w, int stride_h, int stride_w, int "
      "padding_h, int padding_w, bool relu, int channels, int height, int width, int images, int "
      "threads, "
      "int isa) -> int");
  m.def(
      "mean_beside(Tensor x, int batch, int height, int width, int images, int threads) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("mean_beside", TORCH_BOX(&sparsewright::mean_beside));
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CompositeExplicitAutograd, m) {
  m.impl("bind_max_pool2d_beside", TORCH_BOX(&sparsewright::bind_max_pool2d_beside));
}
