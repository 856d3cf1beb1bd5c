// y = x W^T + bias over packed weights, written once over a Simd struct. A translation unit per
// instruction set defines SPARSEWRIGHT_ISA (the namespace that holds Simd) and includes this file.
//
// Small batches read the weight once and keep the activations in registers (nm_lookup, after
// DESIGN 7) or in L1 (csr_dot). Larger ones put the batch along the vector: a value is broadcast
// and multiplies one transposed column of the activations (csr_tile, nm_tile; Elsen et al. 2020).
#include <cstdint>

#include "activation.inl.h"
#include "kernels.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

constexpr int kVectors = 4;  // vectors of the batch in a tile: two sets of sums fit the registers
constexpr int kW = Simd::kWidth;
constexpr int64_t kTileWidth = kVectors * kW;
using Vec = Simd::Vec;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// y[c * y_step + r] = x[r * x_step + c]
void transpose(const float* x, int64_t x_step, int64_t rows, int64_t columns, float* y,
               int64_t y_step) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    int64_t c = 0;
    for (; c + 8 <= columns; c += 8)
      Simd::transpose8x8(x + r * x_step + c, x_step, y + c * y_step + r, y_step);
    for (; c < columns; ++c)
      for (int64_t i = r; i < r + 8; ++i) y[c * y_step + i] = x[i * x_step + c];
  }
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t i = r; i < rows; ++i) y[c * y_step + i] = x[i * x_step + c];
}

void transpose_in(const float* x, int64_t in, int64_t batch, float* out, int64_t width,
                  int64_t begin, int64_t end) {
  transpose(x + begin, in, batch, end - begin, out + begin * width, width);
  for (int64_t c = begin; c < end; ++c)
    for (int64_t r = batch; r < width; ++r) out[c * width + r] = 0.0f;
}

// ---- csr ------------------------------------------------------------------------------------

// Whether a row lies inside the arrays, and (places ascend) inside the activations.
template <class Index>
bool row_fits(const Csr& w, const Index* columns, int64_t row) {
  const int64_t begin = w.rows[row], end = w.rows[row + 1];
  if (begin < 0 || end < begin || end > w.nnz) return false;
  return begin == end || static_cast<uint64_t>(columns[end - 1]) < static_cast<uint64_t>(w.in);
}

template <class Index>
float dot(const float* values, const Index* columns, int64_t n, const float* x) {
  Vec a = Simd::zero(), b = Simd::zero();
  int64_t i = 0;
  for (; i + 2 * kW <= n; i += 2 * kW) {
    a = Simd::fma(Simd::load(values + i), Simd::gather(x, columns + i), a);
    b = Simd::fma(Simd::load(values + i + kW), Simd::gather(x, columns + i + kW), b);
  }
  float even = 0.0f, odd = 0.0f;
  for (; i + 2 <= n; i += 2) {
    even += values[i] * x[columns[i]];
    odd += values[i + 1] * x[columns[i + 1]];
  }
  if (i < n) even += values[i] * x[columns[i]];
  return (Simd::sum(a) + Simd::sum(b)) + (even + odd);
}

template <class Index>
bool csr_dot_of(const Csr& w, const float* x, int64_t batch, const float* bias, float* y,
                int64_t begin, int64_t end) {
  const Index* columns = static_cast<const Index*>(w.columns);
  for (int64_t row = begin; row < end; ++row) {
    if (!row_fits(w, columns, row)) return false;
    const int64_t first = w.rows[row], n = w.rows[row + 1] - first;
    const float start = bias ? bias[row] : 0.0f;
    for (int64_t r = 0; r < batch; ++r)
      y[r * w.out + row] = start + dot(w.values + first, columns + first, n, x + r * w.in);
  }
  return true;
}

bool csr_dot(const Csr& w, const float* x, int64_t batch, const float* bias, float* y,
             int64_t begin, int64_t end) {
  return w.wide ? csr_dot_of<int32_t>(w, x, batch, bias, y, begin, end)
                : csr_dot_of<uint16_t>(w, x, batch, bias, y, begin, end);
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
  void to_a(float value, const float* x) {
    const Vec w = Simd::broadcast(value);
    for (int v = 0; v < V; ++v) a[v] = Simd::fma(w, Simd::load(x + v * kW), a[v]);
  }
  void to_b(float value, const float* x) {
    const Vec w = Simd::broadcast(value);
    for (int v = 0; v < V; ++v) b[v] = Simd::fma(w, Simd::load(x + v * kW), b[v]);
  }
  void store_total(float* p) const {
    for (int v = 0; v < V; ++v) Simd::store(p + v * kW, Simd::add(a[v], b[v]));
  }
};

