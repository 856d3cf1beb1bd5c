// Activations transposed tile by tile, so that a vector holds a column's numbers of several rows of
// the batch, and products over these tiles on several threads.
#pragma once
#include "ops.h"

namespace sparsewright {

// Columns of room beyond the last one of a tile: a one-byte place of layout nm that nobody
// validated (x narrower than the weight, inside its last chunk) still reads memory of ours.
inline constexpr int64_t kBeyond = 256;

// Floats of a tile beyond which its vectors come from farther away than a near cache.
inline constexpr int64_t kNearFloats = 128 * 1024;

// How the columns of the activations lie in a tile: `piece` after `piece`, each `stride` columns
// after the one before. Zeros lie at column `zero` of every piece, where it has one, and at `end`.
struct Stored {
  int64_t piece = 64, stride = 64;
  int64_t zero = -1, end = -1;
  int64_t rows = 0;  // most rows of the batch in a tile; 0: kernels.tile
};

// Rows of activations (batch, in), transposed tile by tile into memory of the op's.
struct Turned {
  const float* x;
  int64_t in;
  Stored stored;
  int64_t most;       // rows of the batch in a tile
  int64_t zeros = 0;  // columns beyond `in`, up to this number, are zeros (of pieces that adjoin)
  float* to = nullptr;
  int64_t x_step = 0;  // of x transposed already: floats from a column to the next; else 0

  Turned(const float* from, int64_t width, const Stored& how, int64_t rows, int64_t zeros_to = 0)
      : x(from), in(width), stored(how), most(rows), zeros(zeros_to) {}
  Turned(const Linear& l, const Stored& how, int64_t rows) : Turned(l.x, l.in, how, rows) {
    if (l.transposed) x_step = l.batch;
  }
  const float* row(int64_t r) const { return x + r * (x_step ? 1 : in); }
  int64_t pieces() const { return ceil_div(in, stored.piece); }
  int64_t columns() const { return std::max(pieces() * stored.stride + 1, zeros); }
  float* tile(int64_t t) const { return to + t * most * columns(); }
  int64_t rows(int64_t t, int64_t batch) const { return std::min(most, batch - t * most); }
  int64_t width(const Kernels& k, int64_t t, int64_t batch) const {
    return ceil_div(rows(t, batch), k.width) * k.width;
  }
  // Rows [first, first + batch).
  void lay(const Kernels& k, int64_t first, int64_t batch) const {
    const int64_t of_tile = pieces();
    const auto some = [&](int64_t from, int64_t end) {
      for (int64_t i = from; i < end; ++i) {
        const int64_t t = i / of_tile, row = t * most;
        lay_piece(k, first + row, rows(t, batch), tile(t), i % of_tile);
      }
    };
    torch::stable::parallel_for(0, ceil_div(batch, most) * of_tile,
                                ceil_div(kGrain, stored.piece * kLayingCost), some);
  }
  // One piece of a tile of `count` rows from `first` on.
  void lay_piece(const Kernels& k, int64_t first, int64_t count, float* tile, int64_t piece) const {
    const int64_t column = piece * stored.piece, wide = ceil_div(count, k.width) * k.width;
    float* out = tile + piece * stored.stride * wide;
    const auto lay = x_step ? k.copy_in : k.transpose_in;
    lay(row(first), x_step ? x_step : in, count, out - column * wide, wide, column,
        std::min(in, column + stored.piece));
    if (stored.zero >= 0) std::fill_n(out + stored.zero * wide, wide, 0.0f);
    if (piece + 1 < pieces()) return;
    if (stored.end >= 0) std::fill_n(tile + stored.end * wide, wide, 0.0f);
    if (zeros > in) std::fill_n(tile + in * wide, (zeros - in) * wide, 0.0f);
  }
};

// Rows [first, first + count) of the batch: activations that lie at x, sums to where they belong.
inline Tile tile_of(const Linear& l, int64_t out, const float* x, int64_t width, int64_t first,
                    int64_t count) {
  Tile tile = {x, width, count, l.y + first * out, l.bias, l.activation};
  if (l.transposed) {
    tile.next = l.y + first, tile.piece = tile.stride = out;
    tile.step = l.batch, tile.count = count;
  }
  return tile;
}

// Tiles that each thread lays and uses itself: no activations go from one thread's cache to
// another's, no thread waits for the others before it multiplies, and what was laid is used at
// once.
struct OwnTiles {
  int64_t rows, tiles;  // of the batch in a tile, and how many tiles there are
  int64_t groups;       // parts of the weight: each multiplies a tile that it has laid for itself
  int64_t parts() const { return tiles * groups; }

