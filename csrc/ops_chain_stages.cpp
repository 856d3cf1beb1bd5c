// Products as stages of a chain: their weights checked once, their tensors held.
#include <numeric>

#include "chain.h"
#include "places.h"

namespace sparsewright {
namespace {

// Weights beyond which a stage is not moved: it takes so long that one region saves nothing.
constexpr int64_t kMostMoved = 512 * 1024;

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
      if (end >= kNarrow) return nullptr;
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

// Every column of a weight must be one of `end`: `width` of activations, and what follows them.
void check_columns(const Tensor& columns, int64_t end, int64_t width) {
  by_index(columns, [&](const auto* at) {
    for (int64_t i = 0; i < columns.numel(); ++i)
      SW_CHECK(0 <= int64_t{at[i]} && at[i] < end, "the packed weight has column ", at[i],
               ", beyond the ", width, " outputs of the product before it");
  });
}

// Where the sum of each row of slices lies in the order of the lanes.
std::vector<int64_t> places_of(const Slices& w) {
  std::vector<int64_t> at(static_cast<size_t>(w.out), -1);
  for (int64_t i = 0; i < w.slices * kLanes; ++i) {
    SW_CHECK(w.order[i] < w.out, "order names row ", w.order[i], " of ", w.out);
    if (w.order[i] >= 0) at[static_cast<size_t>(w.order[i])] = i;
  }
  for (const int64_t place : at) SW_CHECK(place >= 0, "order must name every row once");
  return at;
}

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

  void check(int64_t width) const override { check_columns(columns_, width + 1, width); }

  std::vector<int64_t> places() const override { return places_of(std::get<Sell>(ready_.weight)); }

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

// It takes its activations in their own order: their windows are laid for it.
class WindowStage final : public Stage {
 public:
  WindowStage(const Tensor& starts, const Tensor& order, const Tensor& columns,
              const Tensor& places, const Tensor& firsts, const Tensor& values,
              const std::optional<Tensor>& scales, const std::optional<Tensor>& bias, int64_t in,
              int64_t out, int64_t activation, int64_t isa)
      : columns_(columns) {
    for (const Tensor* t : {&starts, &order, &columns, &places, &firsts, &values}) hold(*t);
    if (scales) hold(*scales);
    if (bias) hold(*bias);
    const Window w = window_of(starts, order, columns, places, firsts, values, scales, in, out);
    ready_ = {&kernels_for(isa),         w,   bias_of(bias, out),
              activation_of(activation), out, (w.starts[w.slices] + w.slices) * kLanes};
  }

  // Of a shorter row the op makes a copy that holds a whole window.
  bool takes_a_row() const override { return std::get<Window>(ready_.weight).in >= kWindow; }
  bool takes_order() const override { return true; }

  void check(int64_t width) const override {
    SW_CHECK(std::get<Window>(ready_.weight).in == width, "the packed weight has ",
             std::get<Window>(ready_.weight).in, " columns; the product before it has ", width,
             " outputs");
    check_columns(columns_, std::max<int64_t>(width - kWindow, 0) + 1, width);
  }

  std::vector<int64_t> places() const override {
    return places_of(std::get<Window>(ready_.weight));
  }

  std::shared_ptr<const Stage> moved(const std::vector<int64_t>& at, int64_t) const override {
    check(static_cast<int64_t>(at.size()));
    return std::make_shared<WindowStage>(*this);
  }

 private:
  Tensor columns_;
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

