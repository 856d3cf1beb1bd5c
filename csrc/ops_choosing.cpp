// Which weights are best, without a sorted copy: the score of the last one that stays is found by
// counting the bits of all (a radix selection), so what it takes beside the scores is a small
// table. Among equals the first is best, and no order is defined where one is NaN.
#include <torch/csrc/stable/library.h>

#include <array>
#include <bit>
#include <limits>

#include "ops.h"
#include "places.h"

namespace sparsewright {
namespace {

// Unsigned numbers in the order of the scores; -0 is 0.
uint32_t rank_of(float score) {
  const int32_t bits = std::bit_cast<int32_t>(score + 0.0f);
  return static_cast<uint32_t>(bits ^ (bits >> 31 | std::numeric_limits<int32_t>::min()));
}

float score_of(uint32_t rank) {
  return std::bit_cast<float>(rank >> 31 ? rank & 0x7fffffffu : ~rank);
}

// All that ranks higher than `rank` stays, and of those that have it the first `equals`.
struct Cut {
  uint32_t rank;
  int64_t equals;
};

// Of count scores the best `keep`, in [1, count].
Cut cut_of(const float* scores, int64_t count, int64_t keep) {
  constexpr int kShifts[] = {21, 10, 0};
  uint32_t known = 0, mask = 0;
  for (const int shift : kShifts) {
    const uint32_t low = (mask ? ~mask : ~0u) >> shift;  // the digit's own bits
    std::array<int64_t, 2048> counts{}, others{};  // two, for equal digits often follow each other
    const auto look = [&](auto& table, float score) {
      const uint32_t rank = rank_of(score);
      if ((rank & mask) == known) ++table[rank >> shift & low];
    };
    for (int64_t i = 0; i + 1 < count; i += 2) look(counts, scores[i]), look(others, scores[i + 1]);
    if (count % 2) look(counts, scores[count - 1]);
    for (size_t d = 0; d < counts.size(); ++d) counts[d] += others[d];
    uint32_t digit = low;
    while (counts[digit] < keep) keep -= counts[digit--];
    known |= digit << shift, mask |= low << shift;
  }
  return {known, keep};
}

bool any_nan(const float* scores, int64_t count) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) found |= scores[i] != scores[i];
  return found;
}

const float* floats(const Tensor& t, const char* name) {
  check_tensor(t, name, ScalarType::Float, "float32");
  return static_cast<const float*>(t.const_data_ptr());
}

// The best weights that were offered so far, in the order of their places. state: how many, and
// the least that one must be better than to be of use, NaN until that is known.
struct Best {
  float* scores;
  int64_t* places;
  double* state;
  int64_t count, room, found;
  float least;
  bool full;  // whether `least` is known

  void offer(float score, int64_t place) {
    if (found == room) settle();
    if (full && !(score > least)) return;
    scores[found] = score, places[found++] = place;
  }

  // What cannot be among the best `count` any more goes. At first by the upper bits alone; where
  // that makes too little room, only the best `count` stay, and what comes later must be better.
  void settle() {
    full = true;
    if (count == 0) {
      found = 0, least = std::numeric_limits<float>::infinity();
      return;
    }
    constexpr int kShift = 19;
    std::array<int32_t, 1 << (32 - kShift)> counts{};
    for (int64_t i = 0; i < found; ++i) ++counts[rank_of(scores[i]) >> kShift];
    uint32_t digit = counts.size() - 1;
    int64_t stay = counts[digit];
    while (stay < count) stay += counts[--digit];
    const uint32_t below = (digit << kShift) - 1;
    const bool rough = digit > 0 && stay - count <= (room - count) / 2;
    filter(rough ? Cut{below, 0} : cut_of(scores, found, count));
  }

  void filter(Cut cut) {
    int64_t to = 0;
    for (int64_t i = 0; i < found; ++i) {
      const float score = scores[i];
      const uint32_t rank = rank_of(score);
      bool stays = rank > cut.rank;
      if (rank == cut.rank) [[unlikely]]
        stays = cut.equals-- > 0;
      scores[to] = score, places[to] = places[i], to += stays;
    }
    found = to, least = score_of(cut.rank);
  }
};

// The rows of one weight whose scores are offered.
struct Rows {
  const float* scores;
  int64_t begin, end, width;
  const int64_t* starts;
  const bool* leaves;
  bool last;
};

