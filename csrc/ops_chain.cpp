// Stages of layouts sell and csr, and the call that goes through a chain of them.
#include <numeric>
#include <thread>

#include "chain.h"

namespace sparsewright {
namespace {

// Weights beyond which a stage is not moved: it takes so long that one region saves nothing.
constexpr int64_t kMostMoved = 512 * 1024;
constexpr int64_t kLine = 16;            // floats of a line of memory
constexpr int64_t kMostColumns = 65536;  // of one row that is copied for a chain
constexpr int64_t kMostParts = 64;
constexpr int kSpins = 4 * 1024;  // looks at the barrier before the thread lets others run

void relax() {
#ifdef SPARSEWRIGHT_X86
  __builtin_ia32_pause();
#endif
}

// Where the parts of one stage wait for each other. All of them run at once, or some one after
// the other on the same thread. Each has a line of memory of its own to say how far it is: one
// that all write to goes from cache to cache as often as there are parts.
class Barrier {
 public:
  explicit Barrier(int64_t parts) : parts_(parts) {
    for (int64_t i = 0; i < parts; ++i) lines_[i].done.store(0, std::memory_order_relaxed);
  }
  // Parts [from, to) have done `stages`.
  void arrive(int64_t from, int64_t to, int64_t stages) {
    for (int64_t i = from; i < to; ++i) lines_[i].done.store(stages, std::memory_order_release);
    for (int64_t i = 0; i < parts_; ++i) {
      for (int spins = 0; lines_[i].done.load(std::memory_order_acquire) < stages; ++spins) {
        if (spins < kSpins)
          relax();
        else
          std::this_thread::yield();
      }
    }
  }

 private:
  struct alignas(4 * kLine) Line {
    std::atomic<int64_t> done;
  };
  Line lines_[kMostParts];
  const int64_t parts_;
};

// Columns of a weight, renamed: column c becomes at(c). Null where the type cannot name `end`.
class Columns {
 public:
  template <class At>
  static std::shared_ptr<const Columns> renamed(const Tensor& columns, int64_t end, const At& at) {
    if (columns.numel() > kMostMoved) return nullptr;
    auto made = std::make_shared<Columns>();
    if (columns.scalar_type() == ScalarType::Int) {
      made->fill<int32_t>(columns, at);
    } else {
      if (end >= 65536) return nullptr;
      made->fill<uint16_t>(columns, at);
    }
    return made;
  }
  const void* data() const { return data_.data(); }

 private:
  template <class Index, class At>
  void fill(const Tensor& columns, const At& at) {
    const Index* from = static_cast<const Index*>(columns.const_data_ptr());
    const int64_t count = columns.numel();
    data_.resize(count * sizeof(Index) + 64);  // kernels load whole vectors
    Index* to = reinterpret_cast<Index*>(data_.data());
    for (int64_t i = 0; i < count; ++i)
      to[i] = static_cast<Index>(at(static_cast<int64_t>(from[i])));
  }
  std::vector<char> data_;
};

class SellStage final : public Stage {
 public:
  SellStage(const Tensor& starts, const Tensor& order, const Tensor& columns, const Tensor& values,
            const std::optional<Tensor>& scales, const std::optional<Tensor>& bias, int64_t out,
            int64_t activation, int64_t isa)
      : columns_(columns) {
    for (const Tensor* t : {&starts, &order, &columns, &values}) hold(*t);
    if (scales) hold(*scales);
    if (bias) hold(*bias);
    const Sell w = sell_of(starts, order, columns, values, scales, 0, out);
    ready_ = {&kernels_for(isa),         w,   bias_of(bias, out),
              activation_of(activation), out, (w.starts[w.slices] + w.slices) * kLanes};
  }

  std::vector<int64_t> places() const override {
    const Sell& w = std::get<Sell>(ready_.weight);
    std::vector<int64_t> at(static_cast<size_t>(w.out), -1);
    for (int64_t i = 0; i < w.slices * kLanes; ++i) {
      SW_CHECK(w.order[i] < w.out, "order names row ", w.order[i], " of ", w.out);
      if (w.order[i] >= 0) at[static_cast<size_t>(w.order[i])] = i;
    }
    for (const int64_t place : at) SW_CHECK(place >= 0, "order must name every row once");
    return at;
  }

  std::shared_ptr<const Stage> moved(const std::vector<int64_t>& at, int64_t end) const override {
    const auto width = static_cast<int64_t>(at.size());
    const auto stage = std::make_shared<SellStage>(*this);
    stage->own_ = Columns::renamed(columns_, end, [&](int64_t c) {
      SW_CHECK(0 <= c && c <= width, "the packed weight has column ", c, ", beyond the ", width,
               " outputs of the product before it");
      return c == width ? end : at[static_cast<size_t>(c)];
    });
    if (!stage->own_) return nullptr;
    std::get<Sell>(stage->ready_.weight).columns = stage->own_->data();
    return stage;
  }

 private:
  Tensor columns_;
  std::shared_ptr<const Columns> own_;  // in their place
};

class CsrStage final : public Stage {
 public:
  CsrStage(const Tensor& rows, const Tensor& columns, const Tensor& values,
           const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
           int64_t activation, int64_t isa)
      : columns_(columns) {
    for (const Tensor* t : {&rows, &columns, &values}) hold(*t);
    if (scales) hold(*scales);
    if (bias) hold(*bias);
    const Csr w = csr_of(rows, columns, values, scales, 0);
    ready_ = {&kernels_for(isa),         w,     bias_of(bias, w.out),
              activation_of(activation), w.out, w.nnz + w.out};
  }

