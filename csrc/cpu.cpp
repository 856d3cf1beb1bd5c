#include "cpu.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace sparsewright {
namespace {

constexpr const char* kNames[] = {"best", "portable", "avx2", "avx512"};

#ifdef SPARSEWRIGHT_X86
// libgcc's answer covers CPUID and what the operating system saves (XGETBV).
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#ifndef SPARSEWRIGHT_EMULATE_AVX512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif
#endif

int64_t read_cap() {
  const char* text = std::getenv("SPARSEWRIGHT_ISA");
  if (!text || !*text) {
    for (int64_t isa = kIsaAvx512; isa > kIsaPortable; --isa)
      if (!why_not(isa)) return isa;
    return kIsaPortable;
  }
  for (int64_t isa = kIsaPortable; isa <= kIsaAvx512; ++isa) {
    if (std::string(text) != kNames[isa]) continue;
    if (why_not(isa))
      throw std::runtime_error("SPARSEWRIGHT_ISA=" + std::string(text) + ": " + why_not(isa));
    return isa;
  }
  throw std::runtime_error("SPARSEWRIGHT_ISA must be portable, avx2 or avx512; got '" +
                           std::string(text) + "'");
}

}  // namespace

const char* why_not(int64_t isa) {
#ifdef SPARSEWRIGHT_X86
  __builtin_cpu_init();
  if (isa == kIsaAvx2 && !has_avx2()) return "this CPU or its operating system has no AVX2 and FMA";
#ifdef SPARSEWRIGHT_EMULATE_AVX512
  if (isa == kIsaAvx512 && !has_avx2()) return "emulated AVX-512 needs AVX2 and FMA";
#else
  if (isa == kIsaAvx512 && !has_avx512())
    return "this CPU or its operating system has no AVX-512 (F, BW, VL, DQ)";
#endif
#else
  if (isa == kIsaAvx2 || isa == kIsaAvx512) return "this is not an x86-64 CPU";
#endif
  if (isa < kIsaPortable || isa > kIsaAvx512)
    return "isa must be 1 (portable), 2 (avx2) or 3 (avx512)";
  return nullptr;
}

int64_t best_isa() {
  static const int64_t best = read_cap();
  return best;
}

const Kernels& kernels_for(int64_t isa) {
  if (isa == kBest || isa == kCode16 || isa == kCode8) isa = best_isa();
  if (const char* reason = why_not(isa)) throw std::runtime_error(reason);
#ifdef SPARSEWRIGHT_X86
  if (isa == kIsaAvx2) return avx2::kKernels;
  if (isa == kIsaAvx512) return avx512::kKernels;
#endif
  return portable::kKernels;
}

}  // namespace sparsewright
