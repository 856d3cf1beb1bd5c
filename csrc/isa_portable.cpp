// The kernels for one instruction set, compiled with its own flags (CMakeLists.txt).
#include "simd_portable.h"
#define SPARSEWRIGHT_ISA portable
#include "kernels.inl.h"
