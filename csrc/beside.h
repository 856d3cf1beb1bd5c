// Images side by side: of a batch, kBeside at a time lie along the vector, and their columns in
// tiles, (groups of images, rows, tiles, channels, columns of a tile, lanes). A batch of fewer is
// cut into patches, each of which has a lane of its own.
//
// What a shifted row costs elsewhere, loads at odd places and padding up to whole vectors, costs
// nothing here, and all that one tile of a 1x1 convolution reads lies together.
#pragma once
#include <array>

#include "conv.h"

namespace sparsewright {

// images: kBeside, of which any number of groups follow one another; or fewer, which are then the
// whole batch, and lie in patches. threads: for which there are to be tiles.
struct Spread {
  int64_t images = kBeside, threads = 1;
};

inline Spread checked_spread(int64_t images, int64_t threads) {
  SW_CHECK(1 <= images && images <= kBeside, "images must be in [1, ", kBeside, "]; got ", images);
  SW_CHECK(threads >= 1, "threads must be positive; got ", threads);
  return {images, threads};
}

// What the columns of `lines` rows cost the thread that has most of them, in tiles of so many:
// half columns, and for each tile three, for its weights are read again.
inline int64_t cost_of_columns(int64_t columns, int64_t width, int64_t lines, int64_t threads) {
  return ceil_div(lines * ceil_div(width, columns), threads) * (2 * columns + 3);
}

// As many as cost least; of like cost, the most.
inline int64_t columns_of(int64_t width, int64_t lines, int64_t threads) {
  int64_t best = std::clamp<int64_t>(width, 1, kMostColumns);
  for (int64_t c = best; c >= 1; --c) {
    if (cost_of_columns(c, width, lines, threads) < cost_of_columns(best, width, lines, threads))
      best = c;
  }
  return best;
}

// How a batch lies. Each image in `high` times `wide` patches, one where images fill the vector.
struct Inside : Spread {
  int64_t batch, channels, height, width;
  int64_t high = 1, wide = 1;
  int64_t together;      // images of a group
  int64_t groups, rows;  // rows of a patch
  int64_t breadth;       // columns of a patch
  int64_t columns, tiles;
  Inside(const Spread& spread, int64_t batch, int64_t channels, int64_t height, int64_t width)
      : Spread(spread), batch(batch), channels(channels), height(height), width(width) {
    int64_t least = 0;
    for (int64_t h = 1; h <= most_patches(); ++h) {
      for (int64_t w = 1; h * w <= most_patches(); ++w) {
        const int64_t cost = cost_of(h, w);
        if (h * w == 1 || cost < least) least = cost, high = h, wide = w;
      }
    }
    together = kBeside / patches();
    groups = ceil_div(batch, together);
    rows = ceil_div(height, high), breadth = ceil_div(width, wide);
    columns = columns_of(breadth, lines(high, wide), threads);
    tiles = ceil_div(breadth, columns);
  }
  int64_t patches() const { return high * wide; }
  std::array<int64_t, 6> shape() const { return {groups, rows, tiles, channels, columns, kBeside}; }
  int64_t channel() const { return columns * kBeside; }
  int64_t tile() const { return channels * channel(); }
  int64_t group() const { return rows * tiles * tile(); }
  int64_t in_all() const { return groups * rows * tiles; }  // tiles
  // Time in half columns, as if each thread had one after the other.
  int64_t cost() const { return cost_of_columns(columns, breadth, lines(high, wide), threads); }
  // Of channel 0, from the beginning of a group of images; row and column of a patch.
  int64_t place(int64_t row, int64_t column) const {
    return (row * tiles + column / columns) * tile() + column % columns * kBeside;
  }

