// What the kernels share that put the batch along the vector: a value is broadcast and multiplies
// one transposed column of the activations (Elsen et al. 2020).
#pragma once
#include <cstdint>
#include <cstring>

#include "activation.inl.h"
#include "kernels.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

constexpr int kVectors = 4;  // vectors of the batch in a tile: two sets of sums fit the registers
constexpr int kW = Simd::kWidth;
constexpr int64_t kTileWidth = kVectors * kW;
using Vec = Simd::Vec;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
const T* values_of(const Values& v) {
  return static_cast<const T*>(v.data);
}

// f.template operator()<T>() for the type of the stored values.
template <class F>
auto by_number(const Values& v, const F& f) {
  switch (v.number) {
    case Number::kBf16:
      return f.template operator()<Bf16>();
    case Number::kInt8:
      return f.template operator()<int8_t>();
    default:
      return f.template operator()<float>();
  }
}

// f.template operator()<Index, T>(), with the type of the columns.
template <class F>
auto by_types(const Values& v, bool wide, const F& f) {
  return by_number(v, [&]<class T>() {
    return wide ? f.template operator()<int32_t, T>() : f.template operator()<uint16_t, T>();
  });
}

// Where the sums of a row begin. A row with a scale gets its bias after that, by `finished`.
float start_of(const Values& v, const float* bias, int64_t row) {
  return bias && !v.scales ? bias[row] : 0.0f;
}

float finished(const Values& v, const float* bias, int64_t row, float sum) {
  return v.scales ? sum * v.scales[row] + (bias ? bias[row] : 0.0f) : sum;
}

// Bytes of a weight's stored values beyond which they come from afar, and how far ahead they and
// their places are then fetched into the second cache: the CPU alone is late for them, and sees
// them worse the more activations it reads beside them. Into the nearest one, fewer lines can be on
// their way at once.
constexpr int64_t kFar = 3 << 20;
constexpr int64_t kValuesAhead = 12288, kPlacesAhead = 3072;

inline void fetch(const void* from, int64_t ahead, int64_t bytes) {
  const char* const p = static_cast<const char*>(from) + ahead;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// f.template operator()<V>() for so many vectors, from 1 to kMost.
template <int kMost, class F>
void by_vectors(int64_t vectors, const F& f) {
  if constexpr (kMost > 1)
    if (vectors < kMost) return by_vectors<kMost - 1>(vectors, f);
  f.template operator()<kMost>();
}

// f(0), f(1), ... f(N - 1), written out: sums in an array whose places are known stay in registers,
// where GCC copies those that a loop passes over to memory and back, before and after every use.
template <int N, class F>
[[gnu::always_inline]] inline void each(const F& f) {
  if constexpr (N > 1) each<N - 1>(f);
  f(N - 1);
}

// y[c * y_step + r] = x[r * x_step + c] for N columns, N = 8 or 16.
template <int N>
void transpose_columns(const float* x, int64_t x_step, int64_t rows, float* y, int64_t y_step) {
  int64_t r = 0;
  if constexpr (N == 16)
    for (; r + 16 <= rows; r += 16) Simd::transpose16x16(x + r * x_step, x_step, y + r, y_step);
  for (; r + 8 <= rows; r += 8)
    for (int c = 0; c < N; c += 8)
      Simd::transpose8x8(x + r * x_step + c, x_step, y + c * y_step + r, y_step);
  for (; r < rows; ++r)
    for (int c = 0; c < N; ++c) y[c * y_step + r] = x[r * x_step + c];
}

// y[c * y_step + r] = x[r * x_step + c]. Down the rows, a line of the cache wide: a line of x is
// read once, and the lines of y are filled before they leave the nearest cache, as they soon would
// where y_step is a power of two.
void transpose(const float* x, int64_t x_step, int64_t rows, int64_t columns, float* y,
               int64_t y_step) {
  int64_t c = 0;
  for (; c + 16 <= columns; c += 16)
    transpose_columns<16>(x + c, x_step, rows, y + c * y_step, y_step);
  if (columns >= 8) {
    for (; c < columns; c += 8) {
      c = least(c, columns - 8);  // the last eight again, some of them for the second time
      transpose_columns<8>(x + c, x_step, rows, y + c * y_step, y_step);
    }
  }
  for (; c < columns; ++c)
    for (int64_t r = 0; r < rows; ++r) y[c * y_step + r] = x[r * x_step + c];
}

void transpose_in(const float* x, int64_t in, int64_t batch, float* out, int64_t width,
                  int64_t begin, int64_t end) {
  const int64_t some = batch % 8, whole = batch - some, in_eights = (end - begin) / 8 * 8;
  const bool padded = some > 0 && whole + 8 <= width;
  const int64_t done = padded ? whole + 8 : batch;
  transpose(x + begin, in, padded ? whole : batch, end - begin, out + begin * width, width);
  if (padded) {  // the others of eight rows are zeros
    alignas(32) float eight[64] = {};
    for (int64_t c = begin; c < begin + in_eights; c += 8) {
      for (int64_t r = 0; r < some; ++r)
        std::memcpy(eight + 8 * r, x + (whole + r) * in + c, 8 * sizeof(float));
      Simd::transpose8x8(eight, 8, out + c * width + whole, width);
    }
    for (int64_t c = begin + in_eights; c < end; ++c)
      for (int64_t r = 0; r < 8; ++r)
        out[c * width + whole + r] = r < some ? x[(whole + r) * in + c] : 0.0f;
  }
  for (int64_t c = begin; c < end; ++c)
    for (int64_t r = done; r < width; ++r) out[c * width + r] = 0.0f;
}

// y[r * y_step + i] = x[i * width + r], of `count` of the columns: what a tile's sums are, to rows
// of the batch.
void to_rows(const float* x, int64_t width, int64_t rows, int64_t count, float* y, int64_t y_step) {
  const int64_t some = count % 8, whole = count - some;
  if (some == 0 || whole + 8 > width) return transpose(x, width, rows, count, y, y_step);
  if (whole > 0) transpose(x, width, rows, whole, y, y_step);
  alignas(32) float eight[64];
  float* const to = y + whole * y_step;
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) {
    Simd::transpose8x8(x + i * width + whole, width, eight, 8);
    for (int64_t r = 0; r < some; ++r)
      std::memcpy(to + r * y_step + i, eight + 8 * r, 8 * sizeof(float));
  }
  for (; i < rows; ++i)
    for (int64_t r = 0; r < some; ++r) to[r * y_step + i] = x[i * width + whole + r];
}

