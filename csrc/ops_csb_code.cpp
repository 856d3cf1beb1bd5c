// Products with weights that are code.
#include <cstring>
#include <limits>

#include "chain.h"
#include "code_linear.h"

namespace sparsewright {

Tensor csb_linear(const Tensor& x, const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                  const Tensor& values, const std::optional<Tensor>& scales,
                  const std::optional<Tensor>& bias, int64_t out_features, int64_t chunk,
                  int64_t block, int64_t activation, int64_t isa);

namespace {

// Floats of a panel that a group of columns reads: half of what the nearest cache holds.
constexpr int64_t kGroupFloats = 4096;
// About what a weight's instructions and value take, what of a strip's should have one group, and
// rows of a strip that has less.
constexpr int64_t kBytesOfWeight = 13, kStripBytes = 64 << 10, kStripRows = 560;
constexpr int64_t kPanels = 16;  // at most that a part of the code multiplies in turn
// Code of one thread beyond which it comes from the cache that all threads share, and beyond which
// from memory.
constexpr int64_t kNearCode = 2 << 20, kFarCode = 4 << 20;
// What a thread needs to lay a vector of its panels, in multiply-adds of one.
constexpr int64_t kOwnLayingCost = 4;

// Where the pointer leads: short addresses reach as far to the left as to the right.
int64_t middle_of(int64_t group) { return group * kGroupFloats + kGroupFloats / 2; }

CodePlaces places_of(int64_t rows, int64_t columns, int64_t weights, int64_t lanes) {
  CodePlaces places = {{}, {}, {}, lanes};
  const int64_t each = kGroupFloats / lanes;
  for (int64_t c = 0; c < columns; ++c) {
    if ((c + 1) % each == 0 || c + 1 == columns) places.ends.push_back(c + 1);
    places.shifts.push_back((c % each - each / 2) * lanes);
    places.taps.push_back(0);
  }
  const auto groups = std::max<int64_t>(static_cast<int64_t>(places.ends.size()), 1);
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  const int64_t strips = std::min(ceil_div(rows, kStripRows),
                                  ceil_div(weights * kBytesOfWeight, kStripBytes * groups));
  places.strips = std::max<int64_t>(ceil_div(strips, threads), 1) * threads;
  places.align = kBeside;  // the rows of an output are written in whole lines
  places.lanes = lanes;
  return places;
}

// Those whose vectors are as wide.
const Kernels& kernels_of(int64_t lanes) {
  return kernels_for(lanes == kBeside ? kIsaAvx512 : kIsaAvx2);
}

// Panels [first, end) of the batch, laid one after the other.
void lay_panels(const Kernels& k, const Turned& x, int64_t batch, int64_t first, int64_t end,
                float* to) {
  for (int64_t t = first; t < end; ++t, to += x.most * x.columns())
    for (int64_t piece = 0; piece < x.pieces(); ++piece)
      x.lay_piece(k, t * x.most, x.rows(t, batch), to, piece);
}

template <int64_t kLanes>
void copy_rows(const float* sums, int64_t rows, float* to, int64_t step) {
  for (int64_t r = 0; r < rows; ++r, sums += kLanes, to += step)
    std::memcpy(to, sums, kLanes * sizeof(float));
}

// Sums of one panel, of `rows` rows of the weight from `begin` on, to rows of the batch or columns.
void give(const Kernels& k, const Linear& l, int64_t lanes, int64_t out, int64_t panel,
          int64_t begin, int64_t rows, const float* sums) {
  const int64_t row = panel * lanes, count = std::min(lanes, l.batch - row);
  if (!l.transposed) return k.to_rows(sums, lanes, rows, count, l.y + row * out + begin, out);
  float* to = l.y + begin * l.batch + row;
  if (count == kBeside) return copy_rows<kBeside>(sums, rows, to, l.batch);
  if (count == kBeside / 2 && count == lanes)
    return copy_rows<kBeside / 2>(sums, rows, to, l.batch);
  for (int64_t r = 0; r < rows; ++r, to += l.batch) std::copy_n(sums + r * lanes, count, to);
}

Turned panels_of(const Linear& l, int64_t lanes, int64_t columns) {
  Turned x(l, {64, 64, -1, -1, lanes}, lanes);
  x.zeros = columns;
  return x;
}

}  // namespace

std::shared_ptr<const CodeLinear> CodeLinear::of(const Tensor& starts, const Tensor& pairs,
                                                 const Tensor& columns, const Tensor& values,
                                                 const std::optional<Tensor>& scales,
                                                 const std::optional<Tensor>& bias,
                                                 int64_t out_features, int64_t chunk, int64_t block,
                                                 int64_t activation, int64_t lanes) {
  if (!makes_code()) return nullptr;
  // As many columns as its chunks have at most; the activations say how many there are.
  const int64_t blocks = block > 0 ? ceil_div(out_features, block) : 0;
  const int64_t in = blocks > 0 ? (starts.numel() / 2 - 1) / blocks * chunk : 0;
  const Csb w = csb_of(starts, pairs, columns, values, scales, in, out_features, chunk, block);
  const bool relu = activation_of(activation) == Activation::kRelu;
  bias_of(bias, out_features);
  auto made = std::make_shared<CodeLinear>();
  made->code_ = CsbCode::of(w, places_of(out_features, in, 2 * values.size(0), lanes),
                            bias.has_value(), relu ? Activation::kRelu : Activation::kNone);
  if (!made->code_) return nullptr;
  made->k_ = &kernels_of(lanes);
  made->lanes_ = lanes;
  made->bias_ = bias;
  made->chunk_ = chunk, made->chunks_ = w.chunks, made->out_ = out_features;
  made->activation_ = activation;
  made->work_ = 2 * values.size(0) + out_features;
  for (const CsbCode::Strip& s : made->strips())
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
    const int64_t parts = std::min(threads / groups, static_cast<int64_t>(strips().size()));
    if (parts == 0) continue;
    const int64_t bytes = code_->bytes() / parts;
    const int64_t quarters = bytes > kFarCode ? 8 : bytes > kNearCode ? 5 : 4;
    const int64_t cost =
        ceil_div(panels, groups) * (ceil_div(work_ * quarters, 4 * parts) + in * kOwnLayingCost);
    if (cost < least) least = cost, best = {groups, parts};
  }
  return best;
}

