// The way of images side by side, and back.
#include <vector>

#include "beside.h"

namespace sparsewright {
namespace {

constexpr int64_t kBandPlaces = 1024;  // of one channel, turned while they are in a near cache

// Runs f(group, channel, memory) for all channels of so many groups of images; of each channel
// there are `floats` of memory.
template <class F>
void over_channels(int64_t groups, int64_t channels, int64_t floats, const F& f) {
  const int64_t cost = ceil_div(floats, kBeside) * kLayingCost;
  torch::stable::parallel_for(0, groups * channels, ceil_div(kGrain, std::max<int64_t>(cost, 1)),
                              [&](int64_t a, int64_t b) {
                                float* const memory = scratch<kShare>(floats);
                                for (int64_t i = a; i < b; ++i)
                                  f(i / channels, i % channels, memory);
                              });
}

void check_batch(const Inside& i) {
  SW_CHECK(i.images == kBeside || i.batch == i.images, "fewer than ", kBeside,
           " images are a whole batch; got ", i.batch, " where ", i.images, " were said");
}

// Whether a patch is a whole image, so that the images lie where the lanes' floats do.
bool is_whole(const Inside& i) { return i.patches() == 1; }

// f(float of the first row of an image's patch, or of its part of a plane; lane; how many) for all
// rows of the patches of group g.
template <class F>
void over_rows(const Inside& i, int64_t g, const F& f) {
  for (int64_t l = 0; l < i.together * i.patches(); ++l) {
    const int64_t image = g * i.together + l / i.patches(), patch = l % i.patches();
    const int64_t top = patch / i.wide * i.rows, left = patch % i.wide * i.breadth;
    if (image >= i.batch || left >= i.width) continue;
    for (int64_t r = 0; r < i.rows && top + r < i.height; ++r) {
      f(image * i.channels * i.height * i.width + (top + r) * i.width + left,
        (l * i.rows + r) * i.breadth, std::min(i.breadth, i.width - left));
    }
  }
}

// (batch, channels, height, width) -> side by side; beyond the batch and the columns are zeros.
// images, threads: as for Spread.
Tensor to_beside(const Tensor& input, int64_t images, int64_t threads, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  check_image(input);
  const Spread spread = checked_spread(images, threads);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  const Inside to(spread, x.size(0), x.size(1), x.size(2), x.size(3));
  check_batch(to);
  const auto shape = to.shape();
  Tensor output = new_output(shape.data(), shape.size());
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const int64_t plane = to.height * to.width, floats = to.channels * plane;
  const int64_t part = to.rows * to.breadth;
  // Whole images go band by band of rows: there are few channels where images are large.
  const int64_t places = is_whole(to) ? kBandPlaces / std::max<int64_t>(to.breadth, 1) : to.rows;
  const int64_t band = std::max<int64_t>(std::min(places, to.rows), 1);
  const int64_t bands = ceil_div(to.rows, band);
  const int64_t room = is_whole(to) ? band * to.breadth * kBeside : 2 * part * kBeside;
  over_channels(to.groups * bands, to.channels, room, [&](int64_t i, int64_t c, float* lanes) {
    const int64_t g = i / bands, top = i % bands * band, rows = std::min(band, to.rows - top);
    if (is_whole(to)) {
      const int64_t first = g * kBeside;
      k.transpose_in(from + first * floats + c * plane + top * to.breadth, floats,
                     std::min<int64_t>(kBeside, to.batch - first), lanes, kBeside, 0,
                     rows * to.breadth);
    } else {
      float* const patches = lanes + part * kBeside;
      std::fill_n(patches, part * kBeside, 0.0f);
      over_rows(to, g, [&](int64_t at, int64_t in_patches, int64_t count) {
        std::copy_n(from + c * plane + at, count, patches + in_patches);
      });
      k.transpose_in(patches, part, kBeside, lanes, kBeside, 0, part);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < to.tiles; ++t) {
        const int64_t column = t * to.columns, count = std::min(to.columns, to.breadth - column);
        float* const tile = y + g * to.group() + to.place(top + r, column) + c * to.channel();
        std::copy_n(lanes + (r * to.breadth + column) * kBeside, count * kBeside, tile);
        std::fill(tile + count * kBeside, tile + to.channel(), 0.0f);
      }
    }
  });
  return output;
}

// The way back, of the first `batch` images.
Tensor from_beside(const Tensor& input, int64_t batch, int64_t height, int64_t width,
                   int64_t images, int64_t threads, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  Inside in = inside_of(input, checked_spread(images, threads), height, width);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  SW_CHECK(0 <= batch && batch <= in.batch, "batch must be in [0, ", in.batch, "]; got ", batch);
  in.batch = batch;
  const int64_t shape[] = {batch, in.channels, height, width};
  Tensor output = new_output(shape, 4);
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const int64_t plane = height * width, floats = in.channels * plane;
  const int64_t part = in.rows * in.breadth;
  const int64_t room = (is_whole(in) ? 1 : 2) * part * kBeside;
  over_channels(ceil_div(batch, in.together), in.channels, room,
                [&](int64_t g, int64_t c, float* lanes) {
                  const float* const channel = from + g * in.group() + c * in.channel();
                  for (int64_t r = 0; r < in.rows; ++r)
                    for (int64_t column = 0; column < in.breadth; column += in.columns)
                      std::copy_n(channel + in.place(r, column),
                                  std::min(in.columns, in.breadth - column) * kBeside,
                                  lanes + (r * in.breadth + column) * kBeside);
                  if (is_whole(in)) {
                    const int64_t first = g * kBeside;
                    k.transpose(lanes, kBeside, plane, std::min<int64_t>(kBeside, batch - first),
                                y + first * floats + c * plane, floats);
                    return;
                  }
                  float* const patches = lanes + part * kBeside;
                  k.transpose(lanes, kBeside, part, kBeside, patches, part);
                  over_rows(in, g, [&](int64_t at, int64_t in_patches, int64_t count) {
                    std::copy_n(patches + in_patches, count, y + c * plane + at);
                  });
                });
  return output;
}

// What one channel of images costs so many threads, in half columns of the one with most of them.
int64_t beside_cost(int64_t images, int64_t threads, int64_t height, int64_t width) {
  const Spread spread = checked_spread(images, threads);
  SW_CHECK(height >= 1 && width >= 1, "height and width must be positive; got ", height, " and ",
           width);
  return Inside(spread, images, 1, height, width).cost();
}

}  // namespace
}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def("to_beside(Tensor x, int images, int threads, int isa) -> Tensor");
  m.def(
      "from_beside(Tensor x, int batch, int height, int width, int images, int threads, int isa) "
      "-> "
      "Tensor");
  m.def("beside_cost(int images, int threads, int height, int width) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("to_beside", TORCH_BOX(&sparsewright::to_beside));
  m.impl("from_beside", TORCH_BOX(&sparsewright::from_beside));
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CompositeExplicitAutograd, m) {
  m.impl("beside_cost", TORCH_BOX(&sparsewright::beside_cost));
}
