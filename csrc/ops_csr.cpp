// Products with weights in layout csr.
#include "ops.h"

namespace sparsewright {
namespace {

// First row at or after which `target` weights lie before.
int64_t row_at(const Csr& w, int64_t target) {
  return std::lower_bound(w.rows, w.rows + w.out, target,
                          [](int32_t a, int64_t b) { return a < b; }) -
         w.rows;
}

// Rows shared out by their weights, not by their number.
void csr_small(const Kernels& k, const Csr& w, const Linear& l, std::atomic<bool>& fits) {
  const int64_t work = (w.nnz + w.out) * l.batch;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = std::clamp<int64_t>(work / kGrain, 1, std::max<int64_t>(threads, 1));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t from, int64_t to) {
    const int64_t a = from == 0 ? 0 : row_at(w, w.nnz * from / parts);
    const int64_t b = to == parts ? w.out : row_at(w, w.nnz * to / parts);
    if (a < b && !k.csr_dot(w, l.x, l.batch, l.bias, l.y, a, b)) fits = false;
    for (int64_t r = 0; r < l.batch; ++r) k.activate(l.y + r * w.out + a, b - a, l.activation);
  });
}

}  // namespace

Tensor csr_linear(const Tensor& x, const Tensor& rows, const Tensor& columns, const Tensor& values,
                  const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                  int64_t activation, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  check_tensor(rows, "rows", ScalarType::Int, "int32");
  const bool wide = columns.scalar_type() == ScalarType::Int;
  check_tensor(columns, "columns", wide ? ScalarType::Int : ScalarType::UInt16, "uint16 or int32");
  SW_CHECK(rows.dim() == 1 && rows.size(0) >= 1, "rows must have shape (out_features + 1,)");
  SW_CHECK(values.dim() == 1 && columns.dim() == 1 && values.size(0) == columns.size(0),
           "values and columns must be two equally long rows of numbers; got ", values.numel(),
           " and ", columns.numel());
  const int64_t out = rows.size(0) - 1;
  Linear l = begin(x, bias, out, activation);
  const Csr w = {static_cast<const int32_t*>(rows.const_data_ptr()),
                 columns.const_data_ptr(),
                 wide,
                 values_of(values, scales, out),
                 l.in,
                 out,
                 values.size(0)};
  SW_CHECK(w.rows[0] == 0 && w.rows[out] == w.nnz, "rows must run from 0 to the number of values, ",
           w.nnz, "; got ", w.rows[0], " to ", w.rows[out]);
  if (l.batch == 0 || out == 0) return std::move(l.output);
  std::atomic<bool> fits{true};
  if (l.batch <= k.csr_dot_batch) {
    csr_small(k, w, l, fits);
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
