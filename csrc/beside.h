// Images side by side: of a batch, kImages at a time lie along the vector, and their columns in
// tiles, (groups of images, height, tiles, channels, columns of a tile, images of a group).
//
// What a shifted row costs elsewhere, loads at odd places and padding up to whole vectors, costs
// nothing here, and all that one tile of a 1x1 convolution reads lies together.
#pragma once
#include <array>

#include "conv.h"

namespace sparsewright {

inline constexpr int64_t kImages = 16;
// Columns of a tile: images of many nets have sides of 7 times a power of two.
inline constexpr int64_t kMostColumns = 7;

// As many as cost least, counting empty columns, and half a column for each tile; of like cost, the
// most.
inline int64_t columns_of(int64_t width) {
  int64_t best = 1, waste = width;
  for (int64_t c = kMostColumns; c > 0; --c) {
    const int64_t more = ceil_div(width, c) * c + ceil_div(width, c) / 2;  // a tile costs as well
    if (c == kMostColumns || more < waste) best = c, waste = more;
  }
  return std::min(best, std::max<int64_t>(width, 1));
}

struct Inside {
  int64_t groups, height, width, channels, columns, tiles;
  Inside(int64_t groups, int64_t channels, int64_t height, int64_t width)
      : groups(groups),
        height(height),
        width(width),
        channels(channels),
        columns(columns_of(width)),
        tiles(ceil_div(width, columns)) {}
  std::array<int64_t, 6> shape() const {
    return {groups, height, tiles, channels, columns, kImages};
  }
  int64_t channel() const { return columns * kImages; }
  int64_t tile() const { return channels * channel(); }
  int64_t group() const { return height * tiles * tile(); }
  // Of channel 0, from the beginning of a group of images.
  int64_t place(int64_t row, int64_t column) const {
    return (row * tiles + column / columns) * tile() + column % columns * kImages;
  }
};

// x (groups, height, tiles, channels, columns, images) of so many columns in all.
inline Inside inside_of(const Tensor& x, int64_t width) {
  SW_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float, "x must be float32 on the CPU");
  SW_CHECK(x.dim() == 6,
           "x must have shape (groups, height, tiles, channels, columns, images); got ", x.dim(),
           " dimensions");
  SW_CHECK(width >= 1, "width must be positive; got ", width);
  const Inside i(x.size(0), x.size(3), x.size(1), width);
  const auto sizes = x.sizes();
  const auto shape = i.shape();
  SW_CHECK(std::equal(shape.begin(), shape.end(), sizes.begin()), "images of ", width,
           " columns lie in tiles of ", i.columns, " and in groups of ", kImages, "; got ",
           x.size(2), " tiles of ", x.size(4), " and groups of ", x.size(5));
  return i;
}

// What is laid of each channel for a tile of `count` output columns: columns of each of the
// kernel's rows, those of like remainder by the stride together. The kernel's columns share them,
// or each has its own, whichever are fewer.
struct Laying {
  Axis h, w;
  int64_t count;
  bool shared;
  int64_t part;  // columns of one remainder, or of one of the kernel's columns
  Laying(const Axis& h, const Axis& w, int64_t count, bool may_share = true)
      : h(h), w(w), count(count) {
    part = count + w.reach() / w.stride;
    shared = may_share && w.phases() * part <= w.kernel * count;
    if (!shared) part = count;
  }
  int64_t span() const { return (shared ? w.phases() : w.kernel) * part; }
  int64_t columns() const { return h.kernel * span(); }
  int64_t places() const { return h.kernel * w.kernel; }
  // Of a kernel's place, among the columns of its channel.
  int64_t column(int64_t y, int64_t x) const {
    return y * span() + (shared ? w.phase(x) * part + w.shift(x) : x * part);
  }
  // Where the columns lie in x for the output at (row, first).
  void find(const Inside& x, int64_t row, int64_t first, int64_t* from) const {
    for (int64_t y = 0; y < h.kernel; ++y) {
      const int64_t r = row * h.stride - h.padding + y * h.dilation;
      for (int64_t i = 0; i < span(); ++i) {
        const int64_t of = i / part, begin = shared ? of : of * w.dilation;
        const int64_t c = (first + i % part) * w.stride + begin - w.padding;
        const bool inside = r >= 0 && r < x.height && c >= 0 && c < x.width;
        *from++ = inside ? x.place(r, c) : -1;
      }
    }
  }
};

}  // namespace sparsewright
