// Weights packed in layout window: as layouts/window.py packs them, slice after slice.
#include <limits>
#include <numeric>
#include <vector>

#include "chain.h"
#include "packing.h"

namespace sparsewright {
namespace {

// Rows by descending counts, 16 to a slice, -1 where there is none.
struct Sorted {
  Matrix w;
  std::vector<int32_t> counts, order;
  int64_t slices() const { return static_cast<int64_t>(order.size()) / kLanes; }

  // Weights of a slice.
  int32_t count(int64_t slice) const {
    int32_t all = 0;
    for (int64_t l = slice * kLanes; l < (slice + 1) * kLanes; ++l)
      if (const int32_t row = order[static_cast<size_t>(l)]; row >= 0)
        all += counts[static_cast<size_t>(row)];
    return all;
  }

  explicit Sorted(const Matrix& weight) : w(weight) {
    counts.resize(static_cast<size_t>(w.out));
    over(w.out, w.in, [&](int64_t r) {
      counts[static_cast<size_t>(r)] = count_of(w.is_present, w.row(r), w.in);
    });
    order.resize(static_cast<size_t>(ceil_div(w.out, kLanes) * kLanes), -1);
    std::iota(order.begin(), order.begin() + w.out, 0);
    std::stable_sort(order.begin(), order.begin() + w.out, [&](int32_t a, int32_t b) {
      return counts[static_cast<size_t>(a)] > counts[static_cast<size_t>(b)];
    });
  }
};

constexpr int32_t kNoneLeft = std::numeric_limits<int32_t>::max();  // as a column
constexpr int64_t kMostValues = kNoneLeft;                          // that `firsts` can count

// What each lane of one slice has left, step after step.
class Lanes {
 public:
  Lanes(const Sorted& rows, int64_t slice, int64_t grid)
      : grid_(static_cast<int32_t>(grid)),
        last_(static_cast<int32_t>(std::max<int64_t>(rows.w.in - kWindow, 0))) {
    int64_t room = 0;
    const int32_t* const order = rows.order.data() + slice * kLanes;
    for (int l = 0; l < kLanes; ++l)
      room += 1 + (order[l] < 0 ? 0 : rows.counts[static_cast<size_t>(order[l])]);
    columns_.resize(static_cast<size_t>(room));
    const Presence is_present = rows.w.is_present;
    int32_t* to = columns_.data();
    for (int l = 0; l < kLanes; ++l) {
      at_[l] = to;
      values_[l] = order[l] < 0 ? nullptr : rows.w.row(order[l]);
      const int32_t count = order[l] < 0 ? 0 : rows.counts[static_cast<size_t>(order[l])];
      int32_t* const end = to + count;
      for (int32_t c = 0; to < end && c < rows.w.in; ++c) {
        *to = c;
        to += is_present(values_[l][c]);
      }
      *to = kNoneLeft;
      to = end + 1;
    }
  }
  // The first column of the next window, or kNoneLeft after the last one. taken: for each of its
  // steps, of each lane the place of its column in the window, or padding.
  int32_t next(uint8_t (*taken)[kLanes]) {
    int32_t lowest = kNoneLeft;
    for (const int32_t* at : at_) lowest = std::min(lowest, *at);
    if (lowest == kNoneLeft) return kNoneLeft;
    const int32_t first = std::min(lowest / grid_ * grid_, last_);
    for (int step = 0; step < kStepsOfWindow; ++step) {
      for (int l = 0; l < kLanes; ++l) {
        const int32_t place = *at_[l] - first;
        const bool takes = place < kWindow;
        taken[step][l] = takes ? static_cast<uint8_t>(place) : kPadding;
        at_[l] += takes;
      }
    }
    return first;
  }
  float value(int lane, int32_t column) const { return values_[lane][column]; }

