// A convolution of images that lie side by side.
#pragma once
#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "beside.h"
#include "cpu.h"
#include "csb_code.h"

namespace sparsewright {

// Bytes of sums of blocks that use a laid chunk in turn.
inline constexpr int64_t kSumsBytes = 512 * 1024;
// Of a group of a weight that is code: what they read is half of the nearest cache.
inline constexpr int64_t kCodeColumns = 256;

// Floats of what the channels of a chunk lay.
inline int64_t room_of(const Laying& laying, const Csb& w, int64_t channels) {
  const int64_t most = std::min(w.chunk, w.in) / laying.places() + 2;
  return std::min(most, channels) * laying.columns() * kBeside;
}

// Where the activations of every place of the weight are laid; those of padding, behind all.
inline std::vector<int64_t> shifts_of(const Laying& laying, const Csb& w, int64_t channels) {
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

// Channels whose weights are in reach together, where the weight is code.
inline int64_t channels_of_code(const Laying& laying, int64_t channels) {
  return std::clamp<int64_t>(kCodeColumns / laying.places(), 1, std::max<int64_t>(channels, 1));
}

// Where the activations and sums of a weight that is code lie.
inline CodePlaces places_of_code(const Laying& laying, const Inside& in, const Inside& out,
                                 int64_t channels) {
  const int64_t places = laying.places(), each = channels_of_code(laying, channels);
  CodePlaces code = {{}, {}, {}, out.channel()};
  for (int64_t c = 0; c < channels; ++c) {
    if ((c + 1) % each == 0 || c + 1 == channels) code.ends.push_back((c + 1) * places);
    for (int64_t p = 0; p < places; ++p) {
      code.shifts.push_back(c % each * in.channel());
      code.taps.push_back(static_cast<int32_t>(p));
    }
  }
  return code;
}

// One convolution of images side by side, its arguments kept: its weight in layout csb or, of
// depthwise ones, dense.
class ConvBeside {
 public:
  // weight: (out, 1, kernel_h, kernel_w); of `channels` each gives as many outputs.
  ConvBeside(const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride_h,
             int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
             int64_t dilation_w, int64_t activation, int64_t channels, int64_t height,
             int64_t width, const Spread& spread, int64_t isa)
      : k_(kernels_for(isa)),
        bias_(bias),
        out_features_(weight.size(0)),
        chunk_(0),
        block_(0),
        channels_(channels),
        spread_(spread),
        h_(checked_axis({height, weight.size(2), stride_h, padding_h, dilation_h}, "h")),
        w_(checked_axis({width, weight.size(3), stride_w, padding_w, dilation_w}, "w")),
        then_(activation_of(activation)),
        in_(spread, spread.images, channels, height, width),
        out_(spread, spread.images, out_features_, h_.out(), w_.out()),
        depthwise_(weight) {
    find_places(Laying(h_, w_, out_.columns));
  }

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
    if ((isa == kBest || isa == kIsaAvx512) && makes_code())
      code_ = CsbCode::of(weight(), places_of_code(laying, in_, out_, channels), bias.has_value(),
                          then_);
    find_places(laying);
  }

  int64_t channels() const { return channels_; }
  int64_t code_bytes() const { return code_ ? code_->bytes() : 0; }
  // What all of a call reads of the weight.
  int64_t weight_bytes() const {
    int64_t bytes = code_bytes();
    for (const Tensor& tensor : depthwise_ ? std::vector<Tensor>{*depthwise_} : tensors_)
      if (!code_) bytes += tensor.numel() * static_cast<int64_t>(tensor.element_size());
    return bytes;
  }
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
    std::vector<const float*> columns, taps;  // taps: for depthwise ones, of every vector
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
    const CsbCode* code;               // or null
    const float* depthwise;            // weights, or null
    const float* zeros;                // as many as a group of channels have
    const std::vector<int64_t>& taps;  // the column that each place of the kernel reads first
    // The tile of x that an output tile is likely the first to read.
    Ahead newest(const float* x, int64_t number) const {
      if (!laid) return {x + number * in.tile(), in.tile()};
      const int64_t line = number / out.tiles, row = line % out.rows, group = line / out.rows;
      const int64_t last = laying.row_of(row, laying.h.kernel - 1);
      const int64_t column = number % out.tiles * out.columns * laying.w.stride / in.columns;
      const int64_t lines = group * in.rows + std::clamp<int64_t>(last, 0, in.rows - 1);
      const int64_t tile = lines * in.tiles + std::min(column, in.tiles - 1);
      return {x + std::min(tile, in.in_all() - 1) * in.tile(), in.tile()};
    }
    int64_t memory() const { return room + out.channel() + at_once * sums_of; }

    // One tile of the output, of x: where it is not laid, the same tile.
    void tile(const float* x, int64_t number, const float* residual, float* y, float* memory,
              Around& mine, Ahead ahead) const {
      LaidColumns from = {nullptr, nullptr, nullptr};
      if (!laid && !code && !depthwise) {
        std::copy_n(shifts.begin(), kPlaces, mine.table);
      } else if (laid && sources) {
        from = sources->columns(number * laying.columns());
      } else if (laid) {
        mine.sources.clear();
        mine.sources.add(laying, in, out, number);
        from = mine.sources.columns(0);
      }
      const int64_t rows = weight.chunks * weight.out;
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
                        reinterpret_cast<const char*>(ahead.from),
                        ceil_div(ahead.lines(), std::max<int64_t>(rows, 1)) * 64};
      if (code) return run_code(t, ahead, mine);
      if (depthwise) return run_depthwise(t, ahead, mine);
      for (int64_t b = 0; b < weight.blocks; b += at_once)
        k.csb_beside(weight, t, b, std::min(weight.blocks, b + at_once));
    }

