// Convolutions of images that lie side by side, several at once.
#include <vector>

#include "beside.h"
#include "bound.h"

namespace sparsewright {
namespace {

constexpr int64_t kSumsBytes = 512 * 1024;  // bytes of sums of blocks that use a laid chunk in turn

constexpr size_t kMostStages = 32;

// Floats of what the channels of a chunk lay.
int64_t room_of(const Laying& laying, const Csb& w, int64_t channels) {
  const int64_t most = std::min(w.chunk, w.in) / laying.places() + 2;
  return std::min(most, channels) * laying.columns() * kBeside;
}

// Where the activations of every place of the weight are laid; those of padding, behind all.
std::vector<int64_t> shifts_of(const Laying& laying, const Csb& w, int64_t channels) {
  const int64_t places = laying.places();
  std::vector<int64_t> table(static_cast<size_t>(std::max<int64_t>(w.chunks, 1) * kPlaces),
                             room_of(laying, w, channels));
  for (int64_t c = 0; c < w.in; ++c) {
    const int64_t chunk = c / w.chunk, begin = chunk * w.chunk / places;
    const int64_t place = c % places, channel = c / places - begin;
    const int64_t column = laying.column(place / laying.w.kernel, place % laying.w.kernel);
    table[static_cast<size_t>(chunk * kPlaces + c % w.chunk)] =
        (channel * laying.columns() + column) * kBeside;
  }
  return table;
}

}  // namespace

// One convolution of images side by side, its arguments kept.
class ConvBeside {
 public:
  ConvBeside(const Tensor& starts, const Tensor& pairs, const Tensor& columns, const Tensor& values,
             const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
             int64_t out_features, int64_t chunk, int64_t block, int64_t kernel_h, int64_t kernel_w,
             int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
             int64_t dilation_h, int64_t dilation_w, int64_t activation, int64_t channels,
             int64_t height, int64_t width, const Spread& spread, int64_t isa)
      : k_(kernels_for(isa)),
        tensors_{starts, pairs, columns, values},
        scales_(scales),
        bias_(bias),
        out_features_(out_features),
        chunk_(chunk),
        block_(block),
        channels_(channels),
        spread_(spread),
        h_(checked_axis({height, kernel_h, stride_h, padding_h, dilation_h}, "h")),
        w_(checked_axis({width, kernel_w, stride_w, padding_w, dilation_w}, "w")),
        then_(activation_of(activation)),
        in_(spread, spread.images, channels, height, width),
        out_(spread, spread.images, out_features, h_.out(), w_.out()) {
    const Laying laying(h_, w_, out_.columns);
    shifts_ = shifts_of(laying, weight(), channels_);
    const auto* places = static_cast<const uint8_t*>(columns.const_data_ptr());
    for (int64_t step = 0; alike_ && step < columns.size(0); ++step)
      alike_ = places[2 * step] == places[2 * step + 1];
    if (spread.images == kBeside || is_flat()) return;
    for (int64_t t = 0; t < out_.in_all(); ++t) sources_.add(laying, in_, out_, t);
  }

  int64_t channels() const { return channels_; }
  // Whether it is for what lies so.
  bool is_of(const Inside& i) const {
    return i.height == h_.size && i.width == w_.size && i.images == spread_.images &&
           i.threads == spread_.threads;
  }
  // Whether every place of the output reads its own alone.
  bool is_flat() const {
    return h_.kernel == 1 && w_.kernel == 1 && h_.stride == 1 && w_.stride == 1 &&
           h_.padding == 0 && w_.padding == 0;
  }
  // How x lies; of fewer images than lanes there is one way, which takes long to find.
  Inside in(const Tensor& x) const {
    if (spread_.images == kBeside) return inside_of(x, spread_, h_.size, w_.size);
    Inside known = in_;
    if (x.dim() == 6) known.channels = x.size(3);
    check_inside(x, known);
    return known;
  }
  Inside out(const Inside& in) const {
    if (spread_.images < kBeside) return out_;
    return Inside(spread_, in.batch, out_features_, h_.out(), w_.out());
  }

  // What a thread needs for where the activations of its tiles lie.
  struct Around {
    Sources sources;
    int64_t table[kPlaces];
  };

  // What one call needs to know of it.
  struct Ready {
    const Kernels& k;
    Csb weight;
    const float* bias;
    Activation then;
    Inside in, out;
    Laying laying;
    bool laid;
    const std::vector<int64_t>& shifts;
    const Sources* sources;  // of all tiles, or null
    bool alike;
    int64_t room, sums_of, at_once;
    int64_t steps;
    // The tile of x that an output tile is likely the first to read: what is fetched ahead for it.
    int64_t newest(int64_t number) const {
      if (!laid) return number;
      const int64_t line = number / out.tiles, row = line % out.rows, group = line / out.rows;
      const int64_t last = laying.row_of(row, laying.h.kernel - 1);
      const int64_t column = number % out.tiles * out.columns * laying.w.stride / in.columns;
      const int64_t lines = group * in.rows + std::clamp<int64_t>(last, 0, in.rows - 1);
      return std::min(lines * in.tiles + std::min(column, in.tiles - 1), in.in_all() - 1);
    }
    int64_t memory() const { return room + out.channel() + at_once * sums_of; }

