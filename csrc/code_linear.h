// A product whose weight in layout csb is code (csb_code.h), for batches: sixteen rows of the batch
// lie side by side in a panel, column after column, and each part of the code multiplies one panel
// after the other while it is near.
#pragma once
#include <memory>
#include <optional>

#include "csb_code.h"
#include "tiles.h"

namespace sparsewright {

class CodeLinear {
 public:
  // Null where the weight is not made code.
  static std::shared_ptr<const CodeLinear> of(const Tensor& starts, const Tensor& pairs,
                                              const Tensor& columns, const Tensor& values,
                                              const std::optional<Tensor>& scales,
                                              const std::optional<Tensor>& bias,
                                              int64_t out_features, int64_t chunk, int64_t block,
                                              int64_t activation);
  Tensor operator()(const Tensor& x) const;
  int64_t code_bytes() const { return code_->bytes(); }

 private:
  // Groups of panels, each of them multiplied by so many parts of the weight.
  struct Shares {
    int64_t groups, parts;
  };
  struct Call;
  Shares shares(int64_t in, int64_t panels, int64_t threads) const;
  int64_t strips() const { return static_cast<int64_t>(code_->strips().size()); }
  // Panels [first, end) times strips [from, to).
  void multiply(const Call& call, int64_t first, int64_t end, int64_t from, int64_t to,
                float* sums) const;
  // Sums of one panel to rows of the batch, or to columns.
  void finish(const Call& call, int64_t panel, const CsbCode::Strip& strip, float* sums) const;

  const Kernels* k_ = nullptr;
  std::unique_ptr<const CsbCode> code_;
  std::optional<Tensor> bias_;
  int64_t chunk_ = 0, chunks_ = 0, out_ = 0, activation_ = 0;
  int64_t work_ = 0;        // multiply-adds of a row of the batch
  int64_t most_rows_ = 0;   // of a strip
  bool activated_ = false;  // by the code itself
};

}  // namespace sparsewright
