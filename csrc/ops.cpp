// The torch ops: they check every argument, share the work out over torch's own threads and call
// the kernels of the chosen instruction set. Indices are validated where a weight is packed or
// loaded; here only sizes are, and what bounds a row of csr.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu.h"
#include "kernels.h"

// The error that torch raises as RuntimeError in Python, with a message for its user alone.
#define SW_CHECK(condition, ...) \
  if (!(condition)) [[unlikely]] \
  fail(__VA_ARGS__)

namespace sparsewright {
namespace {

// Never inlined, so that a check costs a call no more than its comparison.
template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Fused multiply-adds, counted in vectors, below which a thread costs more than it brings.
constexpr int64_t kGrain = 16 * 1024;
// Floats of transposed activations held at once: more rows of the batch come in turns.
constexpr int64_t kScratchFloats = 1024 * 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of the calling thread, kept between calls.
float* scratch(int64_t floats) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  static thread_local std::unique_ptr<void, Free> memory;
  static thread_local int64_t size = 0;
  if (floats > size) {
    memory.reset();
    size = 0;
    const int64_t bytes = ceil_div(floats * 4, 64) * 64;
    memory.reset(std::aligned_alloc(64, static_cast<size_t>(bytes)));
    if (!memory) throw std::bad_alloc();
    size = floats;
  }
  return static_cast<float*>(memory.get());
}

void check_tensor(const Tensor& t, const char* name, ScalarType type, const char* type_name) {
  SW_CHECK(t.is_cpu(), name, " must be on the CPU");
  SW_CHECK(t.scalar_type() == type, name, " must be ", type_name);
  SW_CHECK(t.is_contiguous(), name, " must be contiguous");
}

// What both ops share: activations as (batch, in), the output, the bias.
struct Linear {
  std::optional<Tensor> input;  // the copy of x, where x itself was not contiguous
  Tensor output;
  const float* x;
  const float* bias;
  float* y;
  int64_t in, batch;
};

constexpr size_t kMaxDims = 64;  // as many as a tensor of torch has

// An empty contiguous float32 tensor. torch::stable::new_empty would look its operation up by
// name and box every argument at every call: several times the cost of the allocation.
Tensor new_output(const int64_t* shape, size_t dims) {
  int64_t strides[kMaxDims];
  int64_t stride = 1;
  for (size_t i = dims; i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dims), shape, strides,
                                                         aoti_torch_dtype_float32(),
                                                         aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

Linear begin(const Tensor& x, const std::optional<Tensor>& bias, int64_t out) {
  SW_CHECK(x.is_cpu(), "x must be on the CPU");
  SW_CHECK(x.scalar_type() == ScalarType::Float, "x must be float32");
  const auto sizes = x.sizes();
  const size_t dims = sizes.size();
  SW_CHECK(dims >= 1, "x must have at least one dimension, (..., in_features)");
  SW_CHECK(dims <= kMaxDims, "x must have at most ", kMaxDims, " dimensions; got ", dims);
  const float* bias_data = nullptr;
  if (bias) {
    check_tensor(*bias, "bias", ScalarType::Float, "float32");
    SW_CHECK(bias->dim() == 1 && bias->size(0) == out, "bias must have shape (", out, ",); got ",
             bias->numel(), " entries in ", bias->dim(), " dimensions");
    bias_data = static_cast<const float*>(bias->const_data_ptr());
  }
  int64_t shape[kMaxDims];
  int64_t batch = 1;
  for (size_t i = 0; i + 1 < dims; ++i) batch *= shape[i] = sizes[i];
  const int64_t in = sizes[dims - 1];
  shape[dims - 1] = out;
  Tensor output = new_output(shape, dims);
  float* y = static_cast<float*>(output.mutable_data_ptr());
  if (x.is_contiguous())
    return {std::nullopt,
            std::move(output),
            static_cast<const float*>(x.const_data_ptr()),
            bias_data,
            y,
            in,
            batch};
  Tensor input = torch::stable::contiguous(x);
  const float* data = static_cast<const float*>(input.const_data_ptr());
  return {std::move(input), std::move(output), data, bias_data, y, in, batch};
}

// body(tile, begin, end) over every row of the batch and block of rows of the weight; work counts
// multiply-adds of one row of the batch.
template <class Body>
void over_tiles(const Kernels& k, const Linear& l, int64_t out, int64_t work, const Body& body) {
  const int64_t in = std::max<int64_t>(l.in, 1);
  const int64_t turn = std::max<int64_t>(kScratchFloats / in / k.tile, 1) * k.tile;
  const int64_t padded = ceil_div(std::min(turn, l.batch), k.width) * k.width;
  // Room beyond the last column: a one-byte place of layout nm that nobody validated (x narrower
  // than the weight, inside its last chunk) still reads memory of ours.
  float* xt = scratch(padded * in + 256 * k.tile);
  const int64_t blocks = ceil_div(out, kRowBlock);
  for (int64_t first = 0; first < l.batch; first += turn) {
    const int64_t batch = std::min(turn, l.batch - first), tiles = ceil_div(batch, k.tile);
    const auto tile_of = [&](int64_t t) {
      const int64_t n = std::min(k.tile, batch - t * k.tile);
      return Tile{xt + t * k.tile * in, ceil_div(n, k.width) * k.width, n,
                  l.y + (first + t * k.tile) * out, l.bias};
    };
    constexpr int64_t kColumns = 64;  // columns that one work item transposes
    const int64_t parts = ceil_div(l.in, kColumns);
    const auto transpose = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const Tile tile = tile_of(i / parts);
        const int64_t column = i % parts * kColumns;
        k.transpose_in(l.x + (first + i / parts * k.tile) * l.in, l.in, tile.batch,
                       const_cast<float*>(tile.x), tile.width, column,
                       std::min(l.in, column + kColumns));
      }
    };
    torch::stable::parallel_for(0, tiles * parts, kGrain / kColumns, transpose);
    const int64_t per_item = std::max<int64_t>(work * ceil_div(batch, k.width) / tiles / blocks, 1);
    const auto multiply = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const int64_t row = i % blocks * kRowBlock;
        body(tile_of(i / blocks), row, std::min(out, row + kRowBlock));
      }
    };
    torch::stable::parallel_for(0, tiles * blocks, ceil_div(kGrain, per_item), multiply);
  }
}

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
  });
}