    // One tile of the output, of x: where it is not laid, the same tile.
    void tile(const float* x, int64_t number, const float* residual, float* y, float* memory,
              Around& mine, const float* ahead = nullptr, int64_t ahead_floats = 0) const {
      LaidColumns from = {nullptr, nullptr, nullptr};
      if (!laid) {
        std::copy_n(shifts.begin(), kPlaces, mine.table);
      } else if (sources) {
        from = sources->columns(number * laying.columns());
      } else {
        mine.sources.clear();
        mine.sources.add(laying, in, out, number);
        from = mine.sources.columns(0);
      }
      const int64_t lines = ceil_div(ahead_floats, 16), rows = weight.chunks * weight.out;
      const Beside t = {x,
                        in.channel(),
                        laying.places(),
                        from,
                        laying.columns(),
                        shifts.data(),
                        mine.table,
                        room,
                        out.channel(),
                        y,
                        residual,
                        bias,
                        then,
                        memory,
                        memory + room + out.channel(),
                        alike,
                        reinterpret_cast<const char*>(ahead),
                        ceil_div(lines, std::max<int64_t>(rows, 1)) * 64};
      for (int64_t b = 0; b < weight.blocks; b += at_once)
        k.csb_beside(weight, t, b, std::min(weight.blocks, b + at_once));
    }
  };

  Ready ready(const Inside& in) const {
    const Csb w = weight();
    const Inside to = out(in);
    const Laying laying(h_, w_, to.columns);
    const bool laid = !is_flat();
    const int64_t sums_of = (w.block + 1) * to.channel();
    return {k_,
            w,
            bias_of(bias_, out_features_),
            then_,
            in,
            to,
            laying,
            laid,
            shifts_,
            laid && spread_.images < kBeside ? &sources_ : nullptr,
            alike_,
            laid ? room_of(laying, w, channels_) : 0,
            sums_of,
            std::clamp<int64_t>(kSumsBytes / 4 / sums_of, 1, std::max<int64_t>(w.blocks, 1)),
            tensors_[3].size(0) * 2};
  }

 private:
  Csb weight() const {
    return csb_of(tensors_[0], tensors_[1], tensors_[2], tensors_[3], scales_,
                  channels_ * h_.kernel * w_.kernel, out_features_, chunk_, block_);
  }

