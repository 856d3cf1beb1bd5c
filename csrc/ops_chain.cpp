// The call that goes through a chain of products: a single row in one region, a batch in tiles,
// else one after the other.
#include <algorithm>
#include <numeric>

#include "barrier.h"
#include "chain.h"
#include "chain_tiles.h"
#include "code_linear.h"

namespace sparsewright {
namespace {

constexpr int64_t kMostColumns = 65536;  // of one row that is copied for a chain

// Whether the sums of a stage stay in the order of the lanes, so that no thread writes into lines
// of another's: the next one's columns are renamed for it, if they can be.
bool stays_in_lanes(const Ready& ready, const Stage* next) {
  return slices_in(ready.weight) && next && !next->takes_order();
}

int64_t room_in_lanes(const Ready& ready) { return ceil_div(ready.out, kLanes) * kLanes; }

// Sums of one row of activations, of one of `parts` parts of the slices, by the kernel `dot`.
template <class Sliced, class Dot>
void run_slices(const Ready& ready, Sliced w, const Dot& dot, const float* x, float* y,
                int64_t part, int64_t parts) {
  const auto [a, b] = slices_of_part(w, part, parts);
  if (a >= b) return;
  // In the order of the lanes, so that they can be activated by vectors.
  const bool stay = std::exchange(w.in_lanes, true);
  float* const lanes = stay ? y : scratch<kSums>(b * kLanes);
  dot(w, x, 1, ready.bias, lanes, a, b);
  ready.k->activate(lanes + a * kLanes, (b - a) * kLanes, ready.activation);
  if (stay) return;
  for (int64_t i = a * kLanes; i < b * kLanes; ++i)
    if (w.order[i] >= 0) y[w.order[i]] = lanes[i];
}

int64_t lines(int64_t floats) { return ceil_div(floats, kLine) * kLine; }

class Chain {
 public:
  // stages: none where one region cannot serve a row.
  Chain(std::vector<Bound> calls, std::vector<std::shared_ptr<const Stage>> stages,
        TileChain tiles = {}, CodeChain codes = {})
      : calls_(std::move(calls)),
        stages_(std::move(stages)),
        tiles_(std::move(tiles)),
        codes_(std::move(codes)) {
    for (size_t i = 0; i < stages_.size(); ++i) {
      Ready ready = stages_[i]->ready();
      const Stage* const next = i + 1 < stages_.size() ? stages_[i + 1].get() : nullptr;
      if (Slices* w = slices_in(ready.weight)) w->in_lanes = stays_in_lanes(ready, next);
      work_ = std::max(work_, ready.work_of_row());
      if (next) floats_ += lines(ready.room() + 1);
      ready_.push_back(std::move(ready));
    }
  }

  Tensor operator()(const Tensor& x, const std::optional<Tensor>& residual) const {
    SW_CHECK(!residual, "a product with a matrix takes no residual");
    if (x.is_cpu() && x.scalar_type() == ScalarType::Float && x.sizes().size() > 0) {
      const auto [batch, in] = extent_of(x);
      if (batch == 1 && serves_row(in)) return one_row(x);
      if (tiles_.serves(batch, in)) return tiles_(x);
      if (codes_.serves(batch, in)) return codes_(x);
    }
    Tensor y = x;
    for (size_t i = 0; i + 1 < calls_.size(); ++i) {
      const GivenOutput::NotYet own;
      y = calls_[i](y, std::nullopt);
    }
    return calls_.back()(y, std::nullopt);
  }

 private:
  // Whether one region serves a row of so many columns, and nothing is wrong with the weights that
  // an op would not accept.
  bool serves_row(int64_t in) const {
    if (stages_.empty() || in >= kMostColumns) return false;
    const Window* w = std::get_if<Window>(&ready_.front().weight);
    return (!w || w->in == in) && all_current(stages_);
  }

  Tensor one_row(const Tensor& x) const {
    const Linear l = begin(x, std::nullopt, ready_.back().out, 0);
    Ready first = ready_.front();
    if (Csr* w = std::get_if<Csr>(&first.weight)) w->in = l.in;
    // The sums of every stage but the last, each followed by the zero that padding reads.
    const size_t count = ready_.size();
    float* const memory = scratch(floats_);
    float* end = memory;
    for (size_t i = 0; i + 1 < count; ++i) {
      end[ready_[i].room()] = 0.0f;
      end += lines(ready_[i].room() + 1);
    }
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t parts = parts_of(work_, std::min(threads, kMostParts));
    std::atomic<bool> fits{true};
    const auto some = [&](int64_t from, int64_t to, Barrier* barrier) {
      const float* in = std::holds_alternative<Sell>(first.weight) ? with_zero(l.x, 1, l.in) : l.x;
      float* out = memory;
      for (size_t i = 0; i < count; ++i) {
        const Ready& stage = i == 0 ? first : ready_[i];
        const int64_t of_stage = parts_of(stage.work_of_row(), parts);
        if (i > 0 && barrier && from < of_stage)  // the lines that other threads wrote, all at once
          for (int64_t c = 0; c < ready_[i - 1].room(); c += kLine) __builtin_prefetch(in + c);
        for (int64_t part = from; part < std::min(to, of_stage); ++part)
          stage.run(in, i + 1 == count ? l.y : out, part, of_stage, fits);
        if (i + 1 == count) return;
        if (barrier) barrier->arrive(from, to, static_cast<int64_t>(i) + 1);
        in = out;
        out += lines(stage.room() + 1);
      }
    };
    if (parts == 1) {
      some(0, 1, nullptr);
    } else {
      Barrier barrier(parts);
      torch::stable::parallel_for(0, parts, 1,
                                  [&](int64_t from, int64_t to) { some(from, to, &barrier); });
    }
    SW_CHECK(fits, "the packed weight has columns beyond the in_features of x, ", l.in,
             ", or rows that do not ascend");
    return std::move(l.output);
  }

