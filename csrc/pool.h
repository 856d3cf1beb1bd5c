// Memory of large outputs, kept for the next call.
//
// glibc gives large blocks back to the system at once and fetches new ones, which the kernel fills
// with zeros page by page: for tens of megabytes that takes several times as long as computing
// them. Needs torch 2.11 (a tensor over memory of ours that tells us when it dies); an older torch
// allocates as it always does.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace sparsewright {

constexpr int64_t kPooledBytes = 1024 * 1024;  // smaller outputs are torch's own business

// An uninitialised contiguous float32 tensor over pooled memory, or null where torch must allocate
// it: it is small, or torch too old, or SPARSEWRIGHT_POOL_MIB is 0.
AtenTensorHandle pooled_output(const int64_t* shape, const int64_t* strides, int64_t dims,
                               int64_t floats);

// Bytes that lie in the pool unused.
int64_t pool_bytes();

}  // namespace sparsewright
