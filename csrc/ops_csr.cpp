// Products with weights in layout csr.
#include "chain.h"
#include "tiles.h"

namespace sparsewright {

Csr csr_of(const Tensor& rows, const Tensor& columns, const Tensor& values,
           const std::optional<Tensor>& scales, int64_t in) {
  Csr w = csr_places_of(rows, columns, in);
  SW_CHECK(values.dim() == 1 && values.size(0) == w.nnz,
           "values and columns must be two equally long rows of numbers; got ", values.numel(),
           " and ", w.nnz);
  w.values = values_of(values, scales, w.out);
  return w;
}

namespace {

// As kGrain, where vectors of activations come from a farther cache: four times as long, about.
constexpr int64_t kAcrossGrain = kGrain / 4;

// Rows shared out by their weights, not by their number.
void csr_small(const Kernels& k, const Csr& w, const Linear& l, std::atomic<bool>& fits) {
  const int64_t work = (w.nnz + w.out) * l.batch;
  const int64_t parts = parts_of(work, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
    const int64_t a = from == 0 ? 0 : row_at(w, w.nnz * from / parts);
    const int64_t b = to == parts ? w.out : row_at(w, w.nnz * to / parts);
    if (a < b && !k.csr_dot(w, l.x, l.batch, l.bias, l.y, a, b)) fits = false;
    for (int64_t r = 0; r < l.batch; ++r) k.activate(l.y + r * w.out + a, b - a, l.activation);
  });
}

// Activations that are transposed already, multiplied where they lie: as many vectors at a time as
// registers hold sums of, if so much of x fits a near cache; by threads that share rows of the
// weight.
void csr_across(const Kernels& k, const Csr& w, const Linear& l, std::atomic<bool>& fits) {
  int64_t widest = k.across_tile;
  while (widest > 4 * k.width && widest * l.in > kNearFloats) widest /= 2;
  const int64_t work = (w.nnz + w.out) * (l.batch / k.width);
  const int64_t threads = parts_of(work, torch::stable::get_num_threads(), kAcrossGrain);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
    const int64_t a = from == 0 ? 0 : row_at(w, w.nnz * from / threads);
    const int64_t b = to == threads ? w.out : row_at(w, w.nnz * to / threads);
    int64_t width = widest;
    for (int64_t first = 0; first < l.batch && a < b; first += width) {
      while (width > l.batch - first) width /= 2;
      const Across tile = {l.x + first, l.y + first, l.batch, l.bias, l.activation};
      if (!k.csr_across(w, tile, width, a, b)) fits = false;
    }
  });
}

}  // namespace

Tensor csr_linear(const Tensor& x, const Tensor& rows, const Tensor& columns, const Tensor& values,
                  const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                  int64_t activation, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  Csr w = csr_of(rows, columns, values, scales, 0);
  const int64_t out = w.out;
  Linear l = begin(x, bias, out, activation);
  w.in = l.in;
  if (l.batch == 0 || out == 0) return std::move(l.output);
  std::atomic<bool> fits{true};
  if (l.batch <= k.csr_dot_batch && !l.transposed) {
    csr_small(k, w, l, fits);
  } else if (l.transposed && l.batch % k.width == 0) {
    csr_across(k, w, l, fits);
  } else {
    const int64_t blocks = ceil_div(out, kRowBlock);
    over_tiles(k, l, out, Stored{}, blocks, w.nnz + out, [&](const Tile& tile, int64_t block) {
      const int64_t from = block * kRowBlock, to = std::min(out, from + kRowBlock);
      if (!k.csr_tile(w, tile, from, to)) fits = false;
    });
  }
  SW_CHECK(fits, "the packed weight has columns beyond the in_features of x, ", l.in,
           ", or rows that do not ascend");
  return std::move(l.output);
}

}  // namespace sparsewright