// Whether a score is NaN. Columns in runs: those that may be of use first, then which are absent.
template <class Index>
bool offer_rows(const Rows& w, const Index* columns, Best& best) {
  constexpr int64_t kRun = 2048;
  constexpr float kMost = std::numeric_limits<float>::max();
  int32_t hits[kRun];
  for (int64_t r = w.begin; r < w.end; ++r) {
    const float* row = w.scores + (r - w.begin) * w.width;
    int64_t i = w.starts[r];
    for (int64_t from = 0; from < w.width; from += kRun) {
      const int64_t run = std::min(kRun, w.width - from);
      const float* s = row + from;
      if (any_nan(s, run)) return true;
      int64_t hit = 0;
      const bool all = !best.full;
      const float least = best.least;
      for (int64_t c = 0; c < run; ++c) {
        hits[hit] = static_cast<int32_t>(c);
        hit += all | (s[c] > least);
      }
      for (int64_t h = 0; h < hit; ++h) {
        const int64_t c = from + hits[h];
        while (i < w.starts[r + 1] && columns[i] < c) ++i;
        float score = std::min(row[c], kMost);
        if (i < w.starts[r + 1] && columns[i] == c) {
          if (!w.leaves[i]) continue;
          if (w.last) score = -std::numeric_limits<float>::infinity();
        }
        best.offer(score, r * w.width + c);
      }
    }
  }
  return false;
}

}  // namespace

// True in `best` where one of the best `keep` scores is; whether it could be said: not with NaN.
bool best_of(const Tensor& scores, int64_t keep, const Tensor& best) {
  const float* from = floats(scores, "scores");
  const int64_t count = scores.numel();
  check_tensor(best, "best", ScalarType::Bool, "bool");
  SW_CHECK(best.numel() == count && 0 <= keep && keep <= count, "best must have ", count,
           " entries, and keep lie in [0, ", count, "]; got ", best.numel(), " and ", keep);
  if (any_nan(from, count)) return false;
  bool* to = static_cast<bool*>(best.mutable_data_ptr());
  if (keep == 0) {
    std::fill_n(to, count, false);
    return true;
  }
  const Cut cut = cut_of(from, count, keep);
  int64_t equals = cut.equals;
  for (int64_t i = 0; i < count; ++i) to[i] = rank_of(from[i]) > cut.rank;
  for (int64_t i = 0; i < count && equals > 0; ++i)
    if (rank_of(from[i]) == cut.rank) to[i] = true, --equals;
  return true;
}

// Offers the scores (rows, width) of the rows from `begin` on, of those that are absent or leave.
// last: those that leave come after all others. Whether it could be done: not with NaN.
bool offer(const Tensor& scores, int64_t begin, int64_t width, const Tensor& starts,
           const Tensor& columns, const Tensor& leaves, bool last, int64_t count,
           const Tensor& best, const Tensor& places, const Tensor& state) {
  const float* from = floats(scores, "scores");
  const int64_t rows = width ? scores.numel() / width : 0;
  check_tensor(leaves, "leaves", ScalarType::Bool, "bool");
  check_tensor(places, "places", ScalarType::Long, "int64");
  check_tensor(state, "state", ScalarType::Double, "float64");
  floats(best, "best");
  const int64_t* start = starts_of(starts, columns);
  SW_CHECK(rows * width == scores.numel() && 0 <= begin && begin + rows < starts.numel(),
           "scores must be whole rows of the weight");
  SW_CHECK(leaves.numel() == columns.numel(), "leaves must have ", columns.numel(), " entries");
  SW_CHECK(count >= 0 && best.numel() > count && places.numel() == best.numel(),
           "best and places must have room for more than ", count, "; got ", best.numel(), " and ",
           places.numel());
  double* own = static_cast<double*>(state.mutable_data_ptr());
  const bool full = own[1] == own[1];
  SW_CHECK(state.numel() == 2 && 0 <= own[0] && own[0] <= best.numel(), "state is of another best");
  Best all{static_cast<float*>(best.mutable_data_ptr()),
           static_cast<int64_t*>(places.mutable_data_ptr()),
           own,
           count,
           best.numel(),
           static_cast<int64_t>(own[0]),
           full ? static_cast<float>(own[1]) : 0.0f,
           full};
  const Rows some{from,  begin, begin + rows,
                  width, start, static_cast<const bool*>(leaves.const_data_ptr()),
                  last};
  bool nan = false;
  by_index(columns, [&](const auto* typed) { nan = offer_rows(some, typed, all); });
  own[0] = static_cast<double>(all.found);
  if (all.full) own[1] = all.least;
  return !nan;
}

}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def("best_of(Tensor scores, int keep, Tensor(a!) best) -> bool");
  m.def(
      "offer(Tensor scores, int begin, int width, Tensor starts, Tensor columns, Tensor leaves, "
      "bool last, int count, Tensor(a!) best, Tensor(b!) places, Tensor(c!) state) -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("best_of", TORCH_BOX(&sparsewright::best_of));
  m.impl("offer", TORCH_BOX(&sparsewright::offer));
}
