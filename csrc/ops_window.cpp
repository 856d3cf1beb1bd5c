// Products with weights in layout window.
#include "chain.h"
#include "tiles.h"

namespace sparsewright {

Window window_of(const Tensor& starts, const Tensor& order, const Tensor& columns,
                 const Tensor& places, const Tensor& firsts, const Tensor& values,
                 const std::optional<Tensor>& scales, int64_t in, int64_t out) {
  const bool wide = columns.scalar_type() == ScalarType::Int;
  check_tensor(columns, "columns", wide ? ScalarType::Int : ScalarType::UInt16, "uint16 or int32");
  check_tensor(places, "places", ScalarType::Byte, "uint8");
  const auto shape = places.sizes();
  SW_CHECK(shape.size() == 3 && shape[1] == kLanes && shape[2] == kPlacesOfLane,
           "places must have shape (groups, 16, 4)");
  const int64_t steps = shape[0] * kPlacesOfLane;
  SW_CHECK(columns.dim() == 1 && columns.size(0) == steps / kStepsOfWindow,
           "columns must have shape (", steps / kStepsOfWindow, ",); got ", columns.numel(),
           " entries");
  check_slices(starts, order, steps, out);
  check_tensor(firsts, "firsts", ScalarType::Int, "int32");
  const int64_t slices = order.size(0), count = values.numel();
  SW_CHECK(firsts.dim() == 1 && firsts.size(0) == slices + 1,
           "firsts must have shape (slices + 1,)");
  const int32_t* first = static_cast<const int32_t*>(firsts.const_data_ptr());
  SW_CHECK(values.dim() == 1 && first[0] == 0 && first[slices] == count && count <= steps * kLanes,
           "values must have shape (n,), n the last of firsts and at most ", steps * kLanes);
  return {{static_cast<const int32_t*>(starts.const_data_ptr()),
           static_cast<const int32_t*>(order.const_data_ptr()), columns.const_data_ptr(), wide,
           values_of(values, scales, out), in, out, order.size(0), in, out},
          static_cast<const uint8_t*>(places.const_data_ptr()),
          first,
          count,
          count < steps * kLanes};
}

namespace {

// Rows of x as a look-up wants them: a copy where they lie across, or are shorter than a window.
const float* rows_of(Window& w, const Linear& l, const Kernels& k) {
  if (!l.transposed && w.in >= kWindow) return l.x;
  w.x_step = std::max<int64_t>(w.in, kWindow);
  float* const copy = scratch(l.batch * w.x_step);
  if (w.in < kWindow) std::fill_n(copy, l.batch * kWindow, 0.0f);
  if (l.transposed)
    k.transpose(l.x, l.batch, w.in, l.batch, copy, w.x_step);
  else
    for (int64_t r = 0; r < l.batch; ++r) std::copy_n(l.x + r * w.in, w.in, copy + r * w.x_step);
  return copy;
}

}  // namespace

Tensor window_linear(const Tensor& x, const Tensor& starts, const Tensor& order,
                     const Tensor& columns, const Tensor& places, const Tensor& firsts,
                     const Tensor& values, const std::optional<Tensor>& scales,
                     const std::optional<Tensor>& bias, int64_t in_features, int64_t out_features,
                     int64_t activation, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  Linear l = begin(x, bias, out_features, activation);
  SW_CHECK(l.in == in_features, "x must have ", in_features, " in_features; got ", l.in);
  Window w = window_of(starts, order, columns, places, firsts, values, scales, l.in, out_features);
  if (l.batch == 0 || out_features == 0) return std::move(l.output);
  const int64_t slots = places.numel() + w.slices * kLanes;
  if (l.batch <= k.window_dot_batch) {
    const float* const rows = rows_of(w, l, k);
    if (l.transposed) w.y_step = 1, w.y_stride = l.batch;
    over_slices(k, w, l, looking_up(k, slots * l.batch),
                [&](int64_t a, int64_t b) { k.window_dot(w, rows, l.batch, l.bias, l.y, a, b); });
  } else {
    Stored stored;
    stored.end = l.in;
    over_tiles(k, l, out_features, stored, w.slices, slots,
               [&](const Tile& tile, int64_t slice) { k.window_tile(w, tile, slice); });
  }
  return std::move(l.output);
}

}  // namespace sparsewright