void CodeLinear::multiply(const CsbCode::Strip& strip, const float* x, int64_t x_step,
                          int64_t panels, float* y, int64_t y_step) const {
  const float* const bias = bias_of(bias_, out_);
  for (size_t i = strip.first; i < strip.last; ++i) {
    const CsbCode::Part& part = code_->parts()[i];
    Ahead ahead;
    if (i + 1 < code_->parts().size()) ahead = code_->parts()[i + 1].all;
    for (int64_t t = 0; t < panels; ++t) {
      const float* const from = x + t * x_step + middle_of(part.group);
      part.run(&from, part.values, y + t * y_step, bias, nullptr,
               ahead.floats > 0 ? ahead.from : part.values);
      ahead.skip(part.lines);
    }
  }
  const Activation then = activation_of(activation_);
  if (then == Activation::kNone || then == Activation::kRelu) return;  // done by the code
  for (int64_t t = 0; t < panels; ++t)
    k_->activate(y + t * y_step, (strip.end - strip.begin) * lanes_, then);
}

Tensor CodeLinear::operator()(const Tensor& input) const {
  Linear l = begin(input, bias_, out_, activation_);
  SW_CHECK(fits(l.in), "the packed weight has ", chunks_, " chunks of ", chunk_, " columns; x has ",
           l.in, " in_features");
  const Turned x = panels_of(l, lanes_, columns());
  const int64_t floats = x.columns() * lanes_, panels = ceil_div(l.batch, lanes_);
  const int64_t threads =
      parts_of(panels * (work_ + l.in * kOwnLayingCost), torch::stable::get_num_threads());
  const Shares share = shares(l.in, std::max<int64_t>(panels, 1), threads);
  const auto count = static_cast<int64_t>(strips().size());
  const int64_t most = std::clamp<int64_t>(kScratchFloats / floats, 1, kPanels);
  const auto some = [&](int64_t from, int64_t to) {
    const int64_t each = std::min(most, ceil_div(panels, share.groups));
    float* const memory = scratch<kShare>(each * floats);
    float* const sums = scratch<kSums>(each * most_rows_ * lanes_);
    for (int64_t i = from; i < to; ++i) {
      const int64_t group = i / share.parts, part = i % share.parts;
      const int64_t end = panels * (group + 1) / share.groups;
      for (int64_t t = panels * group / share.groups; t < end; t += each) {
        const int64_t now = std::min(each, end - t);
        lay_panels(*k_, x, l.batch, t, t + now, memory);
        for (int64_t s = count * part / share.parts; s < count * (part + 1) / share.parts; ++s) {
          const CsbCode::Strip& strip = strips()[static_cast<size_t>(s)];
          const int64_t rows = strip.end - strip.begin;
          multiply(strip, memory, floats, now, sums, rows * lanes_);
          for (int64_t p = 0; p < now; ++p)
            give(*k_, l, lanes_, out_, t + p, strip.begin, rows, sums + p * rows * lanes_);
        }
      }
    }
  };
  if (panels > 0) torch::stable::parallel_for(0, share.groups * share.parts, 1, some);
  return std::move(l.output);
}