  std::vector<int64_t> places() const override {
    std::vector<int64_t> at(static_cast<size_t>(ready_.out));
    std::iota(at.begin(), at.end(), 0);
    return at;
  }

  std::shared_ptr<const Stage> moved(const std::vector<int64_t>& at, int64_t end) const override {
    const auto width = static_cast<int64_t>(at.size());
    const auto stage = std::make_shared<CsrStage>(*this);
    stage->own_ = Columns::renamed(columns_, end, [&](int64_t c) {
      SW_CHECK(0 <= c && c < width, "the packed weight has column ", c, ", beyond the ", width,
               " outputs of the product before it");
      return at[static_cast<size_t>(c)];
    });
    if (!stage->own_) return nullptr;
    Csr& w = std::get<Csr>(stage->ready_.weight);
    w.columns = stage->own_->data();
    w.in = end;
    return stage;
  }

 private:
  Tensor columns_;
  std::shared_ptr<const Columns> own_;
};

int64_t room_in_lanes(const Ready& ready) {
  const Sell* w = std::get_if<Sell>(&ready.weight);
  return w ? w->slices * kLanes : ready.out;
}

int64_t lines(int64_t floats) { return ceil_div(floats, kLine) * kLine; }

class Chain {
 public:
  // stages: none where one region cannot serve.
  Chain(std::vector<Bound> calls, std::vector<std::shared_ptr<const Stage>> stages)
      : calls_(std::move(calls)), stages_(std::move(stages)) {
    for (const auto& stage : stages_) {
      ready_.push_back(stage->ready());
      Sell* w = std::get_if<Sell>(&ready_.back().weight);
      if (w) w->in_lanes = stage != stages_.back();
      work_ = std::max(work_, ready_.back().work);
      if (stage != stages_.back()) floats_ += lines(ready_.back().room() + 1);
    }
  }

  Tensor operator()(const Tensor& x, const std::optional<Tensor>& residual) const {
    SW_CHECK(!residual, "a product with a matrix takes no residual");
    if (serves(x)) return one_row(x);
    Tensor y = calls_[0](x, std::nullopt);
    for (size_t i = 1; i < calls_.size(); ++i) y = calls_[i](y, std::nullopt);
    return y;
  }

 private:
  // Whether x is one row, and nothing wrong with it or the weights that an op would not accept.
  bool serves(const Tensor& x) const {
    if (stages_.empty() || !x.is_cpu() || x.scalar_type() != ScalarType::Float) return false;
    const auto sizes = x.sizes();
    if (sizes.size() == 0) return false;
    const int64_t in = sizes[sizes.size() - 1];
    if (in == 0 || in >= kMostColumns || x.numel() != in) return false;
    return std::all_of(stages_.begin(), stages_.end(),
                       [](const auto& s) { return s->is_current(); });
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
        const int64_t of_stage = parts_of(stage.work, parts);
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
    const Ready& last = ready_.back();
    if (std::holds_alternative<Sell>(last.weight)) last.k->activate(l.y, last.out, last.activation);
    return std::move(l.output);
  }

  std::vector<Bound> calls_;
  std::vector<std::shared_ptr<const Stage>> stages_;
  std::vector<Ready> ready_;
  int64_t work_ = 0, floats_ = 0;
};

}  // namespace

int64_t Ready::room() const {
  const Sell* w = std::get_if<Sell>(&weight);
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
  const Sell& w = std::get<Sell>(weight);
  const int64_t steps = w.starts[w.slices];
  const int64_t a = part == 0 ? 0 : slice_at(w, steps * part / parts);
  const int64_t b = part + 1 == parts ? w.slices : slice_at(w, steps * (part + 1) / parts);
  if (a < b) k->sell_dot(w, x, 1, bias, y, a, b);
  if (w.in_lanes) k->activate(y + a * kLanes, (b - a) * kLanes, activation);
}

bool Stage::is_current() const {
  return std::all_of(held_.begin(), held_.end(),
                     [](const auto& held) { return held.first.const_data_ptr() == held.second; });
}

std::shared_ptr<const Stage> sell_stage(const Tensor& starts, const Tensor& order,
                                        const Tensor& columns, const Tensor& values,
                                        const std::optional<Tensor>& scales,
                                        const std::optional<Tensor>& bias, int64_t out_features,
                                        int64_t activation, int64_t isa) {
  return std::make_shared<SellStage>(starts, order, columns, values, scales, bias, out_features,
                                     activation, isa);
}

std::shared_ptr<const Stage> csr_stage(const Tensor& rows, const Tensor& columns,
                                       const Tensor& values, const std::optional<Tensor>& scales,
                                       const std::optional<Tensor>& bias, int64_t activation,
                                       int64_t isa) {
  return std::make_shared<CsrStage>(rows, columns, values, scales, bias, activation, isa);
}

Product product_of(Bound call, std::shared_ptr<const Stage> stage) {
  return {Chain({std::move(call)}, {stage}), stage};
}

Product chain_of(const std::vector<std::shared_ptr<const Product>>& products, bool one_region) {
  std::vector<Bound> calls;
  std::vector<std::shared_ptr<const Stage>> stages;
  for (const auto& product : products) {
    calls.emplace_back(product->call);
    std::shared_ptr<const Stage> stage = product->stage;
    if (one_region && stage && !stages.empty())
      stage = stage->moved(stages.back()->places(), room_in_lanes(stages.back()->ready()));
    one_region = one_region && stage != nullptr;
    stages.push_back(std::move(stage));
  }
  if (!one_region) stages.clear();
  return {Chain(std::move(calls), std::move(stages)), nullptr};
}

}  // namespace sparsewright
