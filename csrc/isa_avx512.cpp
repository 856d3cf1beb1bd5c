// The kernels for one instruction set, compiled with its own flags (CMakeLists.txt).
#include "simd_avx512.h"
#define SPARSEWRIGHT_ISA avx512
#include "kernels.inl.h"
