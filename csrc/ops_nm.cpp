// Products with weights in layout nm.
#include "chain.h"
#include "tiles.h"

namespace sparsewright {

Nm nm_of(const Tensor& values, const Tensor& columns, const std::optional<Tensor>& scales,
         int64_t in, int64_t out_features, int64_t chunk) {
  check_tensor(columns, "columns", ScalarType::Byte, "uint8");
  const auto shape = values.sizes(), places = columns.sizes();
  SW_CHECK(shape.size() == 4 && shape[3] == kLanes,
           "values must have shape (tiles, chunks, slots, 16)");
  SW_CHECK(places.size() == 4 && std::equal(shape.begin(), shape.end(), places.begin()),
           "columns must have the shape of values");
  SW_CHECK(1 <= chunk && chunk <= 256, "chunk must be in [1, 256]; got ", chunk);
  SW_CHECK(out_features >= 0, "out_features must not be negative; got ", out_features);
  SW_CHECK(shape[0] == ceil_div(out_features, kLanes),
           "values must have one tile for every 16 of the ", out_features, " out_features; got ",
           shape[0]);
  SW_CHECK(shape[1] == ceil_div(in, chunk), "values must have ", ceil_div(in, chunk), " chunks of ",
           chunk, " columns for the ", in, " in_features of x; got ", shape[1]);
  return {values_of(values, scales, out_features),
          static_cast<const uint8_t*>(columns.const_data_ptr()),
          in,
          out_features,
          chunk,
          shape[0],
          shape[1],
          shape[2]};
}

Tensor nm_linear(const Tensor& x, const Tensor& values, const Tensor& columns,
                 const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                 int64_t out_features, int64_t chunk, int64_t activation, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  Linear l = begin(x, bias, out_features, activation);
  const Nm w = nm_of(values, columns, scales, l.in, out_features, chunk);
  if (l.batch == 0 || out_features == 0) return std::move(l.output);
  const int64_t work = w.chunks * w.slots * w.tiles * kLanes + out_features;
  if (chunk <= kTable && l.batch <= k.nm_lookup_batch && !l.transposed) {
    float* tables = scratch(l.batch * w.chunks * kTable);
    k.nm_tables(w, l.x, l.batch, tables);
    const int64_t pairs = ceil_div(w.tiles, 2);
    const int64_t per_pair = std::max<int64_t>(work / pairs * l.batch / k.width, 1);
    torch::stable::parallel_for(0, pairs, ceil_div(kGrain, per_pair), [&](int64_t a, int64_t b) {
      k.nm_lookup(w, tables, l.batch, l.bias, l.y, a, b);
      const int64_t from = a * 2 * kLanes, to = std::min(w.out, b * 2 * kLanes);
      for (int64_t r = 0; r < l.batch; ++r)
        k.activate(l.y + r * w.out + from, to - from, l.activation);
    });
  } else {
    const int64_t blocks = ceil_div(out_features, kRowBlock);
    over_tiles(k, l, out_features, Stored{}, blocks, work, [&](const Tile& tile, int64_t block) {
      const int64_t from = block * kRowBlock;
      k.nm_tile(w, tile, from, std::min(out_features, from + kRowBlock));
    });
  }
  return std::move(l.output);
}

}  // namespace sparsewright