void begin_block(float* sums, const Tile& tile, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Vec start = Simd::broadcast(tile.bias ? tile.bias[row] : 0.0f);
    for (int64_t i = 0; i < tile.width; i += kW)
      Simd::store(sums + (row - begin) * tile.width + i, start);
  }
}

// No steps over the columns here: cutting rows into short pieces, whose ends the CPU cannot
// predict, cost more than activations read from L2 (measured at 1024 to 4096 columns).
template <class Index, int V>
bool csr_block(const Csr& w, const Tile& tile, float* sums, int64_t begin, int64_t end) {
  constexpr int64_t width = V * kW;
  const Index* columns = static_cast<const Index*>(w.columns);
  for (int64_t row = begin; row < end; ++row) {
    if (!row_fits(w, columns, row)) return false;
    const int64_t last = w.rows[row + 1];
    int64_t i = w.rows[row];
    Sums<V> s;
    s.load(sums + (row - begin) * width);
    for (; i + 2 <= last; i += 2) {
      s.to_a(w.values[i], tile.x + static_cast<int64_t>(columns[i]) * width);
      s.to_b(w.values[i + 1], tile.x + static_cast<int64_t>(columns[i + 1]) * width);
    }
    if (i < last) s.to_a(w.values[i], tile.x + static_cast<int64_t>(columns[i]) * width);
    s.store_total(sums + (row - begin) * width);
  }
  return true;
}

template <class Index>
bool csr_block_of(const Csr& w, const Tile& tile, float* sums, int64_t begin, int64_t end) {
  switch (tile.width / kW) {
    case 1:
      return csr_block<Index, 1>(w, tile, sums, begin, end);
    case 2:
      return csr_block<Index, 2>(w, tile, sums, begin, end);
    case 3:
      return csr_block<Index, 3>(w, tile, sums, begin, end);
    default:
      return csr_block<Index, 4>(w, tile, sums, begin, end);
  }
}

bool csr_tile(const Csr& w, const Tile& tile, int64_t begin, int64_t end) {
  alignas(64) float sums[kRowBlock * kTileWidth];
  for (int64_t from = begin; from < end; from += kRowBlock) {
    const int64_t to = least(end, from + kRowBlock);
    begin_block(sums, tile, from, to);
    const bool fits = w.wide ? csr_block_of<int32_t>(w, tile, sums, from, to)
                             : csr_block_of<uint16_t>(w, tile, sums, from, to);
    if (!fits) return false;
    activate(sums, (to - from) * tile.width, tile.activation);
    transpose(sums, tile.width, to - from, tile.batch, tile.y + from, w.out);
  }
  return true;
}

// ---- nm -------------------------------------------------------------------------------------

// Activations of a tile that stay in L1 while a block of rows passes over them.
constexpr int64_t kCacheFloats = 24 * 1024 / sizeof(float);

// Lanes l and l + 1 of a 16-row tile, chunks [first, last).
template <int V>
void nm_lanes(const Nm& w, const Tile& tile, int64_t t, int lane, int64_t first, int64_t last,
              float* sums) {
  constexpr int64_t width = V * kW;
  Sums<V> s;
  s.load(sums);
  for (int v = 0; v < V; ++v) s.b[v] = Simd::load(sums + width + v * kW);
  for (int64_t c = first; c < last; ++c) {
    const float* x = tile.x + c * w.chunk * width;
    for (int64_t slot = 0; slot < w.slots; ++slot) {
      const int64_t i = ((t * w.chunks + c) * w.slots + slot) * kLanes + lane;
      if (w.values[i] != 0.0f) s.to_a(w.values[i], x + w.columns[i] * width);
      if (w.values[i + 1] != 0.0f) s.to_b(w.values[i + 1], x + w.columns[i + 1] * width);
    }
  }
  for (int v = 0; v < V; ++v) {
    Simd::store(sums + v * kW, s.a[v]);
    Simd::store(sums + width + v * kW, s.b[v]);
  }
}

template <int V>
void nm_block(const Nm& w, const Tile& tile, float* sums, int64_t begin, int64_t end) {
  constexpr int64_t width = V * kW;
  const int64_t fit = kCacheFloats / (width * w.chunk), step = fit > 0 ? fit : 1;
  for (int64_t c = 0; c < w.chunks; c += step)
    for (int64_t row = begin; row < end; row += 2)
      nm_lanes<V>(w, tile, row / kLanes, static_cast<int>(row % kLanes), c,
                  least(w.chunks, c + step), sums + (row - begin) * width);
}