 private:
  int32_t grid_, last_;
  std::vector<int32_t> columns_;  // lane after lane, kNoneLeft after each
  const int32_t* at_[kLanes];
  const float* values_[kLanes];
};

int32_t steps_of(const Sorted& rows, int64_t slice, int64_t grid) {
  Lanes lanes(rows, slice, grid);
  uint8_t taken[kStepsOfWindow][kLanes];
  int32_t steps = 0;
  while (lanes.next(taken) != kNoneLeft) steps += kStepsOfWindow;
  return steps;
}

void check_grid(int64_t grid) {
  SW_CHECK(1 <= grid && grid <= kWindow, "grid must be in [1, ", kWindow, "]; got ", grid);
}

// False if these are not the weights that were counted.
template <class Index>
bool fill_slice(const Sorted& rows, int64_t slice, int64_t grid, const int32_t* starts,
                Index* columns, uint8_t* places, float* values, bool squeezed) {
  Lanes lanes(rows, slice, grid);
  uint8_t taken[kStepsOfWindow][kLanes];
  int32_t weights = 0, first = kNoneLeft;
  for (int64_t step = starts[slice]; step < starts[slice + 1]; ++step) {
    const int64_t of_window = step % kStepsOfWindow;
    if (of_window == 0) first = lanes.next(taken);
    const bool past = first == kNoneLeft;  // padding up to whole groups of steps
    columns[step / kStepsOfWindow] = past ? Index{0} : static_cast<Index>(first);
    uint8_t* const place = places + step / kPlacesOfLane * kLanes * kPlacesOfLane;
    for (int l = 0; l < kLanes; ++l) {
      const uint8_t at = past ? kPadding : taken[of_window][l];
      place[l * kPlacesOfLane + step % kPlacesOfLane] = at;
      weights += at != kPadding;
      if (at != kPadding)
        *values++ = lanes.value(l, first + at);
      else if (!squeezed)
        *values++ = 0.0f;
    }
  }
  return weights == rows.count(slice) && lanes.next(taken) == kNoneLeft;
}

// Values hold those of padding too, or they do not (w.squeezed).
template <class Index, class IsPresent>
bool slice_holds(const Window& w, int64_t slice, const IsPresent& is_present) {
  const auto* const columns = static_cast<const Index*>(w.columns);
  const int64_t last = std::max<int64_t>(w.in - kWindow, 0);
  int64_t before[kLanes];
  std::fill_n(before, kLanes, -1);
  if (w.starts[slice] % kPlacesOfLane) return false;
  int64_t value = w.firsts[slice];
  const int64_t end = w.firsts[slice + 1];
  for (int64_t step = w.starts[slice]; step < w.starts[slice + 1]; ++step) {
    const int64_t first = columns[step / kStepsOfWindow];
    if (first < 0 || first > last) return false;
    const uint8_t* const places = w.places + step / kPlacesOfLane * kLanes * kPlacesOfLane;
    for (int l = 0; l < kLanes; ++l) {
      const int64_t place = places[l * kPlacesOfLane + step % kPlacesOfLane];
      const bool padding = place == kPadding;
      if (padding && w.squeezed) continue;
      if (value == end || is_present(value++) == padding) return false;
      if (padding) continue;
      const int64_t column = first + place;
      const bool right = place < kWindow && column < w.in && column > before[l];
      if (!right || w.order[slice * kLanes + l] < 0) return false;
      before[l] = column;
    }
  }
  return value == end;
}

}  // namespace

// Whether starts, columns, places, firsts and values of these sizes keep the rules of layout
// window. It has been checked that order names every row once, and that columns are wide enough for
// `in`.
bool window_holds(const Tensor& starts, const Tensor& order, const Tensor& columns,
                  const Tensor& places, const Tensor& firsts, const Tensor& values, int64_t in,
                  int64_t out) {
  std::optional<Tensor> scales;
  if (values.scalar_type() == ScalarType::Char) scales = made({out}, aoti_torch_dtype_float32());
  const Window w = window_of(starts, order, columns, places, firsts, values, scales, in, out);
  if (!ascend(w.starts, w.slices + 1, 1) || !ascend(w.firsts, w.slices + 1, 1)) return false;
  return by_values(values, [&](const auto& is_present) {
    return holds_of(w.slices, in * kLanes, [&](int64_t slice) {
      return w.wide ? slice_holds<int32_t>(w, slice, is_present)
                    : slice_holds<uint16_t>(w, slice, is_present);
    });
  });
}

// Steps that layout window needs for all slices, before they are made whole groups.
int64_t window_steps(const Tensor& weight, int64_t grid) {
  check_grid(grid);
  const Sorted rows(matrix_of(weight));
  std::atomic<int64_t> steps = 0;
  over(rows.slices(), rows.w.in * kLanes, [&](int64_t s) { steps += steps_of(rows, s, grid); });
  return steps;
}

// most: places up to which values are stored for all of them, 0 for padding.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_pack(const Tensor& weight,
                                                                       int64_t grid, int64_t most) {
  check_grid(grid);
  const Sorted rows(matrix_of(weight));
  const int64_t slices = rows.slices();
  Tensor starts = made({slices + 1}, aoti_torch_dtype_int32());
  int32_t* const to = data<int32_t>(starts);
  to[0] = 0;
  over(slices, rows.w.in * kLanes, [&](int64_t s) {
    to[s + 1] =
        static_cast<int32_t>(ceil_div(steps_of(rows, s, grid), kPlacesOfLane) * kPlacesOfLane);
  });
  std::partial_sum(to, to + slices + 1, to);
  const int64_t steps = to[slices];
  const bool squeezed = steps * kLanes > std::min<int64_t>(most, kMostValues);
  Tensor firsts = made({slices + 1}, aoti_torch_dtype_int32());
  int32_t* const first = data<int32_t>(firsts);
  first[0] = 0;
  for (int64_t s = 0; s < slices; ++s)
    first[s + 1] = squeezed ? first[s] + rows.count(s) : to[s + 1] * kLanes;
  Tensor order = made({slices, kLanes}, aoti_torch_dtype_int32());
  std::copy(rows.order.begin(), rows.order.end(), data<int32_t>(order));
  const bool wide = rows.w.in >= kNarrow;
  Tensor columns =
      made({steps / kStepsOfWindow}, wide ? aoti_torch_dtype_int32() : aoti_torch_dtype_uint16());
  Tensor places = made({steps / kPlacesOfLane, kLanes, kPlacesOfLane}, aoti_torch_dtype_uint8());
  Tensor values = made({first[slices]}, aoti_torch_dtype_float32());
  const bool same = holds_of(slices, rows.w.in * kLanes, [&](int64_t s) {
    float* const own = data<float>(values) + first[s];
    if (wide)
      return fill_slice(rows, s, grid, to, data<int32_t>(columns), data<uint8_t>(places), own,
                        squeezed);
    return fill_slice(rows, s, grid, to, data<uint16_t>(columns), data<uint8_t>(places), own,
                      squeezed);
  });
  check_same(same);
  return {starts, order, columns, places, firsts, values};
}

}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def(
      "window_holds(Tensor starts, Tensor order, Tensor columns, Tensor places, Tensor firsts, "
      "Tensor values, int in_features, int out_features) -> bool");
  m.def("window_steps(Tensor weight, int grid) -> int");
  m.def(
      "window_pack(Tensor weight, int grid, int most) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("window_holds", TORCH_BOX(&sparsewright::window_holds));
  m.impl("window_steps", TORCH_BOX(&sparsewright::window_steps));
  m.impl("window_pack", TORCH_BOX(&sparsewright::window_pack));
}
