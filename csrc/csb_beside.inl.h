// Convolution with weights in layout csb of images that lie side by side along the vector
// (beside.h): every load is aligned, and no place of a vector is padding.
#pragma once
#include <cstdint>

#include "beside.inl.h"
#include "csb_pixels.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

void zero_out(float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kW) Simd::store(to + i, Simd::zero());
}

// The activations that one chunk of the weight's columns reads, channel by channel.
void lay_channels(const Csb& w, int64_t chunk, const Beside& t) {
  const int64_t end = least(w.in, (chunk + 1) * w.chunk);
  float* to = t.laid;
  for (int64_t c = chunk * w.chunk / t.places; c * t.places < end; ++c) {
    const float* const channel = t.x + c * t.channel;
    for (int64_t i = 0; i < t.columns; ++i, to += kBeside) {
      const int64_t from = t.from.from[i];
      const LanePlaces* const places = t.from.pick(i);
      if (from < 0) {
        zero_out(to, kBeside);
        continue;
      }
      for (int j = 0; j < kBeside; j += kW)
        Simd::store(to + j, load_column(channel + from, places, j, Simd::zero()));
    }
  }
}

// Where both rows of every pair read the same.
struct AlikeShifts : Shifts {
  static constexpr bool kAlike = true;
  const AlikeShifts& of(uint32_t, uint32_t) const { return *this; }
};

// Where the activations of a chunk lie: in x itself, or laid together.
Shifts find_activations(const Csb& w, int64_t chunk, const Beside& t) {
  if (t.from.from) {
    lay_channels(w, chunk, t);
    return {t.laid, t.shifts + chunk * kPlaces};
  }
  const float* const x = t.x + chunk * w.chunk * t.channel;
  t.table[kPlaces - 1] = t.laid + t.zeros - x;
  return {x, t.table};
}

// Sums of a row to their place in the output, with what is added to it.
template <int V>
[[gnu::always_inline]] inline void put(const Beside& t, int64_t row, int64_t at, const Vec* v) {
  float* const y = t.y + row * t.width + at;
  const float* const more = t.residual ? t.residual + row * t.width + at : nullptr;
  const bool relu = t.activation == Activation::kRelu;
  each<V>([&](int i) SW_INLINED {
    const Vec sum = more ? Simd::add(v[i], Simd::load(more + i * kW)) : v[i];
    Simd::store(y + i * kW, relu ? Simd::relu(sum) : sum);
  });
}

// The rows of one block and chunk: their sums begin with the first chunk, go to the output with the
// last one, and wait in memory between. With each row some of what is needed later is fetched.
template <int V>
struct RowsBeside {
  const Beside& t;
  const Csb& w;
  float* sums;
  int64_t begin, rows, at;
  bool first, last;
  bool* done;
  const char* ahead;
  int64_t bytes;

  [[gnu::always_inline]] void load(int64_t row, Vec* v) const {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + row * bytes + i, 0, 2);
    if (first) {
      const float start = row < rows ? start_of(w.values, t.bias, begin + row) : 0.0f;
      each<V>([&](int i) SW_INLINED { v[i] = Simd::broadcast(start); });
    } else {
      Waiting<V>{sums}.load(row, v);
    }
  }
  [[gnu::always_inline]] void store(int64_t row, const Vec* v) const {
    if (last && row >= rows) return;  // the partner of an odd last row
    done[row] = true;
    if (last)
      put<V>(t, begin + row, at, v);
    else
      Waiting<V>{sums}.store(row, v);
  }
  // Rows without weights in the chunk.
  void pass_others() const {
    if (!first && !last) return;
    for (int64_t row = 0; row < rows; ++row) {
      if (done[row]) continue;
      Vec v[V];
      load(row, v);
      store(row, v);
    }
  }
};

template <int V>
void finish_beside(float* sums, const Csb& w, const Beside& t, int64_t at, int64_t block) {
  const int64_t begin = block * w.block, end = least(w.out, begin + w.block);
  scale_block(sums, w.values, t.bias, V * kW, begin, end);
  for (int64_t row = begin; row < end; ++row, sums += V * kW) {
    Vec v[V];
    Waiting<V>{sums}.load(0, v);
    put<V>(t, row, at, v);
    activate(t.y + row * t.width + at, V * kW, t.activation);
  }
}

// f.template operator()<V>(first float, which vectors of its tile) of all parts of a tile.
template <class F>
void by_parts(const Beside& t, const F& f) {
  const int64_t vectors = t.width / kW, parts = (vectors + kPixelVectors - 1) / kPixelVectors;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t from = vectors * i / parts, end = vectors * (i + 1) / parts;
    by_vectors<kPixelVectors>(end - from, [&]<int V>() { f.template operator()<V>(from * kW); });
  }
}

