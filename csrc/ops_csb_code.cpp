// Products with weights that are code.
#include <limits>

#include "chain.h"
#include "code_linear.h"

namespace sparsewright {

Tensor csb_linear(const Tensor& x, const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                  const Tensor& values, const std::optional<Tensor>& scales,
                  const std::optional<Tensor>& bias, int64_t out_features, int64_t chunk,
                  int64_t block, int64_t activation, int64_t isa);

namespace {

// Columns of a group: of these a panel has half of what the nearest cache holds. Short addresses
// reach them from the middle.
constexpr int64_t kColumns = 256, kMiddle = kColumns / 2;
// About what a weight's instructions and value take, and what of a strip's should have one group.
constexpr int64_t kBytesOfWeight = 13, kStripBytes = 64 << 10;
constexpr int64_t kPanels = 16;  // at most that a part of the code multiplies in turn
// Code of one thread beyond which it comes from the cache that all threads share, and beyond which
// from memory.
constexpr int64_t kNearCode = 2 << 20, kFarCode = 4 << 20;
// What a thread needs to lay a vector of its panels, in multiply-adds of one.
constexpr int64_t kOwnLayingCost = 4;

CodePlaces places_of(int64_t columns, int64_t weights) {
  CodePlaces places = {{}, {}, {}, kBeside};
  for (int64_t c = 0; c < columns; ++c) {
    if ((c + 1) % kColumns == 0 || c + 1 == columns) places.ends.push_back(c + 1);
    places.shifts.push_back((c % kColumns - kMiddle) * kBeside);
    places.taps.push_back(0);
  }
  const auto groups = std::max<int64_t>(static_cast<int64_t>(places.ends.size()), 1);
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  const int64_t strips = ceil_div(weights * kBytesOfWeight, kStripBytes * groups);
  places.strips = std::max<int64_t>(ceil_div(strips, threads), 1) * threads;
  places.align = kBeside;  // the rows of an output are written in whole lines
  return places;
}

}  // namespace

// One call: what it multiplies, and its panels from number `before` on.
struct CodeLinear::Call {
  const Linear& l;
  Turned x;
  int64_t before;
};

std::shared_ptr<const CodeLinear> CodeLinear::of(const Tensor& starts, const Tensor& pairs,
                                                 const Tensor& columns, const Tensor& values,
                                                 const std::optional<Tensor>& scales,
                                                 const std::optional<Tensor>& bias,
                                                 int64_t out_features, int64_t chunk, int64_t block,
                                                 int64_t activation) {
  if (!makes_code()) return nullptr;
  // As many columns as its chunks have at most; the activations say how many there are.
  const int64_t blocks = block > 0 ? ceil_div(out_features, block) : 0;
  const int64_t in = blocks > 0 ? (starts.numel() / 2 - 1) / blocks * chunk : 0;
  const Csb w = csb_of(starts, pairs, columns, values, scales, in, out_features, chunk, block);
  const Activation then = activation_of(activation);
  bias_of(bias, out_features);
  auto made = std::make_shared<CodeLinear>();
  made->activated_ = then == Activation::kRelu;
  made->code_ = CsbCode::of(w, places_of(in, 2 * values.size(0)), bias.has_value(),
                            made->activated_ ? then : Activation::kNone);
  if (!made->code_) return nullptr;
  made->k_ = &kernels_for(kBest);
  made->bias_ = bias;
  made->chunk_ = chunk, made->chunks_ = w.chunks, made->out_ = out_features;
  made->activation_ = activation;
  made->work_ = 2 * values.size(0) + out_features;
  for (const CsbCode::Strip& s : made->code_->strips())
    made->most_rows_ = std::max(made->most_rows_, s.end - s.begin);
  return made;
}

// Threads that share a panel lay it each for itself and take turns to write lines of the output:
// the more panels a thread has for itself the better, where they are shared out evenly and its code
// is not far.
CodeLinear::Shares CodeLinear::shares(int64_t in, int64_t panels, int64_t threads) const {
  Shares best = {1, 1};
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t groups = std::min(threads, panels); groups > 0; --groups) {
    const int64_t parts = std::min(threads / groups, strips());
    if (parts == 0) continue;
    const int64_t bytes = code_->bytes() / parts;
    const int64_t quarters = bytes > kFarCode ? 8 : bytes > kNearCode ? 5 : 4;
    const int64_t cost =
        ceil_div(panels, groups) * (ceil_div(work_ * quarters, 4 * parts) + in * kOwnLayingCost);
    if (cost < least) least = cost, best = {groups, parts};
  }
  return best;
}

