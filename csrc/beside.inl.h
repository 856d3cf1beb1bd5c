// Images, or patches of them, that lie side by side along the vector (beside.h): their columns.
#pragma once
#include <cstdint>
#include <limits>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// kW lanes from `lane` on of a column at x; `none` where one has no float.
[[gnu::always_inline]] inline Vec load_column(const float* x, const LanePlaces* places, int lane,
                                              Vec none) {
  if (!places) return Simd::load(x + lane);
  const int32_t* const of = places->of + lane;
  return places->near ? Simd::pick_near(x, of, none) : Simd::pick_where(x, of, none);
}

void pick_beside(const float* x, int64_t channel, const LanePlaces& places, int64_t channels,
                 float* to) {
  for (int64_t c = 0; c < channels; ++c, x += channel, to += channel)
    for (int j = 0; j < kBeside; j += kW)
      Simd::store(to + j, load_column(x, &places, j, Simd::zero()));
}

void max_beside(const float* x, int64_t channel, const LaidColumns& from, int64_t places,
                int64_t columns, int64_t channels, float least, float* y) {
  const Vec none = Simd::broadcast(-std::numeric_limits<float>::infinity());
  for (int64_t c = 0; c < channels; ++c, x += channel) {
    for (int64_t i = 0; i < columns; ++i) {
      for (int j = 0; j < kBeside; j += kW, y += kW) {
        Vec most = Simd::broadcast(least);
        for (int64_t p = i; p < places * columns; p += columns) {
          if (from.from[p] < 0) continue;
          most = Simd::most(most, load_column(x + from.from[p], from.pick(p), j, none));
        }
        Simd::store(y, most);
      }
    }
  }
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
