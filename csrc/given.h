// Memory that a caller gives for the output of a product, instead of what torch would allocate.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <utility>

namespace sparsewright {

// While one lives, the next product that this thread computes writes into `output`.
class GivenOutput {
 public:
  explicit GivenOutput(const torch::stable::Tensor& output) { given() = &output; }
  ~GivenOutput() { given() = nullptr; }
  GivenOutput(const GivenOutput&) = delete;

  // What was given, for one product, or null.
  static const torch::stable::Tensor* take() { return std::exchange(given(), nullptr); }
  static bool taken() { return !given(); }

  // While one lives, products write into memory of their own: theirs are activations on the way.
  class NotYet {
   public:
    NotYet() : kept_(take()) {}
    ~NotYet() { given() = kept_; }
    NotYet(const NotYet&) = delete;

   private:
    const torch::stable::Tensor* kept_;
  };

 private:
  static const torch::stable::Tensor*& given() {
    static thread_local const torch::stable::Tensor* given = nullptr;
    return given;
  }
};

}  // namespace sparsewright
