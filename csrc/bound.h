// An op with all its arguments bound but the activations, so that a call hands over two arguments
// instead of ten. Torch takes every argument of a call out of Python, wraps it, and looks it up
// again: for a layer of some thousand weights that took as long as the product.
#pragma once
#include <functional>
#include <tuple>
#include <utility>

#include "ops.h"

namespace sparsewright {

// (x, what is added to the output or nothing) -> y.
using Bound = std::function<Tensor(const Tensor&, const std::optional<Tensor>&)>;

// Keeps a call, and with it the tensors that it holds, until `unbind` is given the same number.
int64_t keep(Bound call);

// bind: the op's arguments but x -> the number of the call. kResidual: which of these is the
// residual, which comes with each call instead; -1 where the op takes none.
template <auto kOp, int kResidual = -1>
struct Bind;
template <class... Rest, Tensor (*kOp)(const Tensor&, Rest...), int kResidual>
struct Bind<kOp, kResidual> {
  using Kept = std::tuple<std::decay_t<Rest>...>;

  static int64_t bind(Rest... rest) {
    Kept kept(rest...);
    if constexpr (kResidual >= 0)
      SW_CHECK(!std::get<kResidual>(kept), "a residual is an argument of each call, not bound");
    return keep([kept = std::move(kept)](const Tensor& x, const std::optional<Tensor>& residual) {
      SW_CHECK(kResidual >= 0 || !residual, "a product with a matrix takes no residual");
      return call(x, residual, kept, std::index_sequence_for<Rest...>());
    });
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
