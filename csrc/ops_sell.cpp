// Products with weights in layout sell.
#include "chain.h"
#include "tiles.h"

namespace sparsewright {

Sell sell_of(const Tensor& starts, const Tensor& order, const Tensor& columns, const Tensor& values,
             const std::optional<Tensor>& scales, int64_t in, int64_t out_features) {
  check_tensor(starts, "starts", ScalarType::Int, "int32");
  check_tensor(order, "order", ScalarType::Int, "int32");
  const bool wide = columns.scalar_type() == ScalarType::Int;
  check_tensor(columns, "columns", wide ? ScalarType::Int : ScalarType::UInt16, "uint16 or int32");
  SW_CHECK(values.dim() == 2 && columns.dim() == 2 && values.size(1) == kLanes &&
               columns.size(1) == kLanes && values.size(0) == columns.size(0),
           "values and columns must have shape (steps, 16)");
  SW_CHECK(starts.dim() == 1 && starts.size(0) == order.size(0) + 1 && order.dim() == 2 &&
               order.size(1) == kLanes,
           "starts must have shape (slices + 1,) and order (slices, 16)");
  const int64_t slices = order.size(0), steps = values.size(0);
  SW_CHECK(out_features >= 0 && slices == ceil_div(out_features, kLanes),
           "order must have one slice for every 16 of the ", out_features, " out_features; got ",
           slices);
  SW_CHECK(wide || in < 65536, "16-bit columns serve fewer than 65536 in_features; got ", in);
  const Sell w = {static_cast<const int32_t*>(starts.const_data_ptr()),
                  static_cast<const int32_t*>(order.const_data_ptr()),
                  columns.const_data_ptr(),
                  wide,
                  values_of(values, scales, out_features),
                  in,
                  out_features,
                  slices,
                  in + 1};
  SW_CHECK(w.starts[0] == 0 && w.starts[slices] == steps, "starts must run from 0 to ", steps,
           "; got ", w.starts[0], " to ", w.starts[slices]);
  return w;
}

int64_t slice_at(const Sell& w, int64_t target) {
  return std::lower_bound(w.starts, w.starts + w.slices, target,
                          [](int32_t a, int64_t b) { return a < b; }) -
         w.starts;
}

namespace {

// Slices shared out by their steps, not by their number.
void sell_small(const Kernels& k, const Sell& w, const Linear& l, int64_t steps) {
  const int64_t work = (steps + w.slices) * kLanes * l.batch;
  const int64_t parts = parts_of(work, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
    const int64_t a = from == 0 ? 0 : slice_at(w, steps * from / parts);
    const int64_t b = to == parts ? w.slices : slice_at(w, steps * to / parts);
    if (a < b) k.sell_dot(w, with_zero(l.x, l.batch, l.in), l.batch, l.bias, l.y, a, b);
  });
  // After all slices: their rows lie anywhere in y.
  k.activate(l.y, l.batch * w.out, l.activation);
}

}  // namespace

Tensor sell_linear(const Tensor& x, const Tensor& starts, const Tensor& order,
                   const Tensor& columns, const Tensor& values, const std::optional<Tensor>& scales,
                   const std::optional<Tensor>& bias, int64_t out_features, int64_t activation,
                   int64_t isa) {
  const Kernels& k = kernels_for(isa);
  Linear l = begin(x, bias, out_features, activation);
  const Sell w = sell_of(starts, order, columns, values, scales, l.in, out_features);
  const int64_t slices = w.slices, steps = w.starts[slices];
  if (l.batch == 0 || out_features == 0) return std::move(l.output);
  if (l.batch <= k.sell_dot_batch && !l.transposed) {
    sell_small(k, w, l, steps);
  } else {
    Stored stored;
    stored.end = l.in;
    over_tiles(k, l, out_features, stored, slices, steps * kLanes + out_features,
               [&](const Tile& tile, int64_t slice) { k.sell_tile(w, tile, slice); });
  }
  return std::move(l.output);
}

}  // namespace sparsewright
