// The padded image, laid out so that a step of one position in the output is a step of one position
// in memory, whatever the stride: positions of like remainder by the stride lie in a plane of their
// own. The planes of a 1x1 convolution are those of the image as it is.
#pragma once
#include <cstring>
#include <vector>

#include "conv.h"

namespace sparsewright {

struct Image {
  Axis h, w;
  int64_t channels;
  bool own;        // the planes are those of x itself
  int64_t step;    // from one row of a plane to the next
  int64_t plane;   // floats of a plane
  int64_t planes;  // of one image
  int64_t positions() const { return (h.out() - 1) * step + w.out(); }
};

// Positions cut into tiles of even widths, in vectors.
struct Tiles {
  int64_t positions, lanes, count, base, wider;
  Tiles(int64_t positions, int64_t lanes, int64_t most) : positions(positions), lanes(lanes) {
    const int64_t vectors = ceil_div(positions, lanes);
    count = ceil_div(vectors, most);
    base = vectors / count, wider = vectors % count;
  }
  int64_t begin(int64_t tile) const { return (tile * base + std::min(tile, wider)) * lanes; }
  int64_t end(int64_t tile) const { return std::min(positions, begin(tile + 1)); }
  int64_t width(int64_t tile) const { return begin(tile + 1) - begin(tile); }
};

inline constexpr int64_t kMostSegments = 128;  // at least the positions of a tile
inline constexpr int64_t kSlack = 128;         // floats that a tile may read beyond a plane
inline constexpr int64_t kBadStride = 1024;  // bytes between planes that crowd the same cache lines
inline constexpr int64_t kImageFloats = 1024 * 1024;  // floats of padded images held at once

inline Image image_of(const Axis& h, const Axis& w, int64_t channels, int64_t groups) {
  Image i = {h, w, channels, false, w.size, h.size * w.size, channels};
  i.own = groups == 1 && h.kernel == 1 && w.kernel == 1 && h.stride == 1 && w.stride == 1 &&
          h.padding == 0 && w.padding == 0;
  if (i.own) return i;
  // With a stride of one, the zeros right of a row are those left of the next one, as far as no
  // output lies there: a step is at least an output row.
  const int64_t right = std::min(w.rows() - w.padding - w.size, w.reach());
  const int64_t shared = w.stride == 1 ? std::max<int64_t>(0, std::min(w.padding, right)) : 0;
  i.step = w.rows() - shared;
  i.plane = ceil_div(h.rows() * i.step + shared, 16) * 16;
  if (i.plane * 4 % kBadStride == 0) i.plane += 16;
  i.planes = channels * h.phases() * w.phases();
  return i;
}

// Rows of an image are short: a call of memmove would cost more than the copy.
inline void copy_row(const float* from, int64_t count, float* to) {
  constexpr int64_t kPart = 8;
  if (count < kPart) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    return;
  }
  for (int64_t i = 0; i < count; i += kPart) {
    i = std::min(i, count - kPart);  // the last part, some of it for the second time
    std::memcpy(to + i, from + i, kPart * sizeof(float));
  }
}

// Between two rows mostly one float, less than the call of memset that a plain loop would become.
inline void zero_gap(float* from, const float* to) {
  for (; from < to; ++from) {
    *from = 0.0f;
    __asm__("" : "+r"(from));
  }
}

// Every `stride`-th float of a row.
inline void copy_strided(const Kernels& k, const float* from, int64_t stride, int64_t count,
                         float* to) {
  if (stride == 1) return copy_row(from, count, to);
  if (stride == 2) return k.every_second(from, count, to);
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
}

// One plane of a channel of x (rows of `h.size` by `w.size`): positions of the remainders a and b.
inline void lay_plane(const Kernels& k, const Image& i, const float* x, int64_t a, int64_t b,
                      float* plane) {
  // Rows and columns of the plane that lie inside the image.
  const auto first = [](const Axis& axis, int64_t phase) {
    return std::max<int64_t>(0, ceil_div(axis.padding - phase, axis.stride));
  };
  const auto last = [](const Axis& axis, int64_t phase) {
    return std::min(axis.rows(), ceil_div(axis.size + axis.padding - phase, axis.stride));
  };
  const int64_t from = first(i.w, b), count = last(i.w, b) - from, end = last(i.h, a);
  float* zeros = plane;  // what is not copied
  for (int64_t r = first(i.h, a); count > 0 && r < end; ++r) {
    const int64_t row = r * i.h.stride + a - i.h.padding;
    const int64_t column = from * i.w.stride + b - i.w.padding;
    float* out = plane + r * i.step + from;
    zero_gap(zeros, out);
    copy_strided(k, x + row * i.w.size + column, i.w.stride, count, out);
    zeros = out + count;
  }
  std::fill(zeros, plane + i.plane, 0.0f);
}

// The planes of one channel of x.
inline void lay_out(const Kernels& k, const Image& i, const float* x, float* planes) {
  for (int64_t a = 0; a < i.h.phases(); ++a)
    for (int64_t b = 0; b < i.w.phases(); ++b, planes += i.plane) lay_plane(k, i, x, a, b, planes);
}

// All channels of some images; the planes of the next one begin `laid` further on.
inline void lay_images(const Kernels& k, const Image& i, const float* x, int64_t images,
                       int64_t laid, float* planes) {
  const int64_t per_channel = i.planes / std::max<int64_t>(i.channels, 1) * i.plane;
  torch::stable::parallel_for(
      0, images * i.channels, ceil_div(kGrain, ceil_div(per_channel, k.width) * kLayingCost),
      [&](int64_t a, int64_t b) {
        for (int64_t n = a; n < b; ++n)
          lay_out(k, i, x + n * i.h.size * i.w.size,
                  planes + n / i.channels * laid + n % i.channels * per_channel);
      });
}

// Where the activation of every place of the weight lies, from the first position of an image, for
// the channels [first, last) of one group; the places of padding are filled for every image.
inline void fill_shifts(const Image& i, int64_t first, int64_t last, int64_t chunk,
                        int64_t* shifts) {
  int64_t column = 0, chunk_of = 0;
  for (int64_t c = first; c < last; ++c) {
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

// For every block its rows' groups, as distances in the shifts; a block has one row more, for none.
inline std::vector<int64_t> rows_of_blocks(const Csb& w, int64_t groups, int64_t group_step) {
  if (groups == 1) return {};
  std::vector<int64_t> rows(w.blocks * (w.block + 1), 0);
  for (int64_t row = 0; row < w.out; ++row)
    rows[row / w.block * (w.block + 1) + row % w.block] = row / (w.out / groups) * group_step;
  return rows;
}

// The parts of positions [from, to) that are output, as places behind `base`.
inline int64_t segments_of(const Image& i, int64_t from, int64_t to, int64_t base, Segment* out) {
  int64_t n = 0;
  if (i.step == i.w.out()) {  // its rows lie together
    out[0] = {from - base, to - from, from};
    return 1;
  }
  for (int64_t p = from; p < to;) {
    const int64_t y = p / i.step, x = p % i.step;
    const int64_t end = std::min(to, y * i.step + i.w.out());
    if (end > p) out[n++] = {p - base, end - p, y * i.w.out() + x};
    p = (y + 1) * i.step;
  }
  return n;
}

}  // namespace sparsewright
