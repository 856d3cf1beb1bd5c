// Products with batches one after the other, whose activations stay transposed from the first to
// the last: each product's sums become columns of the tile that the next one reads. One parallel
// region for all of them.
#pragma once
#include "barrier.h"
#include "chain.h"
#include "tiles.h"

namespace sparsewright {

class TileChain {
 public:
  TileChain() = default;
  // Of no layer where some stage cannot take part. at_once: whether all parts of a region run at
  // once, so that they may wait for each other.
  static TileChain of(std::vector<std::shared_ptr<const Stage>> stages, bool at_once);

  bool serves(int64_t batch, int64_t in) const;
  Tensor operator()(const Tensor& x) const;

 private:
  struct Layer {
    Ready ready;
    Stored stored;  // how its activations lie in a tile
    int64_t in;
    int64_t columns() const { return Turned(nullptr, in, stored, 1).columns() + kBeyond; }
  };
  // How the work is shared out: tiles of so many rows of the batch, each multiplied by a group of
  // so many threads.
  struct Shares {
    int64_t rows, tiles, groups;
  };
  struct Call;

  static std::optional<Layer> layer_of(const Stage& stage, int64_t in);
  // Floats that a tile takes, whichever layer's.
  int64_t room(const Layer& first, int64_t rows) const {
    return std::max(most_columns_, first.columns()) * rows;
  }
  Shares shares(const Layer& first, int64_t batch, int64_t threads) const;
  int64_t cost(const Layer& first, int64_t vectors, int64_t group) const;

  static void lay(const Call& call, int64_t tile, int64_t member, int64_t of, float* to);
  // Of layer `i` and one tile, the share of one of a group.
  void multiply(const Call& call, size_t i, int64_t tile, int64_t member, const float* from,
                float* to) const;
  void alone(const Call& call, int64_t first, int64_t end) const;
  void together(const Call& call, int64_t first, int64_t end, float* memory,
                Barrier& barrier) const;

  std::vector<std::shared_ptr<const Stage>> stages_;
  std::vector<Layer> layers_;  // but the first, whose columns are those of x
  bool at_once_ = false;
  int64_t most_columns_ = 0, work_ = 0;
};

}  // namespace sparsewright