Tensor csr_linear(const Tensor& x, const Tensor& rows, const Tensor& columns, const Tensor& values,
                  const std::optional<Tensor>& bias, int64_t isa) {
  const Kernels& k = kernels_for(isa);
  check_tensor(rows, "rows", ScalarType::Int, "int32");
  check_tensor(values, "values", ScalarType::Float, "float32");
  const bool wide = columns.scalar_type() == ScalarType::Int;
  check_tensor(columns, "columns", wide ? ScalarType::Int : ScalarType::UInt16, "uint16 or int32");
  SW_CHECK(rows.dim() == 1 && rows.size(0) >= 1, "rows must have shape (out_features + 1,)");
  SW_CHECK(values.dim() == 1 && columns.dim() == 1 && values.size(0) == columns.size(0),
           "values and columns must be two equally long rows of numbers; got ", values.numel(),
           " and ", columns.numel());
  const int64_t out = rows.size(0) - 1;
  Linear l = begin(x, bias, out);
  const Csr w = {static_cast<const int32_t*>(rows.const_data_ptr()),
                 columns.const_data_ptr(),
                 wide,
                 static_cast<const float*>(values.const_data_ptr()),
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
    over_tiles(k, l, out, w.nnz + out, [&](const Tile& tile, int64_t from, int64_t to) {
      if (!k.csr_tile(w, tile, from, to)) fits = false;
    });
  }
  SW_CHECK(fits, "the packed weight has columns beyond the in_features of x, ", l.in,
           ", or rows that do not ascend");
  return std::move(l.output);
}

Tensor nm_linear(const Tensor& x, const Tensor& values, const Tensor& columns,
                 const std::optional<Tensor>& bias, int64_t out_features, int64_t chunk,
                 int64_t isa) {
  const Kernels& k = kernels_for(isa);
  check_tensor(values, "values", ScalarType::Float, "float32");
  check_tensor(columns, "columns", ScalarType::Byte, "uint8");
  const auto shape = values.sizes(), places = columns.sizes();
  SW_CHECK(shape.size() == 4 && shape[3] == kLanes,
           "values must have shape (tiles, chunks, slots, 16)");
  SW_CHECK(places.size() == 4 && std::equal(shape.begin(), shape.end(), places.begin()),
           "columns must have the shape of values");
  SW_CHECK(1 <= chunk && chunk <= 256, "chunk must be in [1, 256]; got ", chunk);
  SW_CHECK(out_features >= 0 && shape[0] == ceil_div(out_features, kLanes),
           "values must have one tile for every 16 of the ", out_features, " out_features; got ",
           shape[0]);
  Linear l = begin(x, bias, out_features);
  SW_CHECK(shape[1] == ceil_div(l.in, chunk), "values must have ", ceil_div(l.in, chunk),
           " chunks of ", chunk, " columns for the ", l.in, " in_features of x; got ", shape[1]);
  const Nm w = {static_cast<const float*>(values.const_data_ptr()),
                static_cast<const uint8_t*>(columns.const_data_ptr()),
                l.in,
                out_features,
                chunk,
                shape[0],
                shape[1],
                shape[2]};
  if (l.batch == 0 || out_features == 0) return std::move(l.output);
  const int64_t work = w.chunks * w.slots * w.tiles * kLanes + out_features;
  if (chunk <= kTable && l.batch <= k.nm_lookup_batch) {
    float* tables = scratch(l.batch * w.chunks * kTable);
    k.nm_tables(w, l.x, l.batch, tables);
    const int64_t pairs = ceil_div(w.tiles, 2);
    const int64_t per_pair = std::max<int64_t>(work / pairs * l.batch / k.width, 1);
    torch::stable::parallel_for(0, pairs, ceil_div(kGrain, per_pair), [&](int64_t a, int64_t b) {
      k.nm_lookup(w, tables, l.batch, l.bias, l.y, a, b);
    });
  } else {
    over_tiles(k, l, out_features, work,
               [&](const Tile& tile, int64_t from, int64_t to) { k.nm_tile(w, tile, from, to); });
  }
  return std::move(l.output);
}

// What `doctor` and the kernel table ask: 0 where the instruction set serves, else a reason's code.
int64_t isa_missing(int64_t isa) { return why_not(isa) ? 1 : 0; }

}  // namespace
}  // namespace sparsewright

STABLE_TORCH_LIBRARY(sparsewright, m) {
  m.def(
      "csr_linear(Tensor x, Tensor rows, Tensor columns, Tensor values, Tensor? bias, int isa) -> "
      "Tensor");
  m.def(
      "nm_linear(Tensor x, Tensor values, Tensor columns, Tensor? bias, int out_features, "
      "int chunk, int isa) -> Tensor");
  m.def("isa_missing(int isa) -> int");
  m.def("best_isa() -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("csr_linear", TORCH_BOX(&sparsewright::csr_linear));
  m.impl("nm_linear", TORCH_BOX(&sparsewright::nm_linear));
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CompositeExplicitAutograd, m) {
  m.impl("isa_missing", TORCH_BOX(&sparsewright::isa_missing));
  m.impl("best_isa", TORCH_BOX(&sparsewright::best_isa));
}
