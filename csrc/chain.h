// Products one after the other as one call: a row of activations goes through all of them in one
// parallel region. Several small layers, each a region of its own, pay for three things that are
// not products: the call, the end of the region where the threads wait, and sums that lie spread
// over lines of memory which the next layer's threads fetch from each other's caches. For a batch
// (chain_tiles.h) there is a fourth: sums turned to rows, and turned back by the next layer.
#pragma once
#include <variant>
#include <vector>

#include "bound.h"
#include "slices.h"

namespace sparsewright {

Sell sell_of(const Tensor& starts, const Tensor& order, const Tensor& columns, const Tensor& values,
             const std::optional<Tensor>& scales, int64_t in, int64_t out_features);
Csr csr_of(const Tensor& rows, const Tensor& columns, const Tensor& values,
           const std::optional<Tensor>& scales, int64_t in);
Window window_of(const Tensor& starts, const Tensor& order, const Tensor& columns,
                 const Tensor& places, const Tensor& firsts, const Tensor& values,
                 const std::optional<Tensor>& scales, int64_t in, int64_t out);
Nm nm_of(const Tensor& values, const Tensor& columns, const std::optional<Tensor>& scales,
         int64_t in, int64_t out_features, int64_t chunk);

// A copy of rows of activations, a zero after each, that belongs to the calling thread: one which
// all threads share would have to come from the cache of the thread that made it.
inline const float* with_zero(const float* x, int64_t batch, int64_t in) {
  float* const copy = scratch<kShare>(batch * (in + 1));
  for (int64_t r = 0; r < batch; ++r) {
    std::copy_n(x + r * in, in, copy + r * (in + 1));
    copy[r * (in + 1) + in] = 0.0f;
  }
  return copy;
}

using Weight = std::variant<Sell, Csr, Csb, Nm, Window>;

// What it says of slices, where its rows lie in some; else null.
template <class AnyWeight>
auto* slices_in(AnyWeight& weight) {
  using Found = std::conditional_t<std::is_const_v<AnyWeight>, const Slices, Slices>;
  if (auto* w = std::get_if<Sell>(&weight)) return static_cast<Found*>(w);
  return static_cast<Found*>(std::get_if<Window>(&weight));
}

// A weight as its kernel takes it, with what is done to its sums.
struct Ready {
  const Kernels* k;
  Weight weight;
  const float* bias;
  Activation activation;
  int64_t out, work;  // multiply-adds, padding and ends of rows counted
  // Floats that its sums take: out, or more where they stay in the order of the lanes.
  int64_t room() const;
  // Of one row of activations, as kGrain counts.
  int64_t work_of_row() const {
    return std::holds_alternative<Window>(weight) ? looking_up(*k, work) : work;
  }
  // Sums of one row of activations: of `parts` equal parts, the one numbered `part`.
  void run(const float* x, float* y, int64_t part, int64_t parts, std::atomic<bool>& fits) const;
};

// A bound product that can be computed part by part.
class Stage {
 public:
  virtual ~Stage() = default;
  const Ready& ready() const { return ready_; }
  // Whether its tensors hold the memory that they held when they were bound: all that is checked
  // at every call. Where they do not, the op itself looks at them.
  bool is_current() const;
  // Whether a single row can go through it as part of a region: places, moved and Ready::run.
  virtual bool takes_a_row() const { return true; }
  // Whether the activations must lie in their own order, for which the stage before it sees.
  virtual bool takes_order() const { return false; }
  // Raises where its weight names a column beyond the `width` outputs of the stage before it.
  virtual void check(int64_t width) const = 0;
  // Where the sum of each row lies if they stay in the order of the lanes; of csr in their own.
  virtual std::vector<int64_t> places() const = 0;
  // The same product of activations that lie at `places`, with a zero at `end`; null where the
  // columns' type cannot name them, or where there are so many that one region saves nothing. One
  // that takes their own order gets no other.
  virtual std::shared_ptr<const Stage> moved(const std::vector<int64_t>& places,
                                             int64_t end) const = 0;

 protected:
  void hold(const Tensor& t) { held_.emplace_back(t, t.const_data_ptr()); }
  Ready ready_;

 private:
  std::vector<std::pair<Tensor, const void*>> held_;
};

bool all_current(const std::vector<std::shared_ptr<const Stage>>& stages);

std::shared_ptr<const Stage> sell_stage(const Tensor& starts, const Tensor& order,
                                        const Tensor& columns, const Tensor& values,
                                        const std::optional<Tensor>& scales,
                                        const std::optional<Tensor>& bias, int64_t out_features,
                                        int64_t activation, int64_t isa);
std::shared_ptr<const Stage> window_stage(const Tensor& starts, const Tensor& order,
                                          const Tensor& columns, const Tensor& places,
                                          const Tensor& firsts, const Tensor& values,
                                          const std::optional<Tensor>& scales,
                                          const std::optional<Tensor>& bias, int64_t in_features,
                                          int64_t out_features, int64_t activation, int64_t isa);
std::shared_ptr<const Stage> csr_stage(const Tensor& rows, const Tensor& columns,
                                       const Tensor& values, const std::optional<Tensor>& scales,
                                       const std::optional<Tensor>& bias, int64_t activation,
                                       int64_t isa);
std::shared_ptr<const Stage> csb_stage(const Tensor& starts, const Tensor& pairs,
                                       const Tensor& columns, const Tensor& values,
                                       const std::optional<Tensor>& scales,
                                       const std::optional<Tensor>& bias, int64_t out_features,
                                       int64_t chunk, int64_t block, int64_t activation,
                                       int64_t isa);
std::shared_ptr<const Stage> nm_stage(const Tensor& values, const Tensor& columns,
                                      const std::optional<Tensor>& scales,
                                      const std::optional<Tensor>& bias, int64_t out_features,
                                      int64_t chunk, int64_t activation, int64_t isa);

// The call of all of them, each fed with what the one before it gives.
Product chain_of(const std::vector<std::shared_ptr<const Product>>& products, bool one_region);

}  // namespace sparsewright
