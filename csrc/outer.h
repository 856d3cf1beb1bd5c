// What the ops share that compute the gradient of present weights (outer.inl.h): the cells of
// layout csb, and parts of them, are shared out over threads, so that each gradient has one owner
// and the order of its sum depends on no thread.
#pragma once
#include "ops.h"

namespace sparsewright {

// Floats of transposed activations and gradients held at once. More rows of the batch come in
// turns, each of which adds to all gradients.
inline constexpr int64_t kOuterFloats = 2 * 1024 * 1024;
// Parts that a thread gets of what is shared out by weights: they differ in cost.
inline constexpr int64_t kPartsOfThread = 4;

inline int64_t threads() { return std::max<int64_t>(torch::stable::get_num_threads(), 1); }

// Gradients wait in the order of csb's places and are then put where the topology has them: those
// of a row and chunk begin at cuts[row * chunks + chunk].
struct Gradients {
  const int32_t* cuts;
  float* out;
  bool add;  // to what earlier turns have put there
  void put(const Csb& w, int64_t block, int64_t chunk, uint32_t local, const float* sums) const {
    const int64_t row = block * w.block + local;
    if (local >= w.block || row >= w.out) return;
    const int32_t* cut = cuts + row * w.chunks + chunk;
    float* to = out + cut[0];
    const int64_t count = cut[1] - cut[0];
    if (add)
      for (int64_t i = 0; i < count; ++i) to[i] += sums[2 * i];
    else
      for (int64_t i = 0; i < count; ++i) to[i] = sums[2 * i];
  }
};

// One turn: tiles of x, those of dy, and how many vectors they are wide in all.
// tile(t): {x, dy, width} of tile t. rows: for every block as kernels.csb_outer takes it; or null.
template <class TileOf>
void outer_turn(const Kernels& k, const Csb& w, int64_t tiles, int64_t vectors,
                const Gradients& gradients, const int64_t* rows, const TileOf& tile) {
  const int64_t cells = w.blocks * w.chunks;
  if (cells == 0) return;
  const int64_t parts = ceil_div(threads() * kPartsOfThread, cells);
  const int64_t steps = w.starts[2 * cells + 1];
  const int64_t per_item = std::max<int64_t>(2 * steps * vectors / (cells * parts), 1);
  const auto some = [&](int64_t from, int64_t end) {
    for (int64_t i = from; i < end; ++i) {
      const int64_t part = i % parts, chunk = i / parts / w.blocks, block = i / parts % w.blocks;
      const int32_t* start = w.starts + 2 * (block * w.chunks + chunk);
      const int64_t pairs = start[2] - start[0];
      const int64_t first = start[0] + pairs * part / parts;
      const int64_t last = start[0] + pairs * (part + 1) / parts;
      const auto steps_of = [&](int64_t p) { return static_cast<uint32_t>(w.pairs[p]) >> 16; };
      int64_t step = start[1], room = 8;
      for (int64_t p = start[0]; p < first; ++p) step += steps_of(p);
      for (int64_t p = first; p < last; ++p) room += 2 * steps_of(p);
      float* sums = scratch<kShare>(room);
      std::fill_n(sums, room, 0.0f);
      for (int64_t t = 0; t < tiles; ++t) {
        const auto [x, dy, width] = tile(t);
        k.csb_outer(w, x + chunk * kPlaces * width, dy + block * w.block * width, width,
                    rows ? rows + block * (w.block + 1) : nullptr, first, last, step, sums);
      }
      for (int64_t p = first; p < last; ++p) {
        const uint32_t pair = static_cast<uint32_t>(w.pairs[p]);
        gradients.put(w, block, chunk, pair & 255, sums);
        gradients.put(w, block, chunk, pair >> 8 & 255, sums + 1);
        sums += 2 * (pair >> 16);
      }
    }
  };
  torch::stable::parallel_for(0, cells * parts, ceil_div(kGrain, per_item), some);
}

inline const int32_t* cuts_of(const Tensor& cuts, const Csb& w) {
  check_tensor(cuts, "cuts", ScalarType::Int, "int32");
  SW_CHECK(cuts.dim() == 1 && cuts.size(0) == w.out * w.chunks + 1, "cuts must have shape (",
           w.out * w.chunks + 1, ",); got ", cuts.numel(), " entries");
  return static_cast<const int32_t*>(cuts.const_data_ptr());
}

}  // namespace sparsewright