  OwnTiles(const Kernels& k, int64_t batch, int64_t widest, int64_t items, int64_t threads) {
    const int64_t rounds = ceil_div(batch, threads * widest);
    rows = ceil_div(ceil_div(batch, threads * rounds), k.width) * k.width;
    tiles = ceil_div(batch, rows);
    groups = std::clamp<int64_t>(threads / tiles, 1, std::max<int64_t>(items, 1));
  }

  // Whether they beat tiles that all threads lay and use together. Narrower ones read the weight
  // more often for as many sums, which must cost less than to fetch the others' activations.
  bool pay(const Kernels& k, int64_t batch, int64_t widest, int64_t in, int64_t work,
           int64_t threads) const {
    if (4 * parts() < 3 * threads * ceil_div(parts(), threads)) return false;  // threads left idle
    if (rows >= std::min(widest, ceil_div(batch, k.width) * k.width)) return true;
    constexpr int64_t kWeightsPerColumn = 40;  // for each other thread and vector of a tile
    return work <= kWeightsPerColumn * (threads - 1) * (rows / k.width) * in;
  }
};

template <class Body>
void over_own_tiles(const Kernels& k, const Linear& l, int64_t out, const Stored& stored,
                    int64_t items, const OwnTiles& own, const Body& body) {
  const Turned x(l, stored, own.rows);
  const auto some = [&](int64_t from, int64_t to) {
    float* const memory = scratch<kShare>(own.rows * x.columns() + kBeyond * own.rows);
    int64_t laid = -1;
    for (int64_t i = from; i < to; ++i) {
      const int64_t t = i / own.groups, group = i % own.groups;
      const int64_t first = t * own.rows, count = x.rows(t, l.batch);
      for (int64_t piece = 0; t != laid && piece < x.pieces(); ++piece)
        x.lay_piece(k, first, count, memory, piece);
      laid = t;
      const Tile tile = tile_of(l, out, memory, x.width(k, t, l.batch), first, count);
      const int64_t end = items * (group + 1) / own.groups;
      for (int64_t item = items * group / own.groups; item < end; ++item) body(tile, item);
    }
  };
  torch::stable::parallel_for(0, own.parts(), 1, some);
}

// body(tile, item) for every tile of the batch and item of the weight; work counts multiply-adds
// of one row of the batch.
template <class Body>
void over_tiles(const Kernels& k, const Linear& l, int64_t out, const Stored& stored, int64_t items,
                int64_t work, const Body& body) {
  const int64_t widest = stored.rows ? stored.rows : k.tile;
  const int64_t vectors = ceil_div(l.batch, k.width);
  const int64_t threads =
      parts_of(vectors * (work + l.in * kLayingCost), torch::stable::get_num_threads());
  const OwnTiles own(k, l.batch, widest, items, threads);
  if (own.pay(k, l.batch, widest, l.in, work, threads))
    return over_own_tiles(k, l, out, stored, items, own, body);
  Turned x(l, stored, widest);
  const int64_t turn = std::max<int64_t>(kScratchFloats / x.columns() / x.most, 1) * x.most;
  const int64_t padded = ceil_div(std::min(turn, l.batch), k.width) * k.width;
  x.to = scratch(padded * x.columns() + kBeyond * x.most);
  for (int64_t first = 0; first < l.batch; first += turn) {
    const int64_t batch = std::min(turn, l.batch - first), tiles = ceil_div(batch, x.most);
    x.lay(k, first, batch);
    const int64_t per_item = std::max<int64_t>(work * ceil_div(batch, k.width) / tiles / items, 1);
    const auto multiply = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t t = i / items;
        const Tile tile =
            tile_of(l, out, x.tile(t), x.width(k, t, batch), first + t * x.most, x.rows(t, batch));
        body(tile, i % items);
      }
    };
    torch::stable::parallel_for(0, tiles * items, ceil_div(kGrain, per_item), multiply);
  }
}

}  // namespace sparsewright
