// Convolutions with weights in layout csb, without im2col: every weight multiplies a shifted row of
// the image (Park et al. 2017; Elsen et al. 2020).
//
// Where many weights use them, the activations of a tile are laid together, a chunk at a time: so
// they stay in the nearest cache, and every load of them is aligned. One at an odd place takes two
// lines of the cache, which with vectors of a line's length is every load of a shifted row.
#include <array>
#include <vector>

#include "conv_image.h"

namespace sparsewright {
namespace {

constexpr int64_t kTileBytes = 40 * 1024;   // activations of a chunk in a tile
constexpr int64_t kTogether = 10;           // weights of a column that pay for laying it
constexpr int64_t kWide = 8;                // floats of a vector whose odd places cost
constexpr int64_t kSumsBytes = 512 * 1024;  // sums of blocks that use a laid chunk in turn

// Vectors of the widest tile: as many as leave a chunk's laid activations in the nearest cache.
int64_t most_vectors(const Csb& w, const Kernels& k, bool together) {
  if (!together) return k.pixels / k.width;
  const int64_t column = k.width * 4 * std::max<int64_t>(std::min(w.chunk, w.in), 1);
  return std::clamp<int64_t>(kTileBytes / column, 1, k.pixels / k.width);
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
  check_image(input);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  const int64_t batch = x.size(0), channels = x.size(1);
  const Axis h = {x.size(2), kernel_h, stride_h, padding_h, dilation_h};
  const Axis w = {x.size(3), kernel_w, stride_w, padding_w, dilation_w};
  SW_CHECK(groups >= 1 && channels % groups == 0 && out_features % groups == 0,
           "groups must divide the channels of x and of the output; got ", groups, " for ",
           channels, " and ", out_features);
  check_axis(h, "h");
  check_axis(w, "w");
  const Csb weight = csb_of(starts, pairs, columns, values, scales,
                            channels / groups * kernel_h * kernel_w, out_features, chunk, block);
  const float* bias_data = bias_of(bias, out_features);
  const int64_t shape[] = {batch, out_features, h.out(), w.out()};
  Tensor output = new_output(shape, 4);
  const std::optional<Tensor> added = residual_of(residual, shape);
  const Activation then = activation_of(activation);
  if (batch == 0 || out_features == 0) return output;

  const Image image = image_of(h, w, channels, groups);
  const int64_t positions = image.positions(), out_plane = shape[2] * shape[3];
  const int64_t steps = values.size(0) * 2;
  // Laid together tile by tile, the activations of few weights would cost more than they bring, and
  // so would those of short vectors, few of which take two lines.
  const bool pays = k.width >= kWide && groups == 1 && steps >= kTogether * weight.in;
  const bool together = image.own || pays;
  const Tiles tiles(positions, k.width, most_vectors(weight, k, together));
  const int64_t items = tiles.count * weight.blocks;
  const int64_t laid = image.own ? 0 : image.planes * image.plane + kSlack;
  const int64_t turn = image.own ? batch : std::clamp<int64_t>(kImageFloats / laid, 1, batch);
  const int64_t zeros = together ? 0 : ceil_div(positions + kSlack, 16) * 16;
  // A table of shifts per group, which are not a power of two apart: that would crowd cache lines.
  const int64_t group_shifts = std::max<int64_t>(weight.chunks, 1) * kPlaces + 24;
  const int64_t table = groups * group_shifts * 2;  // int64 in floats
  float* memory = scratch(table + zeros + turn * laid);
  int64_t* shifts = reinterpret_cast<int64_t*>(memory);
  float* zero = memory + table;
  std::fill_n(zero, zeros, 0.0f);
  float* padded = zero + zeros;
  const float* from = static_cast<const float*>(x.const_data_ptr());
  float* y = static_cast<float*>(output.mutable_data_ptr());
  const float* more = added ? static_cast<const float*>(added->const_data_ptr()) : nullptr;
  const int64_t depth = channels / groups;
  for (int64_t g = 0; g < groups; ++g)
    fill_shifts(image, g * depth, (g + 1) * depth, weight.chunk, shifts + g * group_shifts);
  const std::vector<int64_t> rows = rows_of_blocks(weight, groups, group_shifts);

  // Of the blocks that take a laid chunk in turn, the sums stay in the second cache.
  const int64_t sums_of = (weight.block + 1) * tiles.width(0);
  const int64_t at_once =
      together ? std::clamp<int64_t>(kSumsBytes / 4 / sums_of, 1, weight.blocks) : 1;
  const int64_t own = at_once * sums_of + (together ? kPlaces * k.pixels : 0);
  const int64_t per_item = std::max<int64_t>(
      (steps + out_features) / weight.blocks * ceil_div(positions, k.width) / tiles.count, 1);
  for (int64_t first = 0; first < batch; first += turn) {
    const int64_t images = std::min(turn, batch - first);
    if (!image.own)
      lay_images(k, image, from + first * channels * h.size * w.size, images, laid, padded);
    torch::stable::parallel_for(
        0, images * items, ceil_div(kGrain, per_item), [&](int64_t a, int64_t b) {
          std::vector<int64_t> table_of;  // the table with zeros as seen from an image
          float* const laid_chunk = together ? scratch<kShare>(own) : nullptr;
          float* const sums = together ? laid_chunk + kPlaces * k.pixels : scratch<kShare>(own);
          int64_t seen = -1;
          for (int64_t i = a, next; i < b; i = next) {
            const int64_t n = i / items, tile = i % items / weight.blocks, of = i % weight.blocks;
            const int64_t until = std::min({weight.blocks, of + b - i, of + at_once});
            next = i + until - of;
            const int64_t begin = tiles.begin(tile), end = tiles.end(tile);
            const int64_t width = tiles.width(tile);
            const float* base =
                image.own ? from + (first + n) * channels * image.plane : padded + n * laid;
            if (!together && n != seen) {
              table_of.assign(shifts, shifts + table / 2);
              for (int64_t g = 0; g < groups; ++g)
                for (int64_t c = 0; c < weight.chunks; ++c)
                  table_of[g * group_shifts + c * kPlaces + kPlaces - 1] = zero - base;
            }
            seen = n;
            std::array<Segment, kMostSegments> segments;
            const int64_t count = segments_of(image, begin, end, begin, segments.data());
            const int64_t image_out = (first + n) * out_features * out_plane;
            k.csb_pixels(
                weight,
                {base + begin, together ? shifts : table_of.data(), image.own ? end - begin : width,
                 width, segments.data(), count, y + image_out, more ? more + image_out : nullptr,
                 out_plane, bias_data, then,
                 rows.empty() ? nullptr : rows.data() + of * (weight.block + 1), laid_chunk, sums},
                of, until);
          }
        });
  }
  return output;
}

}  // namespace sparsewright
