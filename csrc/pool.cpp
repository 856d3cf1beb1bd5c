#include "pool.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

// Torch 2.11 brought it; the binary is built for 2.10 and looks whether it is there.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout,
    const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* ctx), void* deleter_ctx);

namespace sparsewright {
namespace {

constexpr size_t kMiB = 1024 * 1024;
constexpr long long kMostMiB = 1 << 20;
constexpr size_t kHuge = 2 * kMiB;  // a huge page, for which alignment asks

class Pool {
 public:
  explicit Pool(size_t limit) : limit_(limit) {}

  // At least `bytes`, at most a quarter more than whole huge pages; *size is what it is.
  void* take(size_t bytes, size_t* size) {
    bytes = (bytes + kHuge - 1) / kHuge * kHuge;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = free_.lower_bound(bytes);
      if (found != free_.end() && found->first <= bytes + bytes / 4) {
        *size = found->first;
        void* data = found->second;
        held_ -= found->first;
        free_.erase(found);
        return data;
      }
    }
    *size = bytes;
    void* data = std::aligned_alloc(kHuge, bytes);
    if (data) madvise(data, bytes, MADV_HUGEPAGE);  // advice: where it fails, pages are small
    return data;
  }

  void give(void* data, size_t size) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (held_ + size <= limit_) {
      try {
        free_.emplace_hint(free_.lower_bound(size), size, data);  // the last one serves first
        held_ += size;
        return;
      } catch (...) {  // no memory for the entry: the block goes back to the system
      }
    }
    std::free(data);
  }

  size_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  size_t limit() const { return limit_; }

 private:
  std::mutex mutex_;
  std::multimap<size_t, void*> free_;  // of one size, the block that was last in use comes first
  size_t held_ = 0;
  const size_t limit_;
};

size_t limit_bytes() {
  const char* text = std::getenv("SPARSEWRIGHT_POOL_MIB");
  if (!text || !*text) return 256 * kMiB;
  char* end = nullptr;
  const long long mib = std::strtoll(text, &end, 10);
  if (*end || mib < 0 || mib > kMostMiB)
    throw std::runtime_error("SPARSEWRIGHT_POOL_MIB must be a whole number in [0, " +
                             std::to_string(kMostMiB) + "]; got '" + text + "'");
  return static_cast<size_t>(mib) * kMiB;
}

Pool& pool() {
  static Pool* const only = new Pool(limit_bytes());  // outlives every tensor
  return *only;
}

}  // namespace

AtenTensorHandle pooled_output(const int64_t* shape, const int64_t* strides, int64_t dims,
                               int64_t floats) {
  if (floats * 4 < kPooledBytes || !torch_from_blob || pool().limit() == 0) return nullptr;
  size_t size = 0;
  void* data = pool().take(static_cast<size_t>(floats) * 4, &size);
  if (!data) return nullptr;  // torch raises its own error
  AtenTensorHandle made = nullptr;
  constexpr int32_t kNoIndex = -1;  // of the CPU
  const auto back = [](void* memory, void* bytes) {
    pool().give(memory, reinterpret_cast<size_t>(bytes));
  };
  const AOTITorchError error =
      torch_from_blob(data, dims, shape, strides, 0, aoti_torch_dtype_float32(),
                      aoti_torch_device_type_cpu(), kNoIndex, &made, aoti_torch_layout_strided(),
                      nullptr, 0, back, reinterpret_cast<void*>(size));
  if (error != 0) {
    pool().give(data, size);
    return nullptr;
  }
  return made;
}

int64_t pool_bytes() { return static_cast<int64_t>(pool().held()); }

}  // namespace sparsewright