Tensor CodeLinear::operator()(const Tensor& input) const {
  Linear l = begin(input, bias_, out_, activation_);
  SW_CHECK(ceil_div(l.in, chunk_) == chunks_, "the packed weight has ", chunks_, " chunks of ",
           chunk_, " columns; x has ", l.in, " in_features");
  if (l.batch == 0) return std::move(l.output);
  Turned x(l, {64, 64, -1, -1, kBeside}, kBeside);
  x.zeros = chunks_ * chunk_;
  const int64_t all = ceil_div(l.batch, kBeside), floats = x.columns() * kBeside;
  const int64_t most = std::max<int64_t>(kScratchFloats / floats, 1);
  for (int64_t before = 0; before < all; before += most) {
    const int64_t panels = std::min(most, all - before);
    const int64_t threads =
        parts_of(panels * (work_ + l.in * kOwnLayingCost), torch::stable::get_num_threads());
    const Shares share = shares(l.in, panels, threads);
    const int64_t each = ceil_div(panels, share.groups);
    const auto some = [&](int64_t from, int64_t to) {
      Call call = {l, x, before};
      float* const memory = scratch<kShare>(each * floats);
      float* const sums = scratch<kSums>(std::min(each, kPanels) * most_rows_ * kBeside);
      int64_t laid = -1;
      for (int64_t i = from; i < to; ++i) {
        const int64_t group = i / share.parts, part = i % share.parts;
        const int64_t first = panels * group / share.groups;
        const int64_t end = panels * (group + 1) / share.groups;
        call.x.to = memory, call.before = before + first;
        for (int64_t t = first; laid != group && t < end; ++t)
          for (int64_t piece = 0; piece < x.pieces(); ++piece)
            x.lay_piece(*k_, (before + t) * kBeside, x.rows(before + t, l.batch),
                        call.x.tile(t - first), piece);
        laid = group;
        for (int64_t t = 0; t < end - first; t += kPanels)
          multiply(call, t, std::min(t + kPanels, end - first), strips() * part / share.parts,
                   strips() * (part + 1) / share.parts, sums);
      }
    };
    torch::stable::parallel_for(0, share.groups * share.parts, 1, some);
  }
  return std::move(l.output);
}

void CodeLinear::multiply(const Call& call, int64_t first, int64_t end, int64_t from, int64_t to,
                          float* sums) const {
  for (int64_t s = from; s < to; ++s) {
    const CsbCode::Strip& strip = code_->strips()[static_cast<size_t>(s)];
    const int64_t floats = (strip.end - strip.begin) * kBeside;
    for (size_t i = strip.first; i < strip.last; ++i) {
      const CsbCode::Part& part = code_->parts()[i];
      Ahead ahead;
      if (i + 1 < code_->parts().size()) ahead = code_->parts()[i + 1].all;
      for (int64_t t = first; t < end; ++t) {
        const float* const x = call.x.tile(t) + (part.group * kColumns + kMiddle) * kBeside;
        part.run(&x, part.values, sums + (t - first) * floats, call.l.bias, nullptr,
                 ahead.floats > 0 ? ahead.from : part.values);
        ahead.skip(part.lines);
      }
    }
    for (int64_t t = first; t < end; ++t)
      finish(call, call.before + t, strip, sums + (t - first) * floats);
  }
}

void CodeLinear::finish(const Call& call, int64_t panel, const CsbCode::Strip& strip,
                        float* sums) const {
  const Linear& l = call.l;
  const int64_t rows = strip.end - strip.begin, row = panel * kBeside;
  const int64_t count = call.x.rows(panel, l.batch);
  if (!activated_) k_->activate(sums, rows * kBeside, l.activation);
  if (!l.transposed)
    return k_->transpose(sums, kBeside, rows, count, l.y + row * out_ + strip.begin, out_);
  for (int64_t r = 0; r < rows; ++r)
    std::copy_n(sums + r * kBeside, count, l.y + (strip.begin + r) * l.batch + row);
}

namespace {

int64_t bind_csb_linear(const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                        const Tensor& values, const std::optional<Tensor>& scales,
                        const std::optional<Tensor>& bias, int64_t out_features, int64_t chunk,
                        int64_t block, int64_t activation, int64_t isa) {
  std::shared_ptr<const CodeLinear> code;
  if (isa == kCode)
    code = CodeLinear::of(starts, pairs, columns, values, scales, bias, out_features, chunk, block,
                          activation);
  if (!code)
    return Bind<&csb_linear, -1, &csb_stage>::bind(starts, pairs, columns, values, scales, bias,
                                                   out_features, chunk, block, activation, isa);
  Product product = {[code](const Tensor& x, const std::optional<Tensor>& residual) {
                       SW_CHECK(!residual, "a product with a matrix takes no residual");
                       return (*code)(x);
                     },
                     nullptr};
  product.code = code;
  return keep(std::move(product));
}

}  // namespace
}  // namespace sparsewright

STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("bind_csb_linear", TORCH_BOX(&sparsewright::bind_csb_linear));
}
