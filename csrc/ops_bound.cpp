// Calls with bound arguments: kept by number, called by number.
#include <map>
#include <mutex>
#include <shared_mutex>

#include "chain.h"

namespace sparsewright {
namespace {

class Calls {
 public:
  int64_t add(Product product) {
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    calls_.emplace(++last_, std::make_shared<const Product>(std::move(product)));
    return last_;
  }

  // Shared: another thread may unbind it while it runs.
  std::shared_ptr<const Product> find(int64_t number) {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    const auto found = calls_.find(number);
    SW_CHECK(found != calls_.end(), "no call is bound to the number ", number);
    return found->second;
  }

  void remove(int64_t number) {
    std::shared_ptr<const Product> gone;  // its tensors are let go after the lock is
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    const auto found = calls_.find(number);
    if (found == calls_.end()) return;
    gone = std::move(found->second);
    calls_.erase(found);
  }

  int64_t count() {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    return static_cast<int64_t>(calls_.size());
  }

 private:
  std::shared_mutex mutex_;
  std::map<int64_t, std::shared_ptr<const Product>> calls_;
  int64_t last_ = 0;
};

Calls& calls() {
  static Calls* const only = new Calls;  // outlives every module of Python's
  return *only;
}

Tensor bound(int64_t number, const Tensor& x, const std::optional<Tensor>& residual) {
  return calls().find(number)->call(x, residual);
}

// x (in_features, batch) -> (out_features, batch).
Tensor bound_transposed(int64_t number, const Tensor& x) {
  const std::shared_ptr<const Product> found = calls().find(number);
  SW_CHECK(found->of_matrix, "only products with matrices take transposed activations");
  const TransposedCalls from_here_on;
  return found->call(x, std::nullopt);
}

int64_t bind_chain(std::vector<int64_t> numbers, bool one_region) {
  SW_CHECK(numbers.size() >= 2, "a chain has at least two products; got ", numbers.size());
  std::vector<std::shared_ptr<const Product>> products;
  for (const int64_t number : numbers) products.push_back(calls().find(number));
  return keep(chain_of(products, one_region));
}

int64_t bound_count() { return calls().count(); }

}  // namespace

int64_t keep(Product product) { return calls().add(std::move(product)); }

std::shared_ptr<const Product> product(int64_t number) { return calls().find(number); }

}  // namespace sparsewright

// No op: a call is let go whenever Python finds that nobody holds it, be it in the middle of
// somebody's trace, which would take an op for a part of what it traces.
extern "C" __attribute__((visibility("default"))) void sparsewright_unbind(int64_t number) {
  sparsewright::calls().remove(number);
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def("bound(int number, Tensor x, Tensor? residual=None) -> Tensor");
  m.def("bound_transposed(int number, Tensor x) -> Tensor");
  m.def("bind_chain(int[] numbers, bool one_region) -> int");
  m.def("bound_count() -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("bound", TORCH_BOX(&sparsewright::bound));
  m.impl("bound_transposed", TORCH_BOX(&sparsewright::bound_transposed));
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CompositeExplicitAutograd, m) {
  m.impl("bind_chain", TORCH_BOX(&sparsewright::bind_chain));
  m.impl("bound_count", TORCH_BOX(&sparsewright::bound_count));
}
