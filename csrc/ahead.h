// What is needed soon, fetched into the second cache while something else is computed.
#pragma once
#include <algorithm>
#include <cstdint>

namespace sparsewright {

struct Ahead {
  const float* from = nullptr;
  int64_t floats = 0;
  int64_t lines() const { return (floats + 15) / 16; }
  void skip(int64_t lines) {
    lines = std::min(lines, this->lines());
    from += 16 * lines, floats -= 16 * lines;
  }
  void fetch(int64_t lines) {
    for (; lines > 0 && floats > 0; --lines, skip(1)) __builtin_prefetch(from, 0, 2);
  }
};

}  // namespace sparsewright
