// What the torch ops share: checked arguments, scratch memory, the work shared out over torch's own
// threads.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu.h"
#include "given.h"
#include "kernels.h"
#include "pool.h"

// The error that torch raises as RuntimeError in Python, with a message for its user alone.
#define SW_CHECK(condition, ...) \
  if (!(condition)) [[unlikely]] \
  fail(__VA_ARGS__)

namespace sparsewright {

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
inline constexpr int64_t kGrain = 8 * 1024;
// What it costs to lay a vector of activations elsewhere, transposed or shifted, counted so.
inline constexpr int64_t kLayingCost = 8;
// Floats of transposed activations held at once: more rows of the batch come in turns.
inline constexpr int64_t kScratchFloats = 1024 * 1024;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many parts some work is worth, of `most` that may run at once; work counts as kGrain does.
inline int64_t parts_of(int64_t work, int64_t most, int64_t grain = kGrain) {
  return std::clamp<int64_t>(work / grain, 1, std::max<int64_t>(most, 1));
}

// Memory of the calling thread, kept between calls. A share of the work that needs some of its own
// takes `kShare`, and for sums in the order of the lanes `kSums`: on the calling thread they lie
// beside the op's.
constexpr int kOp = 0, kShare = 1, kSums = 2;
template <int kWhose = kOp>
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

inline void check_tensor(const Tensor& t, const char* name, ScalarType type,
                         const char* type_name) {
  SW_CHECK(t.is_cpu(), name, " must be on the CPU");
  SW_CHECK(t.scalar_type() == type, name, " must be ", type_name);
  SW_CHECK(t.is_contiguous(), name, " must be contiguous");
}

// Float32 or bfloat16 values, or int8 steps with a float32 scale for each of `out` rows.
inline Values values_of(const Tensor& values, const std::optional<Tensor>& scales, int64_t out) {
  const ScalarType type = values.scalar_type();
  const bool steps = type == ScalarType::Char, half = type == ScalarType::BFloat16;
  SW_CHECK(steps || half || type == ScalarType::Float,
           "values must be float32, bfloat16 or int8 with scales");
  check_tensor(values, "values", type, "of that type");
  SW_CHECK(steps == scales.has_value(), "int8 values need scales, and only they");
  const float* rows = nullptr;
  if (scales) {
    check_tensor(*scales, "scales", ScalarType::Float, "float32");
    SW_CHECK(scales->dim() == 1 && scales->size(0) == out, "scales must have shape (", out,
             ",); got ", scales->numel(), " entries in ", scales->dim(), " dimensions");
    rows = static_cast<const float*>(scales->const_data_ptr());
  }
  const Number number = steps ? Number::kInt8 : half ? Number::kBf16 : Number::kFloat;
  return {values.const_data_ptr(), number, rows};
}

inline Activation activation_of(int64_t number) {
  SW_CHECK(0 <= number && number <= 5,
           "activation must be 0 (none), 1 (relu), 2 (gelu), 3 (silu), 4 (relu6) or 5 (hardswish); "
           "got ",
           number);
  return static_cast<Activation>(number);
}

// While one lives, the products that this thread calls take their activations transposed and give
// them so: x (in, batch) -> (out, batch).
class TransposedCalls {
 public:
  TransposedCalls() : before_(on()) { on() = true; }
  ~TransposedCalls() { on() = before_; }
  TransposedCalls(const TransposedCalls&) = delete;
  static bool& on() {
    static thread_local bool on = false;
    return on;
  }

