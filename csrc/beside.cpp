// Where the neighbours of patches lie that are laid side by side.
#include "beside.h"

namespace sparsewright {
namespace {

// For each lane, where along one direction of its image a patch of the output begins; -1: the lane
// has no image.
struct Lane {
  int64_t image = -1, row = 0, column = 0;  // of the patch, in the output image
};

std::array<Lane, kBeside> lanes_of(const Inside& out, int64_t group) {
  std::array<Lane, kBeside> lanes;
  for (int64_t l = 0; l < out.together * out.patches(); ++l) {
    const int64_t image = group * out.together + l / out.patches(), patch = l % out.patches();
    if (image >= out.batch) continue;
    lanes[static_cast<size_t>(l)] = {image, patch / out.wide * out.rows,
                                     patch % out.wide * out.breadth};
  }
  return lanes;
}

}  // namespace

void Sources::add_patches(const Laying& laying, const Inside& in, const Inside& out, int64_t row,
                          int64_t first, int64_t group) {
  SW_CHECK(in.in_all() * in.tile() < int64_t{1} << 31, "patches of ", in.in_all() * in.tile(),
           " floats are too many: their places are counted in 32 bits");
  const auto lanes = lanes_of(out, group);
  std::array<int64_t, kBeside> row_at, at;
  std::array<bool, kBeside> wanted;  // lanes of the output that are part of an image
  for (size_t l = 0; l < kBeside; ++l)
    wanted[l] = lanes[l].image >= 0 && lanes[l].row + row < out.height;
  for (int64_t y = 0; y < laying.h.kernel; ++y) {
    for (size_t l = 0; l < kBeside; ++l) {
      const int64_t r = laying.row_of(lanes[l].row + row, y);
      row_at[l] = -1;
      if (!wanted[l] || r < 0 || r >= in.height) continue;
      const int64_t patch = lanes[l].image % in.together * in.patches() + r / in.rows * in.wide;
      row_at[l] = lanes[l].image / in.together * in.group() + in.place(r % in.rows, 0) + patch;
    }
    for (int64_t i = 0; i < laying.span(); ++i) {
      for (size_t l = 0; l < kBeside; ++l) {
        const int64_t c = laying.column_of(lanes[l].column + first, i);
        at[l] = -1;
        if (row_at[l] < 0 || c < 0 || c >= in.width) continue;
        at[l] = row_at[l] + in.place(0, c % in.breadth) + c / in.breadth;
      }
      add_column(at, wanted);
    }
  }
}

// at: of each lane where in x its float is; -1: it is zero.
void Sources::add_column(const std::array<int64_t, kBeside>& at,
                         const std::array<bool, kBeside>& wanted) {
  int64_t from = -1, last = 0;
  for (const int64_t a : at) {
    if (a >= 0) from = from < 0 ? a : std::min(from, a);
    last = std::max(last, a);
  }
  if (from < 0) {
    from_.push_back(-1), which_.push_back(-1);
    return;
  }
  from -= from % kBeside;  // tiles begin at whole vectors
  LanePlaces places = {};
  places.near = last - from < kBeside;
  bool is_whole = true;
  for (size_t l = 0; l < kBeside; ++l) {
    places.of[l] = at[l] < 0 ? -1 : static_cast<int32_t>(at[l] - from);
    is_whole = is_whole && (!wanted[l] || at[l] == from + static_cast<int64_t>(l));
  }
  from_.push_back(from);
  which_.push_back(-1);
  if (is_whole) return;
  const auto same = [&](const LanePlaces& p) {
    return std::equal(std::begin(p.of), std::end(p.of), std::begin(places.of));
  };
  auto found = std::find_if(picks_.rbegin(), picks_.rend(), same);
  if (found == picks_.rend()) {
    picks_.push_back(places);
    found = picks_.rbegin();
  }
  which_.back() = static_cast<int32_t>(&*found - picks_.data());
}

}  // namespace sparsewright
