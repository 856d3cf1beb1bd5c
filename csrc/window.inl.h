// Layout window: 16 rows side by side as in layout sell, whose columns in a step lie so near each
// other that a look-up in registers serves them all, where the CPU has one. A gather, or loads one
// by one, take about a cycle for each weight.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "sell.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// Whether none of so many numbers is infinite or NaN.
bool all_finite(const float* x, int64_t count) {
  constexpr int kSums = 4;  // one would wait for its own fma
  Vec sums[kSums];
  for (Vec& sum : sums) sum = Simd::zero();
  int64_t i = 0;
  for (; i + kSums * kW <= count; i += kSums * kW)
    for (int k = 0; k < kSums; ++k)
      sums[k] = Simd::fma(Simd::load(x + i + k * kW), Simd::zero(), sums[k]);
  float rest = 0.0f;
  for (const Vec& sum : sums) rest += Simd::sum(sum);
  for (; i < count; ++i) rest += x[i] * 0.0f;
  return rest == 0.0f;
}

constexpr int64_t kOfGroup = kPlacesOfLane * kLanes;  // values of as many steps as share places

// Sums that so many rows at once have for each lane: every second step of few rows has its own, for
// one would wait for its own fma. So the last bits of a row's sums may be others in a larger batch.
constexpr int window_sets(int rows) { return rows * (kLanes / kW) < 8 ? 2 : 1; }

// R rows of the batch over slices [begin, end): values and places are read once for all of them.
// kFinite: x is, so that padding may be multiplied.
template <class Index, class T, int R, int kSets, bool kFinite, bool kSqueezed>
void window_rows(const Window& w, const float* x, const float* bias, float* y, int64_t begin,
                 int64_t end) {
  constexpr int kParts = kLanes / kW;
  const Index* columns = static_cast<const Index*>(w.columns);
  const T* const values = values_of<T>(w.values);
  const T* const values_end = values + w.count;
  const bool is_far = w.count * static_cast<int64_t>(sizeof(T)) > kFar;
  constexpr bool kBeyond = kSqueezed && !Simd::kExpandsWithin<T>;
  T rest[kBeyond ? kOfGroup : 1];  // the last values, from which a vector would reach beyond them
  for (int64_t slice = begin; slice < end; ++slice) {
    const T* next = values + w.firsts[slice];
    Vec sums[kSets][R][kParts];
    for (int s = 0; s < kSets; ++s)
      for (int r = 0; r < R; ++r)
        for (int k = 0; k < kParts; ++k) sums[s][r][k] = Simd::zero();
    for (int64_t i = w.starts[slice]; i < w.starts[slice + 1]; i += kPlacesOfLane) {
      const Simd::WindowPlaces places(w.places + i * kLanes);
      const Index* const first = columns + i / kStepsOfWindow;
      const T *group = next, *at_value = next;
      if (kBeyond && values_end - next < kOfGroup) {
        const int64_t left = values_end - next;
        for (int64_t v = 0; v < kOfGroup; ++v) rest[v] = v < left ? next[v] : T{};
        group = at_value = rest;
      }
      if (is_far) {
        fetch(next, kValuesAhead, kOfGroup * static_cast<int64_t>(sizeof(T)));
        fetch(w.places + i * kLanes, kPlacesAhead, kOfGroup);
      }
#pragma GCC unroll 4
      for (int step = 0; step < kPlacesOfLane; ++step) {
        const float* at = x + static_cast<int64_t>(first[step / kStepsOfWindow]);
        for (int k = 0; k < kParts; ++k) {
          Vec value;
          if constexpr (kSqueezed) {
            const unsigned lanes = places.present(step, k);
            value = Simd::expand(lanes, at_value);
            at_value += __builtin_popcount(lanes);
          } else {
            value = Simd::load(at_value);
            at_value += kW;
          }
          for (int r = 0; r < R; ++r) {
            Vec found = places.look_up(at + r * w.x_step, step, k);
            if (!kFinite) found = Simd::where_present(value, found);
            Vec& sum = sums[step % kSets][r][k];
            sum = Simd::fma(value, found, sum);
          }
        }
      }
      next += at_value - group;
    }
    alignas(64) float lanes[R][kLanes];
    for (int r = 0; r < R; ++r)
      for (int k = 0; k < kParts; ++k) {
        const Vec both = Simd::add(sums[0][r][k], sums[kSets - 1][r][k]);
        Simd::store(lanes[r] + k * kW, kSets == 1 ? sums[0][r][k] : both);
      }
    put_lanes<R>(w, slice, lanes, bias, y);
  }
}

