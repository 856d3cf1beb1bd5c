// Products with weights in layout csb.
#include "tiles.h"

namespace sparsewright {

Tensor csb_linear(const Tensor& x, const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                  const Tensor& values, const std::optional<Tensor>& scales,
                  const std::optional<Tensor>& bias, int64_t out_features, int64_t chunk,
                  int64_t block, int64_t activation, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  Linear l = begin(x, bias, out_features, activation);
  const Csb w = csb_of(starts, pairs, columns, values, scales, l.in, out_features, chunk, block);
  if (l.batch == 0 || out_features == 0) return std::move(l.output);
  const Stored stored{w.chunk, kPlaces, kPlaces - 1, -1};
  over_tiles(k, l, out_features, stored, w.blocks, values.size(0) * 2 + out_features,
             [&](const Tile& tile, int64_t b) { k.csb_tile(w, tile, b); });
  return std::move(l.output);
}

}  // namespace sparsewright