    void run_code(const Beside& t, Ahead ahead, Around& mine) const {
      const int64_t each = channels_of_code(laying, in.channels), vectors = t.width / kBeside;
      const auto calls = static_cast<int64_t>(code->parts().size()) * vectors;
      const int64_t at_a_time = ceil_div(ahead.lines(), std::max<int64_t>(calls, 1));
      mine.taps.resize(taps.size());
      int64_t group = -1;
      for (const CsbCode::Part& part : code->parts()) {
        if (part.group != group) {
          group = part.group;
          find_columns(t, group * each, std::min((group + 1) * each, in.channels), mine.columns);
        }
        for (int64_t v = 0; v < vectors; ++v) {
          ahead.fetch(at_a_time - part.lines);  // the others it fetches itself
          for (size_t p = 0; p < taps.size(); ++p)
            mine.taps[p] = mine.columns[static_cast<size_t>(taps[p] + v)];
          const int64_t at = v * kBeside;
          part.run(mine.taps.data(), part.values, t.y + at, t.bias,
                   t.residual ? t.residual + at : nullptr,
                   ahead.floats > 0 ? ahead.from : part.values);
          ahead.skip(part.lines);
        }
      }
    }

    void run_depthwise(const Beside& t, Ahead ahead, Around& mine) const {
      const int64_t each = channels_of_code(laying, in.channels), vectors = t.width / kBeside;
      const int64_t times = out.channels / in.channels, places = laying.places();
      const int64_t at_a_time = ceil_div(ahead.lines(), ceil_div(in.channels, each));
      const bool slides = laying.shared && laying.h.kernel == 3 && laying.w.kernel == 3 &&
                          laying.w.stride == 1 && laying.w.dilation == 1;
      mine.taps.resize(static_cast<size_t>(vectors * places));
      for (int64_t begin = 0; begin < in.channels; begin += each) {
        const int64_t end = std::min(begin + each, in.channels), first = begin * times;
        find_columns(t, begin, end, mine.columns);
        ahead.fetch(at_a_time);
        for (int64_t i = 0; !slides && i < vectors * places; ++i)
          mine.taps[static_cast<size_t>(i)] =
              mine.columns[static_cast<size_t>(taps[static_cast<size_t>(i % places)] + i / places)];
        const auto& read = slides ? mine.columns : mine.taps;
        k.depthwise_beside({read.data(), slides, places, in.channel(), end - begin, times,
                            depthwise + first * places, t.bias ? t.bias + first : nullptr,
                            t.residual ? t.residual + first * t.width : nullptr,
                            t.y + first * t.width, vectors, then});
      }
    }

