// Chains of products with batches whose activations stay in tiles.
#include <limits>

#include "chain_tiles.h"

namespace sparsewright {
namespace {

constexpr int64_t kFetchCost = 20;  // of a vector that another thread has written; as kLayingCost
// Floats of a tile of x, beyond which the threads of a group lay it together; below each of them
// lays it for itself, which takes less time than to wait for the others and fetch their parts.
constexpr int64_t kOwnFloats = 64 * 1024;

// The weight as a product with activations of `in` columns; whether it can be one.
bool fit(Csb& w, int64_t in) {
  w.in = in;
  return ceil_div(in, w.chunk) == w.chunks;
}

bool fit(Nm& w, int64_t in) {
  w.in = in;
  return ceil_div(in, w.chunk) == w.chunks;
}

bool fit(Csr& w, int64_t in) {
  w.in = in;  // the kernel compares
  return true;
}

bool fit(Sell& w, int64_t in) {
  w.in = in, w.x_step = in + 1;
  return w.wide || in < kNarrow;
}

bool fit(Window& w, int64_t in) { return w.in == in; }

Stored stored_of(const Csb& w) { return {w.chunk, kPlaces, kPlaces - 1, -1}; }
Stored stored_of(const Csr&) { return {}; }
Stored stored_of(const Nm&) { return {}; }
Stored stored_of(const Sell& w) { return {64, 64, -1, w.in}; }
Stored stored_of(const Window& w) { return {64, 64, -1, w.in}; }

// Largest batch for which the op has another kernel, with another order of sums.
int64_t other_batch(const Kernels& k, const Ready& ready) {
  if (std::holds_alternative<Csr>(ready.weight)) return k.csr_dot_batch;
  if (const Nm* w = std::get_if<Nm>(&ready.weight))
    return w->chunk <= kTable ? k.nm_lookup_batch : 0;
  if (std::holds_alternative<Window>(ready.weight)) return k.window_dot_batch;
  return std::holds_alternative<Sell>(ready.weight) ? k.sell_dot_batch : 0;
}

// Parts of a weight that several threads can multiply a tile by.
int64_t items(const Ready& ready) {
  if (const Csb* w = std::get_if<Csb>(&ready.weight)) return w->blocks;
  if (const Slices* w = slices_in(ready.weight)) return w->slices;
  if (const Nm* w = std::get_if<Nm>(&ready.weight)) return w->tiles;
  return ready.out;
}

// Share `member` of `group` of the rows of one tile; false where a column is beyond the tile.
bool multiply_share(const Kernels& k, const Csb& w, const Tile& tile, int64_t member,
                    int64_t group) {
  for (int64_t b = w.blocks * member / group; b < w.blocks * (member + 1) / group; ++b)
    k.csb_tile(w, tile, b);
  return true;
}

bool multiply_share(const Kernels& k, const Nm& w, const Tile& tile, int64_t member,
                    int64_t group) {
  const int64_t a = w.tiles * member / group * kLanes;
  const int64_t b = std::min(w.tiles * (member + 1) / group * kLanes, w.out);
  if (a < b) k.nm_tile(w, tile, a, b);
  return true;
}

bool multiply_share(const Kernels& k, const Csr& w, const Tile& tile, int64_t member,
                    int64_t group) {
  const int64_t a = member == 0 ? 0 : row_at(w, w.nnz * member / group);
  const int64_t b = member + 1 == group ? w.out : row_at(w, w.nnz * (member + 1) / group);
  return a >= b || k.csr_tile(w, tile, a, b);
}

template <class Sliced, class OneTile>
bool multiply_slices(const Sliced& w, const OneTile& one, const Tile& tile, int64_t member,
                     int64_t group) {
  const auto [a, b] = slices_of_part(w, member, group);
  for (int64_t slice = a; slice < b; ++slice) one(w, tile, slice);
  return true;
}

bool multiply_share(const Kernels& k, const Sell& w, const Tile& tile, int64_t member,
                    int64_t group) {
  return multiply_slices(w, k.sell_tile, tile, member, group);
}

bool multiply_share(const Kernels& k, const Window& w, const Tile& tile, int64_t member,
                    int64_t group) {
  return multiply_slices(w, k.window_tile, tile, member, group);
}

// Share `member` of `group` of the zeros that a tile has besides its activations.
void clear_share(const Stored& stored, int64_t in, int64_t width, float* tile, int64_t member,
                 int64_t group) {
  const int64_t pieces = stored.zero < 0 ? 0 : ceil_div(in, stored.piece);
  for (int64_t p = pieces * member / group; p < pieces * (member + 1) / group; ++p)
    std::fill_n(tile + (p * stored.stride + stored.zero) * width, width, 0.0f);
  if (stored.end >= 0 && member == 0) std::fill_n(tile + stored.end * width, width, 0.0f);
}

}  // namespace

// One call: the product's x and y, the first layer as x wants it, how the work is shared out.
struct TileChain::Call {
  const Kernels& k;
  const Linear& l;
  Layer first;
  Shares shares;
  Turned x;
  int64_t room;      // floats of one tile
  int64_t own_room;  // and of one of x that each thread of a group lays for itself, if any does
  std::atomic<bool>& fits;
};

std::optional<TileChain::Layer> TileChain::layer_of(const Stage& stage, int64_t in) {
  Ready ready = stage.ready();
  const bool fits = std::visit([&](auto& w) { return fit(w, in); }, ready.weight);
  if (!fits || in == 0 || ready.out == 0) return std::nullopt;
  const Stored stored = std::visit([](const auto& w) { return stored_of(w); }, ready.weight);
  return Layer{ready, stored, in};
}

TileChain TileChain::of(std::vector<std::shared_ptr<const Stage>> stages, bool at_once) {
  TileChain chain;
  for (size_t i = 0; i < stages.size(); ++i) {
    if (!stages[i] || stages[i]->ready().k != stages[0]->ready().k) return {};
    chain.work_ += stages[i]->ready().work;
    if (i == 0) continue;
    const int64_t in = stages[i - 1]->ready().out;
    stages[i]->check(in);
    const std::optional<Layer> layer = layer_of(*stages[i], in);
    if (!layer) return {};
    chain.layers_.push_back(*layer);
    chain.most_columns_ = std::max(chain.most_columns_, layer->columns());
  }
  chain.stages_ = std::move(stages);
  chain.at_once_ = at_once;
  return chain;
}

bool TileChain::serves(int64_t batch, int64_t in) const {
  if (stages_.empty() || batch == 0) return false;
  for (const auto& stage : stages_)
    if (batch <= other_batch(*stage->ready().k, stage->ready())) return false;
  const std::optional<Layer> first = layer_of(*stages_[0], in);
  if (!first) return false;
  const Kernels& k = *first->ready.k;
  const int64_t widest = std::min(ceil_div(batch, k.width) * k.width, k.tile);
  return 2 * room(*first, widest) <= kScratchFloats && all_current(stages_);
}

// What a thread does for its share of a tile of so many vectors, counted in multiply-adds of a
// vector. Measured on AVX-512 and on one to four threads:
// - a weight costs as much as one vector more than the tile has, for it is loaded and spread; in
//   layouts without chunks a quarter more per vector where the tile has more than kNearFloats;
// - a vector that another thread has written costs kFetchCost, and a wait for the others, as the
//   region itself, kGrain. So a group must save more than that: narrow tiles, of which each thread
//   has its own, read every weight more often, but are written and read by one thread alone.
int64_t TileChain::cost(const Layer& first, int64_t vectors, int64_t group) const {
  int64_t sum = first.in * vectors * kLayingCost;
  for (size_t i = 0; i <= layers_.size(); ++i) {
    const Layer& layer = i == 0 ? first : layers_[i - 1];
    const auto& weight = layer.ready.weight;
    const bool chunks = std::holds_alternative<Csb>(weight) || std::holds_alternative<Nm>(weight);
    const bool far = !chunks && layer.in * vectors * first.ready.k->width > kNearFloats;
    sum += layer.ready.work * (4 * (vectors + 1) + (far ? vectors : 0)) /
           (4 * std::min(group, items(layer.ready)));
    if (i > 0 && group > 1) sum += layer.in * vectors * kFetchCost * (group - 1) / group + kGrain;
  }
  return sum;
}

// Those that take the least time: of tiles as many as threads or more, or fewer and groups.
TileChain::Shares TileChain::shares(const Layer& first, int64_t batch, int64_t threads) const {
  const Kernels& k = *first.ready.k;
  Shares best = {};
  int64_t least = std::numeric_limits<int64_t>::max();
  const int64_t widest = std::min(ceil_div(batch, k.width) * k.width, k.tile);
  for (int64_t rows = widest; rows > 0; rows -= k.width) {
    const int64_t tiles = ceil_div(batch, rows);
    for (const int64_t group : {int64_t{1}, threads / tiles}) {
      if (group < 1 || (group > 1 && !at_once_)) continue;
      // All tiles are as wide, but the last, which only counts where one thread has all of them.
      const int64_t vectors = rows / k.width, parts = tiles * group;
      const int64_t last = threads > 1 ? vectors : ceil_div(batch - (tiles - 1) * rows, k.width);
      const int64_t now = cost(first, vectors, group) * (ceil_div(parts, threads) - 1) +
                          cost(first, last, group) + (std::min(parts, threads) > 1 ? kGrain : 0);
      if (now < least) least = now, best = {rows, tiles, group};
    }
  }
  return best;
}

void TileChain::multiply(const Call& call, size_t i, int64_t tile, int64_t member,
                         const float* from, float* to) const {
  const Layer& layer = i == 0 ? call.first : layers_[i - 1];
  const Ready& ready = layer.ready;
  const int64_t row = tile * call.shares.rows, group = call.shares.groups;
  const int64_t width = call.x.width(call.k, tile, call.l.batch);
  Tile t = tile_of(call.l, ready.out, from, width, row, call.x.rows(tile, call.l.batch));
  t.bias = ready.bias, t.activation = ready.activation;
  if (i < layers_.size()) {
    const Layer& next = layers_[i];
    t.next = to, t.piece = next.stored.piece, t.stride = next.stored.stride;
    t.step = t.count = width;
    clear_share(next.stored, next.in, t.width, to, member, group);
  }
  const bool fits = std::visit(
      [&](const auto& w) { return multiply_share(call.k, w, t, member, group); }, ready.weight);
  if (!fits) call.fits = false;
}

// Share `member` of `of` of a tile's columns of x.
void TileChain::lay(const Call& call, int64_t tile, int64_t member, int64_t of, float* to) {
  const int64_t first = tile * call.shares.rows;
  const int64_t pieces = call.x.pieces(), count = call.x.rows(tile, call.l.batch);
  for (int64_t p = pieces * member / of; p < pieces * (member + 1) / of; ++p)
    call.x.lay_piece(call.k, first, count, to, p);
}

// Tiles [first, end), each from x to y.
void TileChain::alone(const Call& call, int64_t first, int64_t end) const {
  float* const memory = scratch<kShare>(2 * call.room);
  for (int64_t t = first; t < end; ++t) {
    float *from = memory, *to = memory + call.room;
    lay(call, t, 0, 1, from);
    for (size_t i = 0; i <= layers_.size(); ++i, std::swap(from, to))
      multiply(call, i, t, 0, from, to);
  }
}

// Parts [first, end): each is one thread's share of a tile, which a group goes through layer by
// layer, from one half of the tile's memory to the other.
void TileChain::together(const Call& call, int64_t first, int64_t end, float* memory,
                         Barrier& barrier) const {
  const int64_t group = call.shares.groups, parts = call.shares.tiles * group, room = call.room;
  const bool own = call.own_room > 0;
  float* const tiles = memory + parts * call.own_room;
  int64_t done = 0;
  const auto step = [&](const auto& f) {
    for (int64_t part = first; part < end; ++part) {
      const int64_t t = part / group;
      f(t, part % group, memory + part * call.own_room, tiles + 2 * t * room);
    }
  };
  const auto wait = [&] {
    barrier.arrive(first, end, ++done, first / group * group, ceil_div(end, group) * group);
  };
  step([&](int64_t t, int64_t member, float* mine, float* tile) {
    lay(call, t, own ? 0 : member, own ? 1 : group, own ? mine : tile + room);
  });
  if (!own) wait();
  for (size_t i = 0; i <= layers_.size(); ++i) {
    if (i > 0) wait();
    step([&](int64_t t, int64_t member, const float* mine, float* tile) {
      const float* const from = i == 0 && own ? mine : tile + (i + 1) % 2 * room;
      multiply(call, i, t, member, from, tile + i % 2 * room);
    });
  }
}

Tensor TileChain::operator()(const Tensor& x) const {
  const Kernels& k = *stages_[0]->ready().k;
  Linear l = begin(x, std::nullopt, layers_.back().ready.out, 0);
  const Layer first = *layer_of(*stages_[0], l.in);
  const int64_t threads = parts_of(ceil_div(l.batch, k.width) * (work_ + l.in * kLayingCost),
                                   std::min<int64_t>(torch::stable::get_num_threads(), kMostParts));
  const Shares s = shares(first, l.batch, threads);
  std::atomic<bool> fits{true};
  const bool own = s.groups > 1 && l.in * s.rows <= kOwnFloats;
  const Call call = {k,
                     l,
                     first,
                     s,
                     Turned(l, first.stored, s.rows),
                     room(first, s.rows),
                     own ? first.columns() * s.rows : 0,
                     fits};
  if (s.groups == 1) {
    torch::stable::parallel_for(0, s.tiles, ceil_div(s.tiles, threads),
                                [&](int64_t from, int64_t end) { alone(call, from, end); });
  } else {
    const int64_t parts = s.tiles * s.groups;
    float* const memory = scratch(parts * call.own_room + 2 * s.tiles * call.room);
    Barrier barrier(parts);
    torch::stable::parallel_for(0, parts, 1, [&](int64_t from, int64_t end) {
      together(call, from, end, memory, barrier);
    });
  }
  SW_CHECK(fits, "the packed weight has columns beyond the in_features of x, ", l.in,
           ", or rows that do not ascend");
  return std::move(l.output);
}

}  // namespace sparsewright