  void check(int64_t width) const override { check_columns(columns_, width, width); }

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

// Of batches alone: a row of activations does not go through it in one region.
class BatchStage : public Stage {
 public:
  bool takes_a_row() const override { return false; }
  void check(int64_t) const override {}  // no place leads far beyond its chunk
  std::vector<int64_t> places() const override { return {}; }
  std::shared_ptr<const Stage> moved(const std::vector<int64_t>&, int64_t) const override {
    return nullptr;
  }
};

class CsbStage final : public BatchStage {
 public:
  CsbStage(const Tensor& starts, const Tensor& pairs, const Tensor& columns, const Tensor& values,
           const std::optional<Tensor>& scales, const std::optional<Tensor>& bias, int64_t out,
           int64_t chunk, int64_t block, int64_t activation, int64_t isa) {
    for (const Tensor* t : {&starts, &pairs, &columns, &values}) hold(*t);
    if (scales) hold(*scales);
    if (bias) hold(*bias);
    // As many columns as its chunks have at most; the activations say how many there are.
    const int64_t blocks = block > 0 ? ceil_div(out, block) : 0;
    const int64_t in = blocks > 0 ? (starts.numel() / 2 - 1) / blocks * chunk : 0;
    const Csb w = csb_of(starts, pairs, columns, values, scales, in, out, chunk, block);
    ready_ = {&kernels_for(isa),         w,   bias_of(bias, out),
              activation_of(activation), out, values.size(0) * 2 + out};
  }
};

class NmStage final : public BatchStage {
 public:
  NmStage(const Tensor& values, const Tensor& columns, const std::optional<Tensor>& scales,
          const std::optional<Tensor>& bias, int64_t out, int64_t chunk, int64_t activation,
          int64_t isa) {
    for (const Tensor* t : {&values, &columns}) hold(*t);
    if (scales) hold(*scales);
    if (bias) hold(*bias);
    const int64_t in = values.dim() == 4 ? values.size(1) * chunk : 0;  // at most, as above
    const Nm w = nm_of(values, columns, scales, in, out, chunk);
    ready_ = {&kernels_for(isa),         w,   bias_of(bias, out),
              activation_of(activation), out, w.chunks * w.slots * w.tiles * kLanes + out};
  }
};

}  // namespace

bool Stage::is_current() const {
  return std::all_of(held_.begin(), held_.end(),
                     [](const auto& held) { return held.first.const_data_ptr() == held.second; });
}

bool all_current(const std::vector<std::shared_ptr<const Stage>>& stages) {
  return std::all_of(stages.begin(), stages.end(), [](const auto& s) { return s->is_current(); });
}

std::shared_ptr<const Stage> sell_stage(const Tensor& starts, const Tensor& order,
                                        const Tensor& columns, const Tensor& values,
                                        const std::optional<Tensor>& scales,
                                        const std::optional<Tensor>& bias, int64_t out_features,
                                        int64_t activation, int64_t isa) {
  return std::make_shared<SellStage>(starts, order, columns, values, scales, bias, out_features,
                                     activation, isa);
}

std::shared_ptr<const Stage> window_stage(const Tensor& starts, const Tensor& order,
                                          const Tensor& columns, const Tensor& places,
                                          const Tensor& firsts, const Tensor& values,
                                          const std::optional<Tensor>& scales,
                                          const std::optional<Tensor>& bias, int64_t in_features,
                                          int64_t out_features, int64_t activation, int64_t isa) {
  return std::make_shared<WindowStage>(starts, order, columns, places, firsts, values, scales, bias,
                                       in_features, out_features, activation, isa);
}

std::shared_ptr<const Stage> csr_stage(const Tensor& rows, const Tensor& columns,
                                       const Tensor& values, const std::optional<Tensor>& scales,
                                       const std::optional<Tensor>& bias, int64_t activation,
                                       int64_t isa) {
  return std::make_shared<CsrStage>(rows, columns, values, scales, bias, activation, isa);
}

std::shared_ptr<const Stage> csb_stage(const Tensor& starts, const Tensor& pairs,
                                       const Tensor& columns, const Tensor& values,
                                       const std::optional<Tensor>& scales,
                                       const std::optional<Tensor>& bias, int64_t out_features,
                                       int64_t chunk, int64_t block, int64_t activation,
                                       int64_t isa) {
  return std::make_shared<CsbStage>(starts, pairs, columns, values, scales, bias, out_features,
                                    chunk, block, activation, isa);
}

std::shared_ptr<const Stage> nm_stage(const Tensor& values, const Tensor& columns,
                                      const std::optional<Tensor>& scales,
                                      const std::optional<Tensor>& bias, int64_t out_features,
                                      int64_t chunk, int64_t activation, int64_t isa) {
  return std::make_shared<NmStage>(values, columns, scales, bias, out_features, chunk, activation,
                                   isa);
}

}  // namespace sparsewright