  std::vector<Bound> calls_;
  std::vector<std::shared_ptr<const Stage>> stages_;
  TileChain tiles_;
  CodeChain codes_;
  std::vector<Ready> ready_;
  int64_t work_ = 0, floats_ = 0;
};

}  // namespace

int64_t Ready::room() const {
  const Slices* w = slices_in(weight);
  return w && w->in_lanes ? room_in_lanes(*this) : out;
}

void Ready::run(const float* x, float* y, int64_t part, int64_t parts,
                std::atomic<bool>& fits) const {
  if (const Csr* w = std::get_if<Csr>(&weight)) {
    const int64_t a = part == 0 ? 0 : row_at(*w, w->nnz * part / parts);
    const int64_t b = part + 1 == parts ? w->out : row_at(*w, w->nnz * (part + 1) / parts);
    if (a < b && !k->csr_dot(*w, x, 1, bias, y, a, b)) fits = false;
    k->activate(y + a, b - a, activation);
    return;
  }
  if (const Sell* w = std::get_if<Sell>(&weight))
    run_slices(*this, *w, k->sell_dot, x, y, part, parts);
  if (const Window* w = std::get_if<Window>(&weight))
    run_slices(*this, *w, k->window_dot, x, y, part, parts);
}

Product product_of(Bound call, std::shared_ptr<const Stage> stage) {
  if (!stage->takes_a_row()) return {std::move(call), std::move(stage)};
  return {Chain({std::move(call)}, {stage}), stage};
}

namespace {

// The stage that takes its activations as the one before it leaves its sums; null if it cannot.
std::shared_ptr<const Stage> after(const Stage& before, const Stage& stage) {
  const Ready& ready = before.ready();
  if (stays_in_lanes(ready, &stage)) return stage.moved(before.places(), room_in_lanes(ready));
  std::vector<int64_t> own(static_cast<size_t>(ready.out));
  std::iota(own.begin(), own.end(), 0);
  return stage.moved(own, ready.out);
}

using Products = std::vector<std::shared_ptr<const Product>>;

// Runs of products whose weights are code, and of others: each run is a chain of its own.
Product chain_of_runs(const Products& products, bool one_region) {
  std::vector<Bound> calls;
  for (size_t first = 0, end = 0; first < products.size(); first = end) {
    const bool code = products[first]->code != nullptr;
    while (end < products.size() && (products[end]->code != nullptr) == code) ++end;
    const Products run(products.begin() + static_cast<int64_t>(first),
                       products.begin() + static_cast<int64_t>(end));
    calls.push_back(run.size() > 1 ? chain_of(run, one_region).call : run[0]->call);
  }
  return {Chain(std::move(calls), {}), nullptr};
}

}  // namespace

Product chain_of(const std::vector<std::shared_ptr<const Product>>& products, bool one_region) {
  const auto is_code = [](const auto& product) { return product->code != nullptr; };
  const auto codes_in = std::count_if(products.begin(), products.end(), is_code);
  if (codes_in > 0 && codes_in < static_cast<int64_t>(products.size()))
    return chain_of_runs(products, one_region);
  std::vector<Bound> calls;
  std::vector<std::shared_ptr<const Stage>> stages, moved;
  std::vector<std::shared_ptr<const CodeLinear>> codes;
  bool rows = one_region;
  for (const auto& product : products) {
    calls.emplace_back(product->call);
    std::shared_ptr<const Stage> stage = product->stage;
    rows = rows && stage && stage->takes_a_row();
    if (rows && !moved.empty()) stage = after(*moved.back(), *stage);
    rows = rows && stage;
    moved.push_back(std::move(stage));
    stages.push_back(product->stage);
    codes.push_back(product->code);
  }
  if (!rows) moved.clear();
  return {Chain(std::move(calls), std::move(moved), TileChain::of(std::move(stages), one_region),
                CodeChain(std::move(codes))),
          nullptr};
}

}  // namespace sparsewright
