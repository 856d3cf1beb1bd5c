// The kernels for one instruction set, compiled with its own flags (CMakeLists.txt).
#include "simd_avx2.h"
#define SPARSEWRIGHT_ISA avx2
#include "kernels.inl.h"