CodeChain::CodeChain(std::vector<std::shared_ptr<const CodeLinear>> layers) {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!layers[i] || layers[i]->lanes() != layers[0]->lanes()) return;
    if (i > 0 && !layers[i]->fits(layers[i - 1]->out())) return;
    columns_ = std::max({columns_, layers[i]->columns() + 64, layers[i]->out()});
    work_ += layers[i]->work();
  }
  layers_ = std::move(layers);
}

int64_t CodeChain::threads(int64_t panels, int64_t in) const {
  return parts_of(panels * (work_ + in * kOwnLayingCost),
                  std::min<int64_t>(torch::stable::get_num_threads(), panels));
}

bool CodeChain::serves(int64_t batch, int64_t in) const {
  if (layers_.empty() || batch == 0 || !layers_[0]->fits(in)) return false;
  const int64_t panels = ceil_div(batch, layers_[0]->lanes()),
                all = torch::stable::get_num_threads();
  if (all > 1 && parts_of(panels * work_, all) > threads(panels, in)) return false;
  return std::all_of(layers_.begin(), layers_.end(), [&](const auto& layer) {
    return layer->shares(in, panels, threads(panels, in)).parts == 1;
  });
}

Tensor CodeChain::operator()(const Tensor& input) const {
  const int64_t lanes = layers_[0]->lanes();
  const Kernels& k = kernels_of(lanes);
  Linear l = begin(input, std::nullopt, layers_.back()->out(), 0);
  const Turned x = panels_of(l, lanes, layers_[0]->columns());
  const int64_t floats = std::max(columns_, x.columns()) * lanes;
  const int64_t panels = ceil_div(l.batch, lanes), groups = threads(panels, l.in);
  const int64_t most = std::clamp<int64_t>(kScratchFloats / (2 * floats), 1, kPanels);
  const auto some = [&](int64_t from, int64_t to) {
    for (int64_t group = from; group < to; ++group) {
      const int64_t begin = panels * group / groups, end = panels * (group + 1) / groups;
      const int64_t each = std::min(most, end - begin);
      float* from = scratch<kShare>(2 * each * floats);
      for (int64_t t = begin; t < end; t += each) {
        const int64_t now = std::min(each, end - t);
        int64_t step = x.columns() * lanes;
        float *here = from, *there = from + each * floats;
        lay_panels(k, x, l.batch, t, t + now, here);
        for (const auto& layer : layers_) {
          for (const CsbCode::Strip& strip : layer->strips())
            layer->multiply(strip, here, step, now, there + strip.begin * lanes, floats);
          std::swap(here, there);
          step = floats;
        }
        for (int64_t p = 0; p < now; ++p)
          give(k, l, lanes, layers_.back()->out(), t + p, 0, layers_.back()->out(),
               here + p * floats);
      }
    }
  };
  torch::stable::parallel_for(0, groups, 1, some);
  return std::move(l.output);
}

namespace {

int64_t bind_csb_linear(const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                        const Tensor& values, const std::optional<Tensor>& scales,
                        const std::optional<Tensor>& bias, int64_t out_features, int64_t chunk,
                        int64_t block, int64_t activation, int64_t isa) {
  std::shared_ptr<const CodeLinear> code;
  if (isa == kCode16 || isa == kCode8)
    code = CodeLinear::of(starts, pairs, columns, values, scales, bias, out_features, chunk, block,
                          activation, isa == kCode16 ? kBeside : kBeside / 2);
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
