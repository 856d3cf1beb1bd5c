// What the layouts share whose rows lie side by side in slices of 16.
#pragma once
#include "ops.h"

namespace sparsewright {

// First slice at or after which `target` steps lie before.
inline int64_t slice_at(const Slices& w, int64_t target) {
  return std::lower_bound(w.starts, w.starts + w.slices, target,
                          [](int32_t a, int64_t b) { return a < b; }) -
         w.starts;
}

// What it costs to look up so many places, as kGrain counts: a vector's at once, which takes as
// long as four multiply-adds, where the CPU can permute a register.
inline int64_t looking_up(const Kernels& k, int64_t places) {
  constexpr int64_t kLookUpCost = 4;
  return places * kLookUpCost / k.width;
}

// The slices of one of `parts` parts with about as many steps each: [first, second).
inline std::pair<int64_t, int64_t> slices_of_part(const Slices& w, int64_t part, int64_t parts) {
  const int64_t steps = w.starts[w.slices];
  return {part == 0 ? 0 : slice_at(w, steps * part / parts),
          part + 1 == parts ? w.slices : slice_at(w, steps * (part + 1) / parts)};
}

// body(a, b): the sums of slices [a, b), for all of them, shared out by their steps and not by
// their number; then the activation. work counts as kGrain does.
template <class Body>
void over_slices(const Kernels& k, const Slices& w, const Linear& l, int64_t work,
                 const Body& body) {
  const int64_t parts = parts_of(work, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
    const int64_t a = slices_of_part(w, from, parts).first;
    const int64_t b = slices_of_part(w, to - 1, parts).second;
    if (a < b) body(a, b);
  });
  // After all slices: their rows lie anywhere in y.
  k.activate(l.y, l.batch * w.out, l.activation);
}

// What starts and order must be for so many steps and rows.
inline void check_slices(const Tensor& starts, const Tensor& order, int64_t steps, int64_t out) {
  check_tensor(starts, "starts", ScalarType::Int, "int32");
  check_tensor(order, "order", ScalarType::Int, "int32");
  SW_CHECK(starts.dim() == 1 && starts.size(0) == order.size(0) + 1 && order.dim() == 2 &&
               order.size(1) == kLanes,
           "starts must have shape (slices + 1,) and order (slices, 16)");
  const int64_t slices = order.size(0);
  SW_CHECK(out >= 0 && slices == ceil_div(out, kLanes),
           "order must have one slice for every 16 of the ", out, " out_features; got ", slices);
  const int32_t* first = static_cast<const int32_t*>(starts.const_data_ptr());
  SW_CHECK(first[0] == 0 && first[slices] == steps, "starts must run from 0 to ", steps, "; got ",
           first[0], " to ", first[slices]);
}

}  // namespace sparsewright