void copy_in(const float* x, int64_t step, int64_t batch, float* out, int64_t width, int64_t begin,
             int64_t end) {
  const int64_t whole = batch - batch % kW;
  for (int64_t c = begin; c < end; ++c) {
    const float* const from = x + c * step;
    float* const to = out + c * width;
    int64_t r = 0;
    for (; r < whole; r += kW) Simd::store(to + r, Simd::load(from + r));
    for (; r < batch; ++r) to[r] = from[r];
    for (; r < width; ++r) to[r] = 0.0f;
  }
}

// Sums of two rows (or of the even and odd weights of one): enough chains to hide fma's latency.
template <int V>
struct Sums {
  Vec a[V], b[V];
  void load(const float* p) {
    for (int v = 0; v < V; ++v) {
      a[v] = Simd::load(p + v * kW);
      b[v] = Simd::zero();
    }
  }
  void begin(float start) {
    for (int v = 0; v < V; ++v) {
      a[v] = Simd::broadcast(start);
      b[v] = Simd::zero();
    }
  }
  template <class T>
  void to_a(T value, const float* x) {
    const Vec w = Simd::broadcast(Simd::widen(value));
    for (int v = 0; v < V; ++v) a[v] = Simd::fma(w, Simd::load(x + v * kW), a[v]);
  }
  template <class T>
  void to_b(T value, const float* x) {
    const Vec w = Simd::broadcast(Simd::widen(value));
    for (int v = 0; v < V; ++v) b[v] = Simd::fma(w, Simd::load(x + v * kW), b[v]);
  }
  void store_total(float* p) const {
    for (int v = 0; v < V; ++v) Simd::store(p + v * kW, Simd::add(a[v], b[v]));
  }
};

void begin_block(float* sums, const Values& v, const float* bias, int64_t width, int64_t begin,
                 int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Vec start = Simd::broadcast(start_of(v, bias, row));
    for (int64_t i = 0; i < width; i += kW) Simd::store(sums + (row - begin) * width + i, start);
  }
}

// What `finished` does, of all sums of rows [begin, end).
void scale_block(float* sums, const Values& v, const float* bias, int64_t width, int64_t begin,
                 int64_t end) {
  if (!v.scales) return;
  for (int64_t row = begin; row < end; ++row) {
    const Vec scale = Simd::broadcast(v.scales[row]), more = Simd::broadcast(bias ? bias[row] : 0);
    float* p = sums + (row - begin) * width;
    for (int64_t i = 0; i < width; i += kW)
      Simd::store(p + i, Simd::fma(Simd::load(p + i), scale, more));
  }
}

// Sums of rows [begin, end) to where these columns are wanted.
void to_columns(const float* sums, const Tile& tile, int64_t begin, int64_t end) {
  const int64_t whole = tile.count - tile.count % kW;
  while (begin < end) {
    const int64_t at = begin % tile.piece, rows = least(end - begin, tile.piece - at);
    float* to = tile.next + (begin / tile.piece * tile.stride + at) * tile.step;
    begin += rows;
    for (int64_t r = 0; r < rows; ++r, sums += tile.width, to += tile.step) {
      for (int64_t i = 0; i < whole; i += kW) Simd::store(to + i, Simd::load(sums + i));
      for (int64_t i = whole; i < tile.count; ++i) to[i] = sums[i];
    }
  }
}

// Scale, activation, and to columns of the next tile or back to rows of the batch.
void finish_block(float* sums, const Values& v, const Tile& tile, int64_t begin, int64_t end,
                  int64_t out) {
  scale_block(sums, v, tile.bias, tile.width, begin, end);
  activate(sums, (end - begin) * tile.width, tile.activation);
  if (tile.next) return to_columns(sums, tile, begin, end);
  to_rows(sums, tile.width, end - begin, tile.batch, tile.y + begin, out);
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
