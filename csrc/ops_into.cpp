// Products called past torch: x and the output bound as well, so that a call hands over one number.
// For a layer of a few thousand weights torch's way to an op, and memory for what it gives, take
// longer than the product.
#include "chain.h"

namespace sparsewright {
namespace {

void check_memory(const Tensor& t, const char* name) {
  check_tensor(t, name, ScalarType::Float, "float32");
  SW_CHECK(t.numel() == 0 || t.const_data_ptr(), name, " must have memory");
}

// across: x is (in_features, batch) and out (out_features, batch).
int64_t bind_into(int64_t number, const Tensor& x, const Tensor& out, bool across) {
  const std::shared_ptr<const Product> found = product(number);
  SW_CHECK(found->of_matrix, "only products with matrices write into memory that they are given");
  check_memory(x, "x");
  check_memory(out, "out");
  // Of the activations themselves: a kernel compares their width with the weight's where that costs
  // little, and relies on its caller otherwise.
  const size_t dims = x.sizes().size();
  SW_CHECK(dims >= 1, "x must have at least one dimension, (..., in_features)");
  const auto in_features = [across](const Tensor& t) {
    return t.sizes()[across ? 0 : t.sizes().size() - 1];
  };
  const int64_t in = in_features(x);
  const auto never = [](const Tensor&, const std::optional<Tensor>&) -> Tensor {
    fail("this product has its x and its output bound to it");
  };
  Product bound = {never, nullptr, false};
  bound.into = [=] {
    check_memory(x, "x");  // somebody may have changed them since
    check_memory(out, "out");
    SW_CHECK(x.sizes().size() == dims && in_features(x) == in, "x must keep its ", dims,
             " dimensions and its ", in, " in_features; got ", x.numel(), " numbers");
    const GivenOutput here(out);
    std::optional<TransposedCalls> columns;
    if (across) columns.emplace();
    found->call(x, std::nullopt);
    SW_CHECK(GivenOutput::taken(), "this product cannot write into memory that it is given");
  };
  return keep(std::move(bound));
}

std::string& why() {
  static thread_local std::string why;
  return why;
}

int into(int64_t number) {
  try {
    const std::shared_ptr<const Product> bound = product(number);
    SW_CHECK(bound->into, "the number ", number, " has no output bound to it");
    bound->into();
    return 0;
  } catch (const std::exception& error) {
    why() = error.what();
    return 1;
  }
}

}  // namespace
}  // namespace sparsewright

// 0 if the product bound to x and out was computed, else 1, and sparsewright_why says why not. Not
// an op: torch's way to one is what is saved.
extern "C" __attribute__((visibility("default"))) int sparsewright_into(int64_t number) {
  return sparsewright::into(number);
}

// Of the calling thread's last failure; valid until its next one.
extern "C" __attribute__((visibility("default"))) const char* sparsewright_why() {
  return sparsewright::why().c_str();
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def("bind_into(int number, Tensor x, Tensor out, bool across) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("bind_into", TORCH_BOX(&sparsewright::bind_into));
}