template <class Index, class T, bool kSqueezed>
void window_dot_of(const Window& w, const float* x, int64_t batch, const float* bias, float* y,
                   int64_t begin, int64_t end) {
  const bool finite = all_finite(x, batch * w.x_step);
  int64_t r = 0;
  const auto some = [&]<int R, int kSets, bool kFinite>() {
    window_rows<Index, T, R, kSets, kFinite, kSqueezed>(w, x + r * w.x_step, bias, y + r * w.y_step,
                                                        begin, end);
    r += R;
  };
  const auto rows = [&]<int R>() {
    constexpr int kSets = window_sets(R);
    if (finite) return some.template operator()<R, kSets, true>();
    for (int i = 0; i < R; ++i) some.template operator()<1, kSets, false>();
  };
  if constexpr (Simd::kWindowDotBatch >= 8)
    while (r + 8 <= batch) rows.template operator()<8>();
  while (r + 4 <= batch) rows.template operator()<4>();
  while (r + 2 <= batch) rows.template operator()<2>();
  if (r < batch) rows.template operator()<1>();
}

void window_dot(const Window& w, const float* x, int64_t batch, const float* bias, float* y,
                int64_t begin, int64_t end) {
  by_types(w.values, w.wide, [&]<class Index, class T>() {
    const auto dot = w.squeezed ? window_dot_of<Index, T, true> : window_dot_of<Index, T, false>;
    dot(w, x, batch, bias, y, begin, end);
  });
}

// The columns of one step, 16; of padding, the one after the last.
template <class Index>
void write_columns(const Window& w, int64_t step, int32_t* columns) {
  constexpr bool kLittle = std::endian::native == std::endian::little;
  const auto at = static_cast<int>(step % kPlacesOfLane);
  const int shift = 8 * (kLittle ? at : kPlacesOfLane - 1 - at);
  uint32_t places[kLanes];  // of each lane, four to a number
  std::memcpy(places, w.places + (step - at) * kLanes, sizeof places);
  const auto first =
      static_cast<int32_t>(static_cast<const Index*>(w.columns)[step / kStepsOfWindow]);
  const auto none = static_cast<int32_t>(w.in);
  for (int l = 0; l < kLanes; ++l) {
    const auto place = static_cast<int32_t>(places[l] >> shift);
    const int32_t present = ((place & 0x80) >> 7) - 1;  // no branch: 0 or all bits
    columns[l] = none + (present & (first + (place & (kWindow - 1)) - none));
  }
}

// Some steps of one slice as layout sell has them.
template <class T>
struct WrittenOut {
  static constexpr int64_t kMost = 64;
  int32_t columns[kMost * kLanes];
  T values[kMost * kLanes];
};

// Values of one group of steps, 0 for padding, from those that were squeezed; how many those are.
template <class T>
int64_t write_values(const uint8_t* places, const T* from, const T* end, T* to) {
  const T* const first = from;
  for (int step = 0; step < kPlacesOfLane; ++step)
    for (int l = 0; l < kLanes; ++l)
      *to++ = places[l * kPlacesOfLane + step] < kWindow && from < end ? *from++ : T{};
  return from - first;
}

void window_tile(const Window& w, const Tile& tile, int64_t slice) {
  by_types(w.values, w.wide, [&]<class Index, class T>() {
    WrittenOut<T> out;
    const T *next = values_of<T>(w.values) + w.firsts[slice],
            *end = values_of<T>(w.values) + w.count;
    slice_tile<T>(w, tile, slice, out.kMost, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        write_columns<Index>(w, i, out.columns + (i - from) * kLanes);
      const T* values = next;
      if (w.squeezed) {
        for (int64_t i = from; i < to; i += kPlacesOfLane)
          next += write_values(w.places + i * kLanes, next, end, out.values + (i - from) * kLanes);
        values = out.values;
      } else {
        next += (to - from) * kLanes;
      }
      return Steps<int32_t, T>{out.columns, values};
    });
  });
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
