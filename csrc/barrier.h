// Where the parts of one parallel region wait for each other.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>

namespace sparsewright {

inline constexpr int64_t kLine = 16;  // floats of a line of memory
inline constexpr int64_t kMostParts = 64;
inline constexpr int kSpins = 4 * 1024;  // looks at the barrier before the thread lets others run

inline void relax() {
#ifdef SPARSEWRIGHT_X86
  __builtin_ia32_pause();
#endif
}

// Where the parts of one stage wait for each other. All of them run at once, or some one after
// the other on the same thread. Each has a line of memory of its own to say how far it is: one
// that all write to goes from cache to cache as often as there are parts.
class Barrier {
 public:
  explicit Barrier(int64_t parts) : parts_(parts) {
    for (int64_t i = 0; i < parts; ++i) lines_[i].done.store(0, std::memory_order_relaxed);
  }
  // Parts [from, to) have done `stages`, and wait for all others.
  void arrive(int64_t from, int64_t to, int64_t stages) { arrive(from, to, stages, 0, parts_); }
  // The same, but they wait only for the parts [first, last).
  void arrive(int64_t from, int64_t to, int64_t stages, int64_t first, int64_t last) {
    for (int64_t i = from; i < to; ++i) lines_[i].done.store(stages, std::memory_order_release);
    for (int64_t i = first; i < last; ++i) {
      for (int spins = 0; lines_[i].done.load(std::memory_order_acquire) < stages; ++spins) {
        if (spins < kSpins)
          relax();
        else
          std::this_thread::yield();
      }
    }
  }

 private:
  struct alignas(4 * kLine) Line {
    std::atomic<int64_t> done;
  };
  Line lines_[kMostParts];
  const int64_t parts_;
};

}  // namespace sparsewright