    // Where the columns of channels [begin, end) lie: in x itself or, where lanes read different
    // places, picked and put where channels are as far apart as there.
    void find_columns(const Beside& t, int64_t begin, int64_t end,
                      std::vector<const float*>& columns) const {
      const float* const x = t.x + begin * t.channel;
      columns.clear();
      if (!laid) {
        for (int64_t i = 0; i < out.columns; ++i) columns.push_back(x + i * kBeside);
        return;
      }
      const int64_t step = channels_of_code(laying, in.channels) * in.channel();
      int64_t picked = 0;
      for (int64_t i = 0; i < laying.columns(); ++i) {
        const int64_t from = t.from.from[i];
        if (from < 0 || !t.from.pick(i)) {
          columns.push_back(from < 0 ? zeros : x + from);
          continue;
        }
        float* const to = t.laid + picked / in.columns * step + picked % in.columns * kBeside;
        k.pick_beside(x + from, t.channel, *t.from.pick(i), end - begin, to);
        columns.push_back(to);
        ++picked;
      }
    }
  };

  Ready ready(const Inside& in) const {
    const Csb w = depthwise_ ? Csb{} : weight();
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
            room(laying, w),
            has_sums() ? sums_of : 0,
            std::clamp<int64_t>(kSumsBytes / 4 / sums_of, 1, std::max<int64_t>(w.blocks, 1)),
            depthwise_ ? depthwise_->numel() : tensors_[3].size(0) * 2,
            code_.get(),
            depthwise_ ? static_cast<const float*>(depthwise_->const_data_ptr()) : nullptr,
            zeros_.data(),
            taps_};
  }

 private:
  // Whether they wait in memory while more of them is added.
  bool has_sums() const { return !code_ && !depthwise_; }
  // Where each place of the kernel begins, and zeros for padding, which loops over csb do not need;
  // and where the columns of patches lie.
  void find_places(const Laying& laying) {
    for (int64_t p = 0; !has_sums() && p < laying.places(); ++p)
      taps_.push_back(laying.column(p / laying.w.kernel, p % laying.w.kernel));
    if (!has_sums() && !is_flat())
      zeros_.resize(static_cast<size_t>(channels_of_code(laying, channels_) * in_.channel()));
    if (spread_.images == kBeside || is_flat()) return;
    for (int64_t t = 0; t < out_.in_all(); ++t) sources_.add(laying, in_, out_, t);
  }
  // Floats of what is laid for a tile.
  int64_t room(const Laying& laying, const Csb& w) const {
    if (is_flat()) return 0;
    if (has_sums()) return room_of(laying, w, channels_);
    if (spread_.images == kBeside) return 0;  // nothing is picked
    return ceil_div(laying.columns(), in_.columns) * static_cast<int64_t>(zeros_.size());
  }
  Csb weight() const {
    return csb_of(tensors_[0], tensors_[1], tensors_[2], tensors_[3], scales_,
                  channels_ * h_.kernel * w_.kernel, out_features_, chunk_, block_);
  }

  const Kernels& k_;
  std::vector<Tensor> tensors_;
  std::optional<Tensor> scales_, bias_;
  int64_t out_features_, chunk_, block_, channels_;
  Spread spread_;
  Axis h_, w_;
  Activation then_;
  Inside in_, out_;    // of one group
  bool alike_ = true;  // as for Beside
  std::vector<int64_t> shifts_;
  Sources sources_;  // of images in patches
  std::unique_ptr<const CsbCode> code_;
  std::vector<float> zeros_;
  std::vector<int64_t> taps_;
  std::optional<Tensor> depthwise_;
};

}  // namespace sparsewright
