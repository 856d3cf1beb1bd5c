// Convolutions one after the other, of images side by side, as what their tiles need.
#pragma once
#include <array>
#include <memory>
#include <vector>

#include "bound.h"
#include "conv_beside.h"
#include "wave.h"

namespace sparsewright {

inline constexpr size_t kMostStages = 32;

inline std::shared_ptr<const ConvBeside> conv_of(int64_t number) {
  auto conv = product(number)->beside;
  SW_CHECK(conv, "call ", number, " is no convolution of images side by side");
  return conv;
}

// One call. Stage i adds the next of the residuals where bit i of `adds` is set, gives its output
// where that of `kept` is, and writes it over what it adds where that of `over` is. All but the
// first are 1x1 at stride one, so that a tile goes through all of them.
class BesideChain {
 public:
  struct Bits {
    int64_t adds, kept, over;
  };
  // make(shape): memory for an output.
  template <class Make>
  BesideChain(std::vector<std::shared_ptr<const ConvBeside>> stages, const Tensor& input,
              const std::vector<Tensor>& residuals, const Bits& bits, const Make& make);

  const Inside& in() const { return first_; }
  const Inside& out() const { return ready_[0].out; }  // its channels are the first stage's
  const Axis& rows() const { return ready_[0].laying.h; }
  const std::vector<Tensor>& outputs() const { return outputs_; }
  // Floats that a thread needs.
  int64_t memory() const { return memory_ + 2 * tile_; }
  Wave::Step step() const { return {out().groups, out().rows, out().tiles, work_, {}}; }
  // What tile `t` is likely the first to read.
  Ahead newest(int64_t t) const { return ready_[0].newest(from_, t); }
  // One tile. Meanwhile `next` is fetched.
  void tile(int64_t t, float* mine, ConvBeside::Around& around, const Ahead& next) const;

 private:
  std::vector<std::shared_ptr<const ConvBeside>> stages_;
  std::vector<ConvBeside::Ready> ready_;
  Inside first_;
  Tensor x_;
  const float* from_;
  std::vector<Tensor> outputs_;
  std::array<float*, kMostStages> to_ = {};
  std::array<const float*, kMostStages> more_ = {};
  int64_t memory_ = 0, tile_ = 0;
  int64_t work_ = 0;  // multiply-adds of a vector, for a tile
};

inline const Inside& checked(const Inside& in, int64_t channels, size_t stage) {
  SW_CHECK(in.channels == channels, "convolution ", stage, " of the chain takes ", channels,
           " channels; got ", in.channels);
  return in;
}

inline void check_number_of_stages(size_t stages) {
  SW_CHECK(0 < stages && stages <= kMostStages, "a chain has 1 to ", kMostStages,
           " convolutions; got ", stages);
}

template <class Make>
BesideChain::BesideChain(std::vector<std::shared_ptr<const ConvBeside>> stages, const Tensor& input,
                         const std::vector<Tensor>& residuals, const Bits& bits, const Make& make)
    : stages_((check_number_of_stages(stages.size()), std::move(stages))),
      first_(stages_[0]->in(input)),
      x_(input.is_contiguous() ? input : torch::stable::contiguous(input)),
      from_(static_cast<const float*>(x_.const_data_ptr())) {
  size_t next = 0;
  for (size_t i = 0; i < stages_.size(); ++i) {
    const ConvBeside& stage = *stages_[i];
    const Inside& in = checked(i == 0 ? first_ : ready_.back().out, stage.channels(), i);
    SW_CHECK(i == 0 || (stage.is_flat() && stage.is_of(in)), "convolution ", i,
             " of the chain must be 1x1, at stride one, of ", in.images, " images of ", in.height,
             " rows and ", in.width, " columns, for ", in.threads, " threads");
    ready_.push_back(stage.ready(Inside(in)));
    const ConvBeside::Ready& r = ready_.back();
    const auto shape = r.out.shape();
    const auto bit = [i](int64_t of) { return (of >> i & 1) != 0; };
    std::optional<Tensor> added;
    if (bit(bits.adds)) {
      SW_CHECK(next < residuals.size(), "more convolutions add something than there is");
      added = residuals[next++];
      const auto sizes = added->sizes();
      SW_CHECK(added->is_cpu() && added->scalar_type() == ScalarType::Float &&
                   added->dim() == static_cast<int64_t>(shape.size()) &&
                   std::equal(shape.begin(), shape.end(), sizes.begin()) && added->is_contiguous(),
               "what convolution ", i,
               " adds must be float32 on the CPU, contiguous, and have its output's shape");
      more_[i] = static_cast<const float*>(added->const_data_ptr());
    }
    if (bit(bits.kept) || i + 1 == stages_.size()) {
      SW_CHECK(!bit(bits.over) || added, "convolution ", i,
               " writes over nothing: it adds nothing");
      outputs_.push_back(bit(bits.over) ? *added : make(shape));
      to_[i] = static_cast<float*>(outputs_.back().mutable_data_ptr());
    }
    memory_ = std::max(memory_, r.memory());
    tile_ = std::max(tile_, r.out.tile());
    work_ += (r.steps + r.out.channels) * (r.out.channel() / r.k.width);
  }
  memory_ = ceil_div(memory_, 16) * 16;
}

inline void BesideChain::tile(int64_t t, float* mine, ConvBeside::Around& around,
                              const Ahead& next) const {
  const float* source = ready_[0].laid ? from_ : from_ + t * first_.tile();
  for (size_t i = 0; i < ready_.size(); ++i) {
    const int64_t at = t * ready_[i].out.tile();
    float* const y = to_[i] ? to_[i] + at : mine + memory_ + static_cast<int64_t>(i % 2) * tile_;
    Ahead ahead;
    if (i == 0 && ready_.size() > 1 && more_[1])
      ahead = {more_[1] + t * ready_[1].out.tile(), ready_[1].out.tile()};
    else if (i + 1 == ready_.size())
      ahead = next;
    ready_[i].tile(source, t, more_[i] ? more_[i] + at : nullptr, y, mine, around, ahead);
    source = y;
  }
}

// Their tiles, in the order of a wave through the steps, which are as many.
void run_chains(const std::vector<std::unique_ptr<BesideChain>>& chains,
                std::vector<Wave::Step> steps);

}  // namespace sparsewright
