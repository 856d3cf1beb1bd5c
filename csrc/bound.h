// An op with all its arguments bound but the activations, so that a call hands over two arguments
// instead of ten. Torch takes every argument of a call out of Python, wraps it, and looks it up
// again: for a layer of some thousand weights that took as long as the product.
#pragma once
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "ops.h"

namespace sparsewright {

// (x, what is added to the output or nothing) -> y.
using Bound = std::function<Tensor(const Tensor&, const std::optional<Tensor>&)>;

class Stage;       // chain.h
class ConvBeside;  // conv_beside.h
class CodeLinear;  // code_linear.h

struct Product {
  Bound call;
  std::shared_ptr<const Stage> stage;                  // what a chain of products needs, or null
  bool of_matrix = true;                               // which can take its activations transposed
  std::shared_ptr<const ConvBeside> beside = nullptr;  // of images side by side
  std::function<void()> into = nullptr;                // from x to an output, both bound as well
  std::shared_ptr<const CodeLinear> code = nullptr;    // whose weight is code
};

// The product, its call by way of its stage where that serves.
Product product_of(Bound call, std::shared_ptr<const Stage> stage);

// Keeps a call, and with it the tensors that it holds, until `sparsewright_unbind` is given the
// same number.
int64_t keep(Product product);

// The one kept by that number.
std::shared_ptr<const Product> product(int64_t number);

// bind: the op's arguments but x -> the number of the call. kResidual: which of these is the
// residual, which comes with each call instead; -1 where the op takes none. kStage: the same
// arguments -> the product as a stage of a chain.
template <auto kOp, int kResidual = -1, auto kStage = nullptr>
struct Bind;
template <class... Rest, Tensor (*kOp)(const Tensor&, Rest...), int kResidual, auto kStage>
struct Bind<kOp, kResidual, kStage> {
  using Kept = std::tuple<std::decay_t<Rest>...>;

  static int64_t bind(Rest... rest) {
    Kept kept(rest...);
    if constexpr (kResidual >= 0)
      SW_CHECK(!std::get<kResidual>(kept), "a residual is an argument of each call, not bound");
    std::shared_ptr<const Stage> stage;
    if constexpr (!std::is_null_pointer_v<std::decay_t<decltype(kStage)>>) stage = kStage(rest...);
    Bound run = [kept = std::move(kept)](const Tensor& x, const std::optional<Tensor>& residual) {
      SW_CHECK(kResidual >= 0 || !residual, "a product with a matrix takes no residual");
      return call(x, residual, kept, std::index_sequence_for<Rest...>());
    };
    if (stage) return keep(product_of(std::move(run), std::move(stage)));
    return keep({std::move(run), nullptr, kResidual < 0});
  }

 private:
  template <size_t... kPlace>
  static Tensor call(const Tensor& x, const std::optional<Tensor>& residual, const Kept& kept,
                     std::index_sequence<kPlace...>) {
    return kOp(x, argument<kPlace>(residual, kept)...);
  }

  template <size_t kPlace>
  static const auto& argument(const std::optional<Tensor>& residual, const Kept& kept) {
    if constexpr (static_cast<int>(kPlace) == kResidual) {
      return residual;
    } else {
      return std::get<kPlace>(kept);
    }
  }
};

}  // namespace sparsewright