void csb_beside(const Csb& w, const Beside& t, int64_t begin, int64_t end) {
  const bool usual = t.activation == Activation::kNone || t.activation == Activation::kRelu;
  const bool direct = usual && !w.values.scales;  // else what follows the sums waits for them
  const int64_t room = w.block + 1, chunks = w.chunks > 0 ? w.chunks : 1;
  const auto sums = [&](int64_t block, int64_t at) {
    return t.sums + (block - begin) * room * t.width + room * at;
  };
  zero_out(t.laid + t.zeros, t.width);
  by_number(w.values, [&]<class T>() {
    for (int64_t c = 0; c < chunks; ++c) {
      const Shifts laid = find_activations(w, c, t);
      by_parts(t, [&]<int V>(int64_t at) {
        for (int64_t block = begin; block < end; ++block) {
          const int64_t first = block * w.block, rows = least(w.out - first, w.block);
          const int64_t bytes = t.ahead && at == 0 ? t.ahead_bytes : 0;
          bool done[kMaxBlock + 1] = {};
          const RowsBeside<V> out{
              t,    w,      sums(block, at),           first, rows,
              at,   c == 0, direct && c + 1 == chunks, done,  t.ahead + (c * w.out + first) * bytes,
              bytes};
          const Shifts mine = {laid.x + at, laid.shifts};
          if (w.chunks > 0 && t.alike)
            csb_chunk<V, T>(w, block, c, AlikeShifts{mine}, out);
          else if (w.chunks > 0)
            csb_chunk<V, T>(w, block, c, mine, out);
          out.pass_others();
        }
      });
    }
  });
  if (direct) return;
  by_parts(t, [&]<int V>(int64_t at) {
    for (int64_t block = begin; block < end; ++block)
      finish_beside<V>(sums(block, at), w, t, at, block);
  });
}

// What follows the sums `v` of V vectors, the first at `at`, from one to the next `step` floats.
template <int V>
[[gnu::always_inline]] inline void put(const DepthwiseBeside& d, int64_t at, int64_t step,
                                       const Vec* v) {
  const bool relu = d.activation == Activation::kRelu;
  each<V>([&](int i) SW_INLINED {
    const int64_t to = at + i * step;
    const Vec sum = d.residual ? Simd::add(v[i], Simd::load(d.residual + to)) : v[i];
    Simd::store(d.y + to, relu ? Simd::relu(sum) : sum);
  });
}

// Every column is loaded once for the three outputs that read it.
template <int V>
void slide(const DepthwiseBeside& d, int64_t output, int64_t shift) {
  Vec weights[9];
  each<9>([&](int p) SW_INLINED { weights[p] = Simd::broadcast(d.weights[output * 9 + p]); });
  const Vec start = Simd::broadcast(d.bias ? d.bias[output] : 0.0f);
  for (int j = 0; j < kBeside; j += kW) {
    Vec sums[V];
    each<V>([&](int i) SW_INLINED { sums[i] = start; });
    each<3>([&](int y) SW_INLINED {
      each<V + 2>([&](int c) SW_INLINED {
        const Vec v = Simd::load(d.from[y * (V + 2) + c] + shift + j);
        each<3>([&](int x) SW_INLINED {
          if (c >= x && c - x < V) sums[c - x] = Simd::fma(weights[3 * y + x], v, sums[c - x]);
        });
      });
    });
    put<V>(d, output * V * kBeside + j, kBeside, sums);
  }
}

void multiply_one(const DepthwiseBeside& d, int64_t output, int64_t shift) {
  const float* const weights = d.weights + output * d.places;
  const Vec start = Simd::broadcast(d.bias ? d.bias[output] : 0.0f);
  const float* const* from = d.from;
  for (int64_t i = 0; i < d.vectors; ++i, from += d.places) {
    for (int j = 0; j < kBeside; j += kW) {
      Vec sum = start;
      for (int64_t p = 0; p < d.places; ++p)
        sum = Simd::fma(Simd::broadcast(weights[p]), Simd::load(from[p] + shift + j), sum);
      put<1>(d, (output * d.vectors + i) * kBeside + j, 0, &sum);
    }
  }
}

void depthwise_beside(const DepthwiseBeside& d) {
  auto multiply = multiply_one;
  if (d.slides) by_vectors<kMostColumns>(d.vectors, [&]<int V>() { multiply = slide<V>; });
  for (int64_t c = 0; c < d.channels; ++c)
    for (int64_t t = 0; t < d.times; ++t) multiply(d, c * d.times + t, c * d.step);
  if (d.activation != Activation::kRelu)
    activate(d.y, d.channels * d.times * d.vectors * kBeside, d.activation);
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
