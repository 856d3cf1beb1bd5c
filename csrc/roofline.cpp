// Two loops that do nothing but multiply-adds or reads, as fast as this CPU can: the limits that
// every kernel's time is held against (the roofline of Williams, Waterman and Patterson, 2009).
// They run on the widest instruction set of the machine, whatever SPARSEWRIGHT_ISA says.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>

#ifdef SPARSEWRIGHT_X86
#include <immintrin.h>
#endif

namespace sparsewright {
namespace {

using torch::stable::Tensor;

constexpr int64_t kSteps = 1024;  // multiply-adds of each accumulator in one round

std::atomic<float> sink;  // what the loops come to goes here, so that no compiler drops them
volatile float kFactor = 0.5f, kTerm = 0.25f;

// Independent sums: latency times rate of the units, and no more than there are registers.
constexpr int kFew = 8, kMany = 12, kMost = 24;

float fma_portable(int64_t rounds) {
  float sums[kFew] = {}, a = kFactor, b = kTerm;
  for (int64_t i = 0; i < rounds * kSteps; ++i)
    for (float& sum : sums) sum = sum * a + b;
  float all = 0;
  for (float sum : sums) all += sum;
  return all;
}

float read_portable(const float* x, int64_t n) {
  float sums[kFew] = {};
  for (int64_t i = 0; i + kFew <= n; i += kFew)
    for (int j = 0; j < kFew; ++j) sums[j] += x[i + j];
  float all = 0;
  for (float sum : sums) all += sum;
  return all;
}

#ifdef SPARSEWRIGHT_X86
__attribute__((target("avx2,fma"))) float fma_avx2(int64_t rounds) {
  __m256 sums[kMany], a = _mm256_set1_ps(kFactor), b = _mm256_set1_ps(kTerm);
  for (__m256& sum : sums) sum = b;
  for (int64_t i = 0; i < rounds * kSteps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kMany; ++j) sums[j] = _mm256_fmadd_ps(sums[j], a, b);
  }
  __m256 all = sums[0];
  for (int j = 1; j < kMany; ++j) all = _mm256_add_ps(all, sums[j]);
  return _mm256_cvtss_f32(all);
}

__attribute__((target("avx2,fma"))) float read_avx2(const float* x, int64_t n) {
  __m256 sums[kFew];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (int64_t i = 0; i + 8 * kFew <= n; i += 8 * kFew) {
#pragma GCC unroll 8
    for (int j = 0; j < kFew; ++j) sums[j] = _mm256_add_ps(sums[j], _mm256_loadu_ps(x + i + 8 * j));
  }
  __m256 all = sums[0];
  for (int j = 1; j < kFew; ++j) all = _mm256_add_ps(all, sums[j]);
  return _mm256_cvtss_f32(all);
}

__attribute__((target("avx512f"))) float fma_avx512(int64_t rounds) {
  __m512 sums[kMost], a = _mm512_set1_ps(kFactor), b = _mm512_set1_ps(kTerm);
  for (__m512& sum : sums) sum = b;
  for (int64_t i = 0; i < rounds * kSteps; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kMost; ++j) sums[j] = _mm512_fmadd_ps(sums[j], a, b);
  }
  __m512 all = sums[0];
  for (int j = 1; j < kMost; ++j) all = _mm512_add_ps(all, sums[j]);
  return _mm512_reduce_add_ps(all);
}

__attribute__((target("avx512f"))) float read_avx512(const float* x, int64_t n) {
  __m512 sums[kFew];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t i = 0; i + 16 * kFew <= n; i += 16 * kFew) {
#pragma GCC unroll 8
    for (int j = 0; j < kFew; ++j)
      sums[j] = _mm512_add_ps(sums[j], _mm512_loadu_ps(x + i + 16 * j));
  }
  __m512 all = sums[0];
  for (int j = 1; j < kFew; ++j) all = _mm512_add_ps(all, sums[j]);
  return _mm512_reduce_add_ps(all);
}
#endif

struct Loops {
  float (*fma)(int64_t rounds);
  int64_t lanes;  // multiply-adds of one step
  float (*read)(const float* x, int64_t n);
};

Loops widest() {
#ifdef SPARSEWRIGHT_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return {fma_avx512, 16 * kMost, read_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {fma_avx2, 8 * kMany, read_avx2};
#endif
  return {fma_portable, kFew, read_portable};
}

// Each of torch's threads runs `rounds` rounds; returns the floating-point operations of all.
double roofline_fma(int64_t rounds) {
  const Loops loops = widest();
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) sink = loops.fma(rounds);
  });
  return 2.0 * static_cast<double>(threads * rounds * kSteps * loops.lanes);
}

// Each of torch's threads reads its share of the block `rounds` times; returns the bytes of all.
double roofline_read(const Tensor& block, int64_t rounds) {
  if (!block.is_contiguous() || block.scalar_type() != torch::headeronly::ScalarType::Float)
    throw std::runtime_error("block must be contiguous float32");
  const Loops loops = widest();
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  const int64_t share = block.numel() / threads / 256 * 256;
  const float* x = static_cast<const float*>(block.const_data_ptr());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i)
      for (int64_t round = 0; round < rounds; ++round) sink = loops.read(x + i * share, share);
  });
  return 4.0 * static_cast<double>(threads * share * rounds);
}

}  // namespace
}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def("roofline_fma(int rounds) -> float");
  m.def("roofline_read(Tensor block, int rounds) -> float");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("roofline_read", TORCH_BOX(&sparsewright::roofline_read));
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CompositeExplicitAutograd, m) {
  m.impl("roofline_fma", TORCH_BOX(&sparsewright::roofline_fma));
}
