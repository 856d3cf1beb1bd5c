// Products with weights in layout block.
#include "tiles.h"

namespace sparsewright {
namespace {

Block block_of(const Tensor& starts, const Tensor& columns, const Tensor& values,
               const std::optional<Tensor>& scales, int64_t in, int64_t out) {
  check_tensor(starts, "starts", ScalarType::Int, "int32");
  const bool wide = columns.scalar_type() == ScalarType::Int;
  check_tensor(columns, "columns", wide ? ScalarType::Int : ScalarType::UInt16, "uint16 or int32");
  SW_CHECK(values.dim() == 2 && columns.dim() == 1 && values.size(0) == columns.size(0),
           "values must have shape (steps, rows) and columns (steps,)");
  const int64_t rows = values.size(1), steps = values.size(0);
  SW_CHECK(rows == 4 || rows == 8 || rows == 16, "values must have 4, 8 or 16 rows; got ", rows);
  SW_CHECK(out >= 0, "out_features must not be negative; got ", out);
  const int64_t strips = ceil_div(out, rows);
  SW_CHECK(starts.dim() == 1 && starts.size(0) == 2 * strips + 1, "starts must have shape (",
           2 * strips + 1, ",) for ", out, " out_features; got ", starts.numel(), " entries");
  const Block w = {static_cast<const int32_t*>(starts.const_data_ptr()),
                   columns.const_data_ptr(),
                   wide,
                   values_of(values, scales, out),
                   in,
                   out,
                   rows,
                   strips};
  SW_CHECK(w.starts[0] == 0 && w.starts[2 * strips] == steps, "starts must run from 0 to ", steps,
           "; got ", w.starts[0], " to ", w.starts[2 * strips]);
  SW_CHECK(std::is_sorted(w.starts, w.starts + 2 * strips + 1), "starts must not descend");
  return w;
}

}  // namespace

Tensor block_linear(const Tensor& x, const Tensor& starts, const Tensor& columns,
                    const Tensor& values, const std::optional<Tensor>& scales,
                    const std::optional<Tensor>& bias, int64_t in_features, int64_t out_features,
                    int64_t activation, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  const Block w = block_of(starts, columns, values, scales, in_features, out_features);
  Linear l = begin(x, bias, out_features, activation);
  SW_CHECK(l.in == in_features, "x must have ", in_features, " in_features; got ", l.in);
  if (l.batch == 0 || out_features == 0) return std::move(l.output);
  const int64_t size = kBlockRows / w.rows;  // strips of an item
  const int64_t items = ceil_div(w.strips, size), work = values.numel() + out_features;
  const int64_t lanes_batch = k.block_lanes_batch / (w.rows < k.width ? 2 : 1);
  if (l.batch <= lanes_batch && !l.transposed) {
    const int64_t per_item = std::max<int64_t>(work * l.batch / k.width / items, 1);
    const auto multiply = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        k.block_lanes(w, l.x, l.batch, l.bias, l.y, i * size, std::min(w.strips, (i + 1) * size),
                      l.activation);
    };
    torch::stable::parallel_for(0, items, ceil_div(kGrain, per_item), multiply);
  } else {
    Stored stored;
    stored.rows = k.block_tile_rows;
    over_tiles(k, l, out_features, stored, items, work, [&](const Tile& tile, int64_t i) {
      k.block_tile(w, tile, i * size, std::min(w.strips, (i + 1) * size));
    });
  }
  return std::move(l.output);
}

}  // namespace sparsewright