  const Kernels& k_;
  std::array<Tensor, 4> tensors_;
  std::optional<Tensor> scales_, bias_;
  int64_t out_features_, chunk_, block_, channels_;
  Spread spread_;
  Axis h_, w_;
  Activation then_;
  Inside in_, out_;    // of one group
  bool alike_ = true;  // as for Beside
  std::vector<int64_t> shifts_;
  Sources sources_;  // of images in patches
};

namespace {

// The convolutions one after the other, tile by tile. Stage i adds the next of `residuals` where
// bit i of `adds` is set, gives its output where that of `kept` is, and writes it over what it adds
// where that of `over` is. All but the first are 1x1 at stride one.
std::vector<Tensor> run(const std::vector<std::shared_ptr<const ConvBeside>>& stages,
                        const Tensor& input, const std::vector<Tensor>& residuals, int64_t adds,
                        int64_t kept, int64_t over) {
  SW_CHECK(!stages.empty() && stages.size() <= kMostStages, "a chain has 1 to ", kMostStages,
           " convolutions; got ", stages.size());
  const Inside first = stages[0]->in(input);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  std::vector<ConvBeside::Ready> ready;
  std::vector<Tensor> outputs;
  std::vector<float*> to(stages.size(), nullptr);
  std::vector<const float*> more(stages.size(), nullptr);
  size_t next = 0;
  int64_t memory = 0, tile = 0, work = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    const Inside in = i == 0 ? first : ready.back().out;
    SW_CHECK(in.channels == stages[i]->channels(), "convolution ", i, " of the chain takes ",
             stages[i]->channels(), " channels; got ", in.channels);
    SW_CHECK(i == 0 || (stages[i]->is_flat() && stages[i]->is_of(in)), "convolution ", i,
             " of the chain must be 1x1, at stride one, of ", in.images, " images of ", in.height,
             " rows and ", in.width, " columns, for ", in.threads, " threads");
    ready.push_back(stages[i]->ready(in));
    const ConvBeside::Ready& r = ready.back();
    const auto shape = r.out.shape();
    const auto bit = [i](int64_t bits) { return (bits >> i & 1) != 0; };
    std::optional<Tensor> added;
    if (bit(adds)) {
      SW_CHECK(next < residuals.size(), "more convolutions add something than there is");
      added = residuals[next++];
      const auto sizes = added->sizes();
      SW_CHECK(added->is_cpu() && added->scalar_type() == ScalarType::Float &&
                   added->dim() == static_cast<int64_t>(shape.size()) &&
                   std::equal(shape.begin(), shape.end(), sizes.begin()) && added->is_contiguous(),
               "what convolution ", i,
               " adds must be float32 on the CPU, contiguous, and have its output's shape");
      more[i] = static_cast<const float*>(added->const_data_ptr());
    }
    if (bit(kept) || i + 1 == stages.size()) {
      SW_CHECK(!bit(over) || added, "convolution ", i, " writes over nothing: it adds nothing");
      outputs.push_back(bit(over) ? *added : new_output(shape.data(), shape.size()));
      to[i] = static_cast<float*>(outputs.back().mutable_data_ptr());
    }
    memory = std::max(memory, r.memory());
    tile = std::max(tile, r.out.tile());
    work += (r.steps + r.out.channels) * (r.out.channel() / r.k.width);
  }
  const Inside& out = ready[0].out;
  if (out.in_all() == 0) return outputs;
  memory = ceil_div(memory, 16) * 16;
  const float* from = static_cast<const float*>(x.const_data_ptr());
  torch::stable::parallel_for(
      0, out.in_all(), ceil_div(kGrain, std::max<int64_t>(work, 1)), [&](int64_t a, int64_t b) {
        float* const mine = scratch<kShare>(memory + 2 * tile);
        ConvBeside::Around around;
        for (int64_t t = a; t < b; ++t) {
          const float* source = ready[0].laid ? from : from + t * first.tile();
          for (size_t i = 0; i < ready.size(); ++i) {
            const int64_t at = t * ready[i].out.tile();
            float* const y =
                to[i] ? to[i] + at : mine + memory + static_cast<int64_t>(i % 2) * tile;
            const float* fetched = nullptr;
            int64_t fetched_floats = 0;
            if (i == 0 && ready.size() > 1 && more[1]) {
              fetched = more[1] + t * ready[1].out.tile(), fetched_floats = ready[1].out.tile();
            } else if (i + 1 == ready.size() && t + 1 < b) {
              fetched = from + ready[0].newest(t + 1) * first.tile();
              fetched_floats = first.tile();
            }
            ready[i].tile(source, t, more[i] ? more[i] + at : nullptr, y, mine, around, fetched,
                          fetched_floats);
            source = y;
          }
        }
      });
  return outputs;
}

int64_t bind_csb_conv2d_beside(const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                               const Tensor& values, const std::optional<Tensor>& scales,
                               const std::optional<Tensor>& bias, int64_t out_features,
                               int64_t chunk, int64_t block, int64_t kernel_h, int64_t kernel_w,
                               int64_t stride_h, int64_t stride_w, int64_t padding_h,
                               int64_t padding_w, int64_t dilation_h, int64_t dilation_w,
                               int64_t activation, int64_t channels, int64_t height, int64_t width,
                               int64_t images, int64_t threads, int64_t isa) {
  auto conv = std::make_shared<const ConvBeside>(
      starts, pairs, columns, values, scales, bias, out_features, chunk, block, kernel_h, kernel_w,
      stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, activation, channels,
      height, width, checked_spread(images, threads), isa);
  Bound call = [conv](const Tensor& x, const std::optional<Tensor>& residual) {
    std::vector<Tensor> added;
    if (residual) added.push_back(*residual);
    return run({conv}, x, added, residual ? 1 : 0, 1, 0)[0];
  };
  return keep({std::move(call), nullptr, false, conv});
}

std::vector<Tensor> beside_chain(const Tensor& x, std::vector<Tensor> residuals,
                                 std::vector<int64_t> numbers, int64_t adds, int64_t kept,
                                 int64_t over) {
  std::vector<std::shared_ptr<const ConvBeside>> stages;
  for (const int64_t number : numbers) {
    stages.push_back(product(number)->beside);
    SW_CHECK(stages.back(), "call ", number, " is no convolution of images side by side");
  }
  return run(stages, x, residuals, adds, kept, over);
}

}  // namespace

}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def(
      "bind_csb_conv2d_beside(Tensor starts, Tensor pairs, Tensor columns, Tensor values, Tensor? "
      "scales, Tensor? bias, int out_features, int chunk, int block, int kernel_h, int kernel_w, "
      "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, "
      "int activation, int channels, int height, int width, int images, int threads, int isa) -> "
      "int");
  m.def(
      "beside_chain(Tensor x, Tensor[] residuals, int[] numbers, int adds, int kept, int over) -> "
      "Tensor[]");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("bind_csb_conv2d_beside", TORCH_BOX(&sparsewright::bind_csb_conv2d_beside));
  m.impl("beside_chain", TORCH_BOX(&sparsewright::beside_chain));
}
