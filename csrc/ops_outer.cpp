// The gradient of a Linear's present weights: dy[row] * x[column], summed over the batch.
#include <tuple>

#include "outer.h"
#include "tiles.h"

namespace sparsewright {
namespace {

// dy (..., out) and x (..., in) as matrices of as many rows.
struct Both {
  Tensor dy, x;
  int64_t batch, out, in;
  const float* dy_data() const { return static_cast<const float*>(dy.const_data_ptr()); }
  const float* x_data() const { return static_cast<const float*>(x.const_data_ptr()); }
};

Tensor plain(const Tensor& t, const char* name) {
  SW_CHECK(t.is_cpu() && t.scalar_type() == ScalarType::Float, name, " must be float32 on the CPU");
  SW_CHECK(t.dim() >= 1, name, " must have at least one dimension");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

Both both_of(const Tensor& dy, const Tensor& x) {
  Both b = {plain(dy, "dy"), plain(x, "x"), 1, 0, 0};
  const auto rows = [](const Tensor& t) {
    int64_t n = 1;
    for (int64_t i = 0; i + 1 < t.dim(); ++i) n *= t.size(i);
    return n;
  };
  b.batch = rows(b.x);
  SW_CHECK(rows(b.dy) == b.batch, "x and dy must hold as many rows; got ", b.batch, " and ",
           rows(b.dy));
  b.out = b.dy.size(b.dy.dim() - 1), b.in = b.x.size(b.x.dim() - 1);
  return b;
}

float* zeros(float* p, int64_t n) {
  std::fill_n(p, n, 0.0f);
  return p;
}

// Rows of the batch in a turn, and in a tile: narrower ones where a row of x and dy is very long.
struct Turns {
  int64_t most, rows;
  Turns(const Kernels& k, int64_t floats, int64_t batch) {
    most = std::clamp<int64_t>(kOuterFloats / floats / k.width, 1, k.tile / k.width) * k.width;
    rows = std::max<int64_t>(kOuterFloats / floats / most, 1) * most;
    rows = std::min(rows, ceil_div(batch, k.width) * k.width);
  }
};

}  // namespace

Tensor csb_outer(const Tensor& dy, const Tensor& x, const Tensor& starts, const Tensor& pairs,
                 const Tensor& columns, const Tensor& cuts, int64_t chunk, int64_t block,
                 int64_t isa) {
  const Kernels& k = kernels_for(isa);
  const Both b = both_of(dy, x);
  const Csb w = csb_places_of(starts, pairs, columns, b.in, b.out, chunk, block);
  const int32_t* cut = cuts_of(cuts, w);
  const int64_t shape[] = {cut[w.out * w.chunks]};
  Tensor output = new_output(shape, 1);
  float* out = static_cast<float*>(output.mutable_data_ptr());
  if (b.batch == 0 || w.blocks * w.chunks == 0) {
    zeros(out, shape[0]);
    return output;
  }
  Turned xt(b.x_data(), b.in, {w.chunk, kPlaces, kPlaces - 1, -1}, k.tile);
  // Rows beyond the last, which only fill pairs, are zeros; a block has one more of them.
  Turned dyt(b.dy_data(), b.out, {}, k.tile, w.blocks * w.block + 1);
  const Turns turns(k, xt.columns() + dyt.columns(), b.batch);
  xt.most = dyt.most = turns.most;
  xt.to = scratch(turns.rows * (xt.columns() + dyt.columns()) + kPlaces * k.tile);
  dyt.to = xt.to + turns.rows * xt.columns();
  for (int64_t first = 0; first < b.batch; first += turns.rows) {
    const int64_t batch = std::min(turns.rows, b.batch - first), tiles = ceil_div(batch, xt.most);
    xt.lay(k, first, batch);
    dyt.lay(k, first, batch);
    outer_turn(
        k, w, tiles, ceil_div(batch, k.width), {cut, out, first > 0}, nullptr,
        [&](int64_t t) { return std::tuple(xt.tile(t), dyt.tile(t), xt.width(k, t, batch)); });
  }
  return output;
}

Tensor csr_outer(const Tensor& dy, const Tensor& x, const Tensor& rows, const Tensor& columns,
                 int64_t isa) {
  const Kernels& k = kernels_for(isa);
  const Both b = both_of(dy, x);
  const Csr w = csr_places_of(rows, columns, b.in);
  SW_CHECK(w.out == b.out, "rows must have shape (", b.out + 1, ",); got ", w.out + 1, " entries");
  const int64_t shape[] = {w.nnz};
  Tensor output = new_output(shape, 1);
  float* out = zeros(static_cast<float*>(output.mutable_data_ptr()), w.nnz);
  if (b.batch == 0 || w.nnz == 0) return output;
  Turned xt(b.x_data(), b.in, {}, k.tile), dyt(b.dy_data(), b.out, {}, k.tile);
  const Turns turns(k, xt.columns() + dyt.columns(), b.batch);
  xt.most = dyt.most = turns.most;
  xt.to = scratch(turns.rows * (xt.columns() + dyt.columns()));
  dyt.to = xt.to + turns.rows * xt.columns();
  const int64_t parts = std::min(threads() * kPartsOfThread, b.out);
  std::atomic<bool> fits{true};
  for (int64_t first = 0; first < b.batch; first += turns.rows) {
    const int64_t batch = std::min(turns.rows, b.batch - first), tiles = ceil_div(batch, xt.most);
    xt.lay(k, first, batch);
    dyt.lay(k, first, batch);
    const int64_t work = (w.nnz + b.out) * ceil_div(batch, k.width);
    torch::stable::parallel_for(
        0, parts, ceil_div(kGrain, ceil_div(work, parts)), [&](int64_t from, int64_t end) {
          const int64_t begin = from == 0 ? 0 : row_at(w, w.nnz * from / parts);
          const int64_t last = end == parts ? w.out : row_at(w, w.nnz * end / parts);
          for (int64_t t = 0; t < tiles; ++t)
            if (!k.csr_outer(w, xt.tile(t), dyt.tile(t), xt.width(k, t, batch), begin, last, out))
              fits = false;
        });
  }
  SW_CHECK(fits, "the packed weight has columns beyond the in_features of x, ", b.in,
           ", or rows that do not ascend");
  return output;
}

}  // namespace sparsewright