 private:
  bool before_;
};

// Rows of the batch and numbers in each, of activations with one dimension or more.
struct Extent {
  int64_t batch, in;
};
inline Extent extent_of(const Tensor& x) {
  const auto sizes = x.sizes();
  const int64_t in = sizes[TransposedCalls::on() ? 0 : sizes.size() - 1];
  return {in ? x.numel() / in : 0, in};
}

// What every Linear op has: activations as (batch, in), the output, the bias, what follows it.
struct Linear {
  std::optional<Tensor> input;  // the copy of x, where x itself was not contiguous
  Tensor output;
  const float* x;
  const float* bias;
  float* y;
  int64_t in, batch;
  Activation activation;
  bool transposed;  // x is (in, batch) and y (out, batch), of two rows of the batch or more
};

inline constexpr size_t kMaxDims = 64;  // as many as a tensor of torch has

// An empty contiguous float32 tensor. torch::stable::new_empty would look its operation up by
// name and box every argument at every call: several times the cost of the allocation.
inline Tensor new_output(const int64_t* shape, size_t dims) {
  int64_t strides[kMaxDims];
  int64_t stride = 1, floats = 1;
  for (size_t i = dims; i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
    floats *= shape[i];
  }
  if (AtenTensorHandle pooled = pooled_output(shape, strides, static_cast<int64_t>(dims), floats))
    return Tensor(pooled);
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dims), shape, strides,
                                                         aoti_torch_dtype_float32(),
                                                         aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// A shape as Python writes it.
inline std::string told(const int64_t* sizes, size_t dims) {
  std::string text = "(";
  for (size_t i = 0; i < dims; i++) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + (dims == 1 ? ",)" : ")");
}

// What was given for the output of a product, or memory of its own.
inline Tensor output_of(const int64_t* shape, size_t dims) {
  const Tensor* const given = GivenOutput::take();
  if (!given) return new_output(shape, dims);
  const auto sizes = given->sizes();
  SW_CHECK(sizes.size() == dims && std::equal(shape, shape + dims, sizes.begin()),
           "out must have the shape of the product, ", told(shape, dims), "; got ",
           told(sizes.data(), sizes.size()));
  return *given;
}

inline const float* bias_of(const std::optional<Tensor>& bias, int64_t out) {
  if (!bias) return nullptr;
  check_tensor(*bias, "bias", ScalarType::Float, "float32");
  SW_CHECK(bias->dim() == 1 && bias->size(0) == out, "bias must have shape (", out, ",); got ",
           bias->numel(), " entries in ", bias->dim(), " dimensions");
  return static_cast<const float*>(bias->const_data_ptr());
}

inline Linear begin(const Tensor& x, const std::optional<Tensor>& bias, int64_t out,
                    int64_t activation) {
  SW_CHECK(x.is_cpu(), "x must be on the CPU");
  SW_CHECK(x.scalar_type() == ScalarType::Float, "x must be float32");
  const auto sizes = x.sizes();
  const size_t dims = sizes.size();
  SW_CHECK(dims >= 1, "x must have at least one dimension, (..., in_features)");
  SW_CHECK(dims <= kMaxDims, "x must have at most ", kMaxDims, " dimensions; got ", dims);
  SW_CHECK(out >= 0, "out_features must not be negative; got ", out);
  const Activation then = activation_of(activation);
  const float* bias_data = bias_of(bias, out);
  int64_t shape[kMaxDims];
  int64_t batch = 1;
  const bool across = TransposedCalls::on();
  SW_CHECK(!across || dims == 2, "x must have shape (in_features, batch); got ", dims,
           " dimensions");
  const size_t last = across ? 0 : dims - 1;
  for (size_t i = 0; i < dims; ++i)
    if (i != last) batch *= shape[i] = sizes[i];
  const int64_t in = sizes[last];
  shape[last] = out;
  const bool transposed = across && batch > 1;  // one row lies as one column does
  Tensor output = output_of(shape, dims);
  float* y = static_cast<float*>(output.mutable_data_ptr());
  if (x.is_contiguous())
    return {std::nullopt,
            std::move(output),
            static_cast<const float*>(x.const_data_ptr()),
            bias_data,
            y,
            in,
            batch,
            then,
            transposed};
  Tensor input = torch::stable::contiguous(x);
  const float* data = static_cast<const float*>(input.const_data_ptr());
  return {std::move(input), std::move(output), data, bias_data, y, in, batch, then, transposed};
}

// The places of a weight in layout csb, their sizes checked; it has no values yet.
inline Csb csb_places_of(const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                         int64_t in, int64_t out, int64_t chunk, int64_t block) {
  check_tensor(starts, "starts", ScalarType::Int, "int32");
  check_tensor(pairs, "pairs", ScalarType::Int, "int32");
  check_tensor(columns, "columns", ScalarType::Byte, "uint8");
  SW_CHECK(columns.dim() == 2 && columns.size(1) == 2, "columns must have shape (steps, 2)");
  SW_CHECK(1 <= chunk && chunk < kPlaces, "chunk must be in [1, ", kPlaces - 1, "]; got ", chunk);
  SW_CHECK(1 <= block && block <= kMaxBlock, "block must be in [1, ", kMaxBlock, "]; got ", block);
  SW_CHECK(out >= 0, "out_features must not be negative; got ", out);
  const int64_t chunks = ceil_div(in, chunk), blocks = ceil_div(out, block);
  SW_CHECK(starts.dim() == 2 && starts.size(1) == 2 && starts.size(0) == blocks * chunks + 1,
           "starts must have shape (", blocks * chunks + 1, ", 2) for ", in, " in_features and ",
           out, " out_features; got ", starts.numel(), " entries");
  SW_CHECK(pairs.dim() == 1, "pairs must have one dimension");
  const Csb w = {{nullptr, Number::kFloat, nullptr},
                 static_cast<const uint8_t*>(columns.const_data_ptr()),
                 static_cast<const int32_t*>(pairs.const_data_ptr()),
                 static_cast<const int32_t*>(starts.const_data_ptr()),
                 in,
                 out,
                 chunk,
                 chunks,
                 block,
                 blocks};
  const int32_t* last = w.starts + 2 * blocks * chunks;
  SW_CHECK(last[0] == pairs.size(0) && last[1] == columns.size(0), "starts must end at ",
           pairs.size(0), " pairs and ", columns.size(0), " steps; got ", last[0], " and ",
           last[1]);
  return w;
}

// A weight in layout csb, its sizes checked.
inline Csb csb_of(const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                  const Tensor& values, const std::optional<Tensor>& scales, int64_t in,
                  int64_t out, int64_t chunk, int64_t block) {
  SW_CHECK(values.dim() == 2 && columns.dim() == 2 && values.size(1) == 2 && columns.size(1) == 2 &&
               values.size(0) == columns.size(0),
           "values and columns must have shape (steps, 2)");
  Csb w = csb_places_of(starts, pairs, columns, in, out, chunk, block);
  w.values = values_of(values, scales, out);
  return w;
}

// The places of a weight in layout csr, their sizes checked; it has no values yet.
inline Csr csr_places_of(const Tensor& rows, const Tensor& columns, int64_t in) {
  check_tensor(rows, "rows", ScalarType::Int, "int32");
  const bool wide = columns.scalar_type() == ScalarType::Int;
  check_tensor(columns, "columns", wide ? ScalarType::Int : ScalarType::UInt16, "uint16 or int32");
  SW_CHECK(rows.dim() == 1 && rows.size(0) >= 1, "rows must have shape (out_features + 1,)");
  SW_CHECK(columns.dim() == 1, "columns must have one dimension");
  const int64_t out = rows.size(0) - 1, nnz = columns.size(0);
  const Csr w = {static_cast<const int32_t*>(rows.const_data_ptr()),
                 columns.const_data_ptr(),
                 wide,
                 {nullptr, Number::kFloat, nullptr},
                 in,
                 out,
                 nnz};
  SW_CHECK(w.rows[0] == 0 && w.rows[out] == nnz, "rows must run from 0 to the number of values, ",
           nnz, "; got ", w.rows[0], " to ", w.rows[out]);
  return w;
}

// First row at or after which `target` weights lie before.
inline int64_t row_at(const Csr& w, int64_t target) {
  return std::lower_bound(w.rows, w.rows + w.out, target,
                          [](int32_t a, int64_t b) { return a < b; }) -
         w.rows;
}

}  // namespace sparsewright