// begin is a multiple of 16; an odd last row runs beside its padded neighbour.
void nm_tile(const Nm& w, const Tile& tile, int64_t begin, int64_t end) {
  alignas(64) float sums[kRowBlock * kTileWidth];
  for (int64_t from = begin; from < end; from += kRowBlock) {
    const int64_t to = least(end, from + kRowBlock);
    if ((to - from) % 2) {
      for (int64_t i = 0; i < tile.width; ++i) sums[(to - from) * tile.width + i] = 0.0f;
    }
    begin_block(sums, tile, from, to);
    switch (tile.width / kW) {
      case 1:
        nm_block<1>(w, tile, sums, from, to);
        break;
      case 2:
        nm_block<2>(w, tile, sums, from, to);
        break;
      case 3:
        nm_block<3>(w, tile, sums, from, to);
        break;
      default:
        nm_block<4>(w, tile, sums, from, to);
    }
    activate(sums, (to - from) * tile.width, tile.activation);
    transpose(sums, tile.width, to - from, tile.batch, tile.y + from, w.out);
  }
}

void nm_tables(const Nm& w, const float* x, int64_t batch, float* tables) {
  for (int64_t r = 0; r < batch; ++r) {
    for (int64_t c = 0; c < w.chunks; ++c) {
      const float* from = x + r * w.in + c * w.chunk;
      float* table = tables + (r * w.chunks + c) * kTable;
      const int64_t n = least(w.chunk, w.in - c * w.chunk);
      if (n == kTable) {
        Simd::prepare(from, table);
        continue;
      }
      float part[kTable] = {};
      for (int64_t i = 0; i < n; ++i) part[i] = from[i];
      Simd::prepare(part, table);
    }
  }
}

void store_rows(const Nm& w, int64_t t, const float* lanes, float* y) {
  const int64_t n = least(kLanes, w.out - t * kLanes);
  for (int64_t i = 0; i < n; ++i) y[t * kLanes + i] = lanes[i];
}

// R rows of the batch over pairs of tiles: values and places are read once for all of them.
template <int R>
void nm_lookup_of(const Nm& w, const float* tables, const float* bias, float* y, int64_t begin,
                  int64_t end) {
  const int64_t per_tile = w.chunks * w.slots * kLanes;
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t t0 = 2 * pair, t1 = least(t0 + 1, w.tiles - 1);
    alignas(64) float lanes[2 * kLanes] = {};
    if (bias) {
      const int64_t n = least(2 * kLanes, w.out - t0 * kLanes);
      for (int64_t i = 0; i < n; ++i) lanes[i] = bias[t0 * kLanes + i];
    }
    Simd::Lanes sums[R];
    for (int r = 0; r < R; ++r) sums[r] = Simd::lanes(lanes, lanes + kLanes);
    const float *v0 = w.values + t0 * per_tile, *v1 = w.values + t1 * per_tile;
    const uint8_t *p0 = w.columns + t0 * per_tile, *p1 = w.columns + t1 * per_tile;
    for (int64_t c = 0; c < w.chunks; ++c) {
      for (int64_t s = 0; s < w.slots; ++s) {
        const auto places = Simd::places(p0, p1);
        const auto values = Simd::lanes(v0, v1);
        for (int r = 0; r < R; ++r) {
          const auto table = Simd::table(tables + (r * w.chunks + c) * kTable);
          Simd::fma(sums[r], values, Simd::lookup(table, places));
        }
        p0 += kLanes, p1 += kLanes, v0 += kLanes, v1 += kLanes;
      }
    }
    for (int r = 0; r < R; ++r) {
      Simd::store(lanes, lanes + kLanes, sums[r]);
      store_rows(w, t0, lanes, y + r * w.out);
      if (t1 != t0) store_rows(w, t1, lanes + kLanes, y + r * w.out);
    }
  }
}

void nm_lookup(const Nm& w, const float* tables, int64_t batch, const float* bias, float* y,
               int64_t begin, int64_t end) {
  const int64_t table = w.chunks * kTable;
  int64_t r = 0;
  for (; r + 4 <= batch; r += 4)
    nm_lookup_of<4>(w, tables + r * table, bias, y + r * w.out, begin, end);
  for (; r + 2 <= batch; r += 2)
    nm_lookup_of<2>(w, tables + r * table, bias, y + r * w.out, begin, end);
  if (r < batch) nm_lookup_of<1>(w, tables + r * table, bias, y + r * w.out, begin, end);
}

}  // namespace

const Kernels kKernels = {
    Simd::kName, kW,        kTileWidth, Simd::kCsrDotBatch, Simd::kNmLookupBatch, csr_dot, csr_tile,
    nm_tile,     nm_tables, nm_lookup,  activate,           transpose_in};

}  // namespace sparsewright::SPARSEWRIGHT_ISA
