// The gradient of a convolution's present weights: a Linear's, where the positions of all images
// are the batch. The patches of a tile of positions are laid beside each other once for all
// weights.
//
// Positions are those of the laid-out image (conv_image.h), so between the rows of the output lie
// some that are none: dy is zero there.
#include <array>
#include <tuple>

#include "conv_image.h"
#include "outer.h"

namespace sparsewright {
namespace {

// Where all weights have at most so many floats of sums, threads share the positions: each share
// has sums of its own for all weights, and a tile of it stays in the nearest caches. Of more
// weights the threads share the weights, and every tile passes by all of them. There are as many
// shares whatever the threads, so that the order of a sum depends on no thread.
constexpr int64_t kOwnSums = 64 * 1024, kShares = 16;

// Positions [begin, end) of an image of this turn.
struct Piece {
  int64_t image, begin, end;
};

std::vector<Piece> pieces_of(int64_t images, int64_t positions, int64_t most) {
  std::vector<Piece> pieces;
  for (int64_t n = 0; n < images; ++n)
    for (int64_t p = 0; p < positions; p += most)
      pieces.push_back({n, p, std::min(positions, p + most)});
  return pieces;
}

// The rows of dy (out planes of `plane`) at a tile's positions, zeros elsewhere and in other rows.
void lay_dy(const Image& i, const Piece& piece, const float* dy, int64_t out, int64_t plane,
            int64_t rows, int64_t width, float* to) {
  std::array<Segment, kMostSegments> segments;
  const int64_t count = segments_of(i, piece.begin, piece.end, piece.begin, segments.data());
  std::fill_n(to, rows * width, 0.0f);
  for (int64_t row = 0; row < out; ++row, dy += plane, to += width)
    for (int64_t s = 0; s < count; ++s)
      std::copy_n(dy + segments[s].to, segments[s].count, to + segments[s].at);
}

// A tile of x, that of dy, all cells: added to the sums of all weights.
void outer_tile(const Kernels& k, const Csb& w, const float* x, const float* dy, int64_t width,
                const int64_t* rows, float* sums) {
  for (int64_t cell = 0; cell < w.blocks * w.chunks; ++cell) {
    const int64_t block = cell / w.chunks, chunk = cell % w.chunks;
    const int32_t* start = w.starts + 2 * cell;
    k.csb_outer(w, x + chunk * kPlaces * width, dy + block * w.block * width, width,
                rows ? rows + block * (w.block + 1) : nullptr, start[0], start[2], start[1],
                sums + 2 * int64_t{start[1]});
  }
}

// The sums of all weights, where the topology has them.
void put_all(const Csb& w, const Gradients& gradients, const float* sums) {
  for (int64_t cell = 0; cell < w.blocks * w.chunks; ++cell) {
    const int32_t* start = w.starts + 2 * cell;
    for (int64_t p = start[0]; p < start[2]; ++p) {
      const uint32_t pair = static_cast<uint32_t>(w.pairs[p]);
      gradients.put(w, cell / w.chunks, cell % w.chunks, pair & 255, sums);
      gradients.put(w, cell / w.chunks, cell % w.chunks, pair >> 8 & 255, sums + 1);
      sums += 2 * (pair >> 16);
    }
  }
}

}  // namespace

Tensor csb_conv2d_outer(const Tensor& gradient, const Tensor& input, const Tensor& starts,
                        const Tensor& pairs, const Tensor& columns, const Tensor& cuts,
                        int64_t chunk, int64_t block, int64_t kernel_h, int64_t kernel_w,
                        int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
                        int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  check_image(input);
  check_image(gradient);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  const Tensor dy = gradient.is_contiguous() ? gradient : torch::stable::contiguous(gradient);
  const int64_t batch = x.size(0), channels = x.size(1), out = dy.size(1);
  const Axis h = {x.size(2), kernel_h, stride_h, padding_h, dilation_h};
  const Axis v = {x.size(3), kernel_w, stride_w, padding_w, dilation_w};
  SW_CHECK(groups >= 1 && channels % groups == 0 && out % groups == 0,
           "groups must divide the channels of x and of dy; got ", groups, " for ", channels,
           " and ", out);
  check_axis(h, "h");
  check_axis(v, "w");
  SW_CHECK(dy.size(0) == batch && dy.size(2) == h.out() && dy.size(3) == v.out(),
           "dy must have the output's shape, (", batch, ", ", out, ", ", h.out(), ", ", v.out(),
           "); got (", dy.size(0), ", ", out, ", ", dy.size(2), ", ", dy.size(3), ")");
  const int64_t depth = channels / groups, in = depth * kernel_h * kernel_w;
  const Csb w = csb_places_of(starts, pairs, columns, in, out, chunk, block);
  const Gradients first_time = {cuts_of(cuts, w), nullptr, false};
  const int64_t shape[] = {first_time.cuts[w.out * w.chunks]};
  Tensor output = new_output(shape, 1);
  float* to = static_cast<float*>(output.mutable_data_ptr());
  if (batch == 0 || w.blocks * w.chunks == 0) {
    std::fill_n(to, shape[0], 0.0f);
    return output;
  }
  const Image image = image_of(h, v, channels, groups);
  const int64_t positions = image.positions(), plane = h.out() * v.out();
  const int64_t laid = image.own ? 0 : image.planes * image.plane + kSlack;
  const int64_t images = image.own ? batch : std::clamp<int64_t>(kImageFloats / laid, 1, batch);
  // A tile: columns of x, group after group, then rows of dy; those beyond the last fill pairs.
  const int64_t group = w.chunks * kPlaces, wide = groups * group;
  const int64_t rows = w.blocks * w.block + 1;
  const int64_t cells = w.blocks * w.chunks, own = 2 * int64_t{w.starts[2 * cells + 1]} + 8;
  const int64_t parts = own <= kOwnSums ? kShares : 0;
  const int64_t turn = parts ? 0 : std::max<int64_t>(kOuterFloats / (wide + rows) / k.tile, 1);
  const int64_t group_shifts = group + 24, table = groups * group_shifts * 2;
  const int64_t tile_floats = (wide + rows + kPlaces) * k.tile;
  float* memory =
      scratch(table + images * laid + parts * own + (turn * (wide + rows) + kPlaces) * k.tile);
  int64_t* shifts = reinterpret_cast<int64_t*>(memory);
  float* const planes = memory + table;
  float* const sums = planes + images * laid;
  std::fill_n(sums, parts * own, 0.0f);
  float* const xs = sums + parts * own;
  float* const dys = xs + turn * wide * k.tile;
  for (int64_t g = 0; g < groups; ++g)
    fill_shifts(image, g * depth, (g + 1) * depth, w.chunk, shifts + g * group_shifts);
  const std::vector<int64_t> apart = rows_of_blocks(w, groups, group);
  const float* from = static_cast<const float*>(x.const_data_ptr());
  const float* dy_data = static_cast<const float*>(dy.const_data_ptr());
  bool add = false;
  for (int64_t first = 0; first < batch; first += images) {
    const int64_t now = std::min(images, batch - first);
    if (!image.own) {
      lay_images(k, image, from + first * channels * h.size * v.size, now, laid, planes);
      for (int64_t n = 1; n <= now; ++n) std::fill_n(planes + n * laid - kSlack, kSlack, 0.0f);
    }
    const std::vector<Piece> pieces = pieces_of(now, positions, k.tile);
    const int64_t total = static_cast<int64_t>(pieces.size());
    const auto width_of = [&](const Piece& p) {
      return ceil_div(p.end - p.begin, k.width) * k.width;
    };
    const auto lay = [&](const Piece& p, float* x_tile, float* dy_tile) {
      const int64_t width = width_of(p), n = first + p.image;
      const float* base =
          (image.own ? from + n * channels * image.plane : planes + p.image * laid) + p.begin;
      const int64_t count = image.own ? p.end - p.begin : width;
      for (int64_t g = 0; g < groups; ++g)
        k.lay_tile(w, base, shifts + g * group_shifts, count, width, x_tile + g * group * width);
      lay_dy(image, p, dy_data + n * out * plane, out, plane, rows, width, dy_tile);
    };
    const int64_t* const rows_apart = apart.empty() ? nullptr : apart.data();
    if (parts) {
      torch::stable::parallel_for(0, parts, 1, [&](int64_t a, int64_t b) {
        float* const x_tile = scratch<kShare>(tile_floats);
        float* const dy_tile = x_tile + wide * k.tile;
        for (int64_t part = a; part < b; ++part) {
          for (int64_t t = total * part / parts; t < total * (part + 1) / parts; ++t) {
            lay(pieces[static_cast<size_t>(t)], x_tile, dy_tile);
            outer_tile(k, w, x_tile, dy_tile, width_of(pieces[static_cast<size_t>(t)]), rows_apart,
                       sums + part * own);
          }
        }
      });
      continue;
    }
    for (int64_t begin = 0; begin < total; begin += turn, add = true) {
      const int64_t tiles = std::min(turn, total - begin);
      const Piece* const piece = pieces.data() + begin;
      const int64_t cost = (groups * w.in + out) * (k.tile / k.width) * kLayingCost;
      torch::stable::parallel_for(0, tiles, ceil_div(kGrain, cost), [&](int64_t a, int64_t b) {
        for (int64_t t = a; t < b; ++t)
          lay(piece[t], xs + t * wide * k.tile, dys + t * rows * k.tile);
      });
      outer_turn(k, w, tiles, tiles * (k.tile / k.width), {first_time.cuts, to, add}, rows_apart,
                 [&](int64_t t) {
                   return std::tuple(xs + t * wide * k.tile, dys + t * rows * k.tile,
                                     width_of(piece[t]));
                 });
    }
  }
  if (parts) {
    for (int64_t i = own; i < parts * own; ++i) sums[i % own] += sums[i];
    put_all(w, {first_time.cuts, to, false}, sums);
  }
  return output;
}

}  // namespace sparsewright