 private:
  int64_t most_patches() const { return images < kBeside ? kBeside : 1; }
  // Rows of patches, of the batch or of one group of images.
  int64_t lines(int64_t h, int64_t w) const {
    const int64_t count = images < kBeside ? ceil_div(batch, kBeside / (h * w)) : 1;
    return count * ceil_div(height, h);
  }
  // Of columns, and of what lies at the borders of patches.
  int64_t cost_of(int64_t h, int64_t w) const {
    const int64_t across = ceil_div(width, w), each = columns_of(across, lines(h, w), threads);
    return cost_of_columns(each, across, lines(h, w), threads) * (98 + h + w);
  }
};

inline const Axis& checked_axis(const Axis& a, const char* name) {
  check_axis(a, name);
  return a;
}

// Whether x (groups, rows, tiles, channels, columns, lanes) lies so.
inline void check_inside(const Tensor& x, const Inside& i) {
  SW_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float, "x must be float32 on the CPU");
  SW_CHECK(x.dim() == 6, "x must have shape (groups, rows, tiles, channels, columns, lanes); got ",
           x.dim(), " dimensions");
  const auto sizes = x.sizes();
  const auto shape = i.shape();
  SW_CHECK(std::equal(shape.begin(), shape.end(), sizes.begin()), i.images, " images of ", i.height,
           " rows and ", i.width, " columns lie in ", i.groups, " groups of ", i.rows, " rows of ",
           i.tiles, " tiles of ", i.channels, " channels, ", i.columns, " columns and ", kBeside,
           " lanes; got ", x.size(0), ", ", x.size(1), ", ", x.size(2), ", ", x.size(3), ", ",
           x.size(4), " and ", x.size(5));
}

// How x lies.
inline Inside inside_of(const Tensor& x, const Spread& spread, int64_t height, int64_t width) {
  SW_CHECK(height >= 1 && width >= 1, "height and width must be positive; got ", height, " and ",
           width);
  const bool known = x.dim() == 6;
  const int64_t batch = known && spread.images == kBeside ? x.size(0) * kBeside : spread.images;
  const Inside i(spread, batch, known ? x.size(3) : 1, height, width);
  check_inside(x, i);
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
  // The row, or column of the image, that is read for an output row, or column.
  int64_t row_of(int64_t row, int64_t y) const {
    return row * h.stride - h.padding + y * h.dilation;
  }
  int64_t column_of(int64_t first, int64_t i) const {
    const int64_t of = i / part, begin = shared ? of : of * w.dilation;
    return (first + i % part) * w.stride + begin - w.padding;
  }
};

// Where what is laid lies, tile by tile and column by column, in x.
class Sources {
 public:
  void clear() { from_.clear(), which_.clear(), picks_.clear(); }
  // For one tile of `out`.
  void add(const Laying& laying, const Inside& in, const Inside& out, int64_t tile) {
    const int64_t row = tile / out.tiles % out.rows, first = tile % out.tiles * out.columns;
    if (out.patches() == 1 && in.patches() == 1)
      add_whole(laying, in, row, first, tile / (out.tiles * out.rows));
    else
      add_patches(laying, in, out, row, first, tile / (out.tiles * out.rows));
  }
  // From the column at `begin` on.
  LaidColumns columns(int64_t begin) const {
    if (which_.empty()) return {from_.data() + begin, nullptr, nullptr};
    return {from_.data() + begin, which_.data() + begin, picks_.data()};
  }

 private:
  void add_whole(const Laying& laying, const Inside& in, int64_t row, int64_t first,
                 int64_t group) {
    for (int64_t y = 0; y < laying.h.kernel; ++y) {
      const int64_t r = laying.row_of(row, y);
      for (int64_t i = 0; i < laying.span(); ++i) {
        const int64_t c = laying.column_of(first, i);
        const bool inside = r >= 0 && r < in.height && c >= 0 && c < in.width;
        from_.push_back(inside ? group * in.group() + in.place(r, c) : -1);
      }
    }
  }
  void add_patches(const Laying&, const Inside& in, const Inside& out, int64_t row, int64_t first,
                   int64_t group);
  void add_column(const std::array<int64_t, kBeside>& at, const std::array<bool, kBeside>& wanted);

  std::vector<int64_t> from_;
  std::vector<int32_t> which_;
  std::vector<LanePlaces> picks_;
};

}  // namespace sparsewright
