// A weight in layout csb as instructions of its own, for images that lie side by side: for every
// weight one multiply-add, whose sum is a register and whose activations are another one, loaded
// once for all rows that have their sums in registers.
//
// The kernels that read places from memory load the activations anew for every weight, and sums
// once for every chunk; both wait for the nearest cache. Code for one matrix is what LIBXSMM
// (Heinecke, Henry, Hutchinson and Pabst, 2016) writes for small ones.
#pragma once
#include <memory>
#include <vector>

#include "ahead.h"
#include "kernels.h"

namespace sparsewright {

// Memory that the processor may run, and nobody may write.
class Executable {
 public:
  // Null where the system does not allow it.
  static std::unique_ptr<const Executable> of(const std::vector<uint8_t>& code);
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;
  ~Executable();
  const uint8_t* at(int64_t offset) const { return memory_ + offset; }
  int64_t bytes() const { return static_cast<int64_t>(size_); }

 private:
  Executable() = default;
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
};

// Where the activations and sums of a tile lie, in floats. The activations of a column of the
// weight are shifts[column] behind one of several pointers, its tap's. Columns come in groups, of
// which every tap has a pointer of its own; rows in strips, of which each has its own output.
struct CodePlaces {
  std::vector<int64_t> ends;  // of the groups, in columns
  std::vector<int64_t> shifts;
  std::vector<int32_t> taps;
  int64_t step;             // from one output channel to the next
  int64_t strips = 1;       // of like numbers of rows, fewer where there are fewer rows
  int64_t align = 1;        // a multiple of which they begin at
  int64_t lanes = kBeside;  // activations side by side; or half as many
};

// A copy: what is written into the weight's values later does not change it.
class CsbCode {
 public:
  // Null where makes_code() says so, for activations other than ReLU, and weights that are nearly
  // dense, or too many (csb_code.cpp: kMostWeights, kMostCode).
  static std::unique_ptr<const CsbCode> of(const Csb& w, const CodePlaces& places, bool has_bias,
                                           Activation then);
  // Some of the rows, at as many places of the output as there are lanes: what lies behind the
  // taps, and residual (or null), to y, where the first row of the strip begins. The parts of a
  // group follow one another, and the groups of a strip; what one of these leaves in y the next one
  // reads. On its way it fetches so many lines (64 bytes) from `soon` on.
  struct Part {
    int64_t group;
    void (*run)(const float* const* taps, const float* values, float* y, const float* bias,
                const float* residual, const float* soon);
    const float* values;
    int64_t lines;
    Ahead all;  // the code and its values
  };
  const std::vector<Part>& parts() const { return parts_; }
  // Rows [begin, end), in the parts [first, last).
  struct Strip {
    int64_t begin, end;
    size_t first, last;
  };
  const std::vector<Strip>& strips() const { return strips_; }
  int64_t bytes() const { return code_->bytes(); }

 private:
  std::unique_ptr<const Executable> code_;
  std::vector<Part> parts_;
  std::vector<Strip> strips_;
};

// Why weights are not made code here: SPARSEWRIGHT_CODE is 0; the best instruction set is not
// AVX-512; this build or its system runs no code that a program writes; or the CPU is none on which
// it was measured to be faster (AMD), and SPARSEWRIGHT_CODE not 1.
enum class NoCode : int64_t { kNone, kOff, kNoAvx512, kForbidden, kUnasked };
NoCode why_no_code();
inline bool makes_code() { return why_no_code() == NoCode::kNone; }

}  // namespace sparsewright
