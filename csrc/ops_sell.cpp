// Products with weights in layout sell.
#include "chain.h"
#include "slices.h"
#include "tiles.h"

namespace sparsewright {

Sell sell_of(const Tensor& starts, const Tensor& order, const Tensor& columns, const Tensor& values,
             const std::optional<Tensor>& scales, int64_t in, int64_t out_features) {
  const bool wide = columns.scalar_type() == ScalarType::Int;
  check_tensor(columns, "columns", wide ? ScalarType::Int : ScalarType::UInt16, "uint16 or int32");
  SW_CHECK(values.dim() == 2 && columns.dim() == 2 && values.size(1) == kLanes &&
               columns.size(1) == kLanes && values.size(0) == columns.size(0),
           "values and columns must have shape (steps, 16)");
  check_slices(starts, order, values.size(0), out_features);
  SW_CHECK(wide || in < kNarrow, "16-bit columns serve fewer than 65536 in_features; got ", in);
  return {{static_cast<const int32_t*>(starts.const_data_ptr()),
           static_cast<const int32_t*>(order.const_data_ptr()), columns.const_data_ptr(), wide,
           values_of(values, scales, out_features), in, out_features, order.size(0), in + 1,
           out_features}};
}

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
    over_slices(k, w, l, (steps + slices) * kLanes * l.batch, [&](int64_t a, int64_t b) {
      k.sell_dot(w, with_zero(l.x, l.batch, l.in), l.batch, l.bias, l.y, a, b);
    });
  } else {
    Stored stored;
    stored.end = l.in;
    over_tiles(k, l, out_features, stored, slices, steps * kLanes + out_features,
               [&](const Tile& tile, int64_t slice) { k.sell_tile(w, tile, slice); });
  }
  return std::move(l.output);
}

}  // namespace sparsewright
