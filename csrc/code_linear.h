// A product whose weight in layout csb is code (csb_code.h), for batches: 16 rows of the batch, or
// 8, lie side by side in a panel, column after column, and each part of the code multiplies one
// panel after the other while it is near.
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
                                              int64_t activation, int64_t lanes);
  Tensor operator()(const Tensor& x) const;
  int64_t code_bytes() const { return code_->bytes(); }
  int64_t lanes() const { return lanes_; }
  int64_t out() const { return out_; }
  // Multiply-adds of a row of the batch.
  int64_t work() const { return work_; }
  // Columns of a panel.
  int64_t columns() const { return chunks_ * chunk_; }
  // Whether activations of so many columns are the weight's.
  bool fits(int64_t in) const { return (in + chunk_ - 1) / chunk_ == chunks_; }

  // How work is shared out: groups of panels, each multiplied by so many parts of the weight.
  struct Shares {
    int64_t groups, parts;
  };
  Shares shares(int64_t in, int64_t panels, int64_t threads) const;
  // Panels, `x_step` floats after each other, times the rows of a strip: activated sums, of whose
  // panels each lies `y_step` floats after the one before.
  void multiply(const CsbCode::Strip& strip, const float* x, int64_t x_step, int64_t panels,
                float* y, int64_t y_step) const;
  const std::vector<CsbCode::Strip>& strips() const { return code_->strips(); }

 private:
  const Kernels* k_ = nullptr;
  std::unique_ptr<const CsbCode> code_;
  std::optional<Tensor> bias_;
  int64_t lanes_ = kBeside;
  int64_t chunk_ = 0, chunks_ = 0, out_ = 0, activation_ = 0;
  int64_t work_ = 0;
  int64_t most_rows_ = 0;  // of a strip
};

// Such products one after the other, whose sums are the panels of the next.
class CodeChain {
 public:
  CodeChain() = default;
  // Of none where one of them is null, or has not as many columns as the one before has rows.
  explicit CodeChain(std::vector<std::shared_ptr<const CodeLinear>> layers);
  // Whether threads that have panels of their own are shared out well.
  bool serves(int64_t batch, int64_t in) const;
  Tensor operator()(const Tensor& x) const;

 private:
  int64_t threads(int64_t panels, int64_t in) const;

  std::vector<std::shared_ptr<const CodeLinear>> layers_;
  int64_t columns_ = 0, work_ = 0;  // of the widest panel; of all layers
};

}  // namespace sparsewright
