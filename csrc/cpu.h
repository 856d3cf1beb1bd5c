// Which instruction sets this CPU and its operating system run, and which one serves a call.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace sparsewright {

enum Isa : int64_t { kBest = 0, kIsaPortable = 1, kIsaAvx2 = 2, kIsaAvx512 = 3 };
// In place of an instruction set, of a product that is bound: its weight made code for as many rows
// of the batch side by side (csb_code.h). Else, and where that cannot be, they are as kBest.
constexpr int64_t kCode16 = 4, kCode8 = 5;

// Why an instruction set cannot serve here, or null.
const char* why_not(int64_t isa);

// The kernels of an instruction set; throws std::runtime_error with the reason where it cannot
// serve. kBest is the widest that this CPU has, capped by the environment's SPARSEWRIGHT_ISA.
const Kernels& kernels_for(int64_t isa);

// The instruction set that kBest means now.
int64_t best_isa();

}  // namespace sparsewright
