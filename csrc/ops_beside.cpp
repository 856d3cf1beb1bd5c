// Convolutions of images that lie side by side, several at once.
#include <vector>

#include "beside_chain.h"
#include "bound.h"
#include "code_linear.h"

namespace sparsewright {
namespace {

// The convolutions one after the other, tile by tile.
std::vector<Tensor> run(std::vector<std::shared_ptr<const ConvBeside>> stages, const Tensor& x,
                        const std::vector<Tensor>& residuals, const BesideChain::Bits& bits) {
  std::vector<std::unique_ptr<BesideChain>> chain;
  chain.push_back(std::make_unique<BesideChain>(
      std::move(stages), x, residuals, bits,
      [](const auto& shape) { return new_output(shape.data(), shape.size()); }));
  run_chains(chain, {chain[0]->step()});
  return chain[0]->outputs();
}

int64_t keep_conv(std::shared_ptr<const ConvBeside> conv) {
  Bound call = [conv](const Tensor& x, const std::optional<Tensor>& residual) {
    std::vector<Tensor> added;
    if (residual) added.push_back(*residual);
    return run({conv}, x, added, {residual ? 1 : 0, 1, 0})[0];
  };
  return keep({std::move(call), nullptr, false, conv});
}

int64_t bind_csb_conv2d_beside(const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                               const Tensor& values, const std::optional<Tensor>& scales,
                               const std::optional<Tensor>& bias, int64_t out_features,
                               int64_t chunk, int64_t block, int64_t kernel_h, int64_t kernel_w,
                               int64_t stride_h, int64_t stride_w, int64_t padding_h,
                               int64_t padding_w, int64_t dilation_h, int64_t dilation_w,
                               int64_t activation, int64_t channels, int64_t height, int64_t width,
                               int64_t images, int64_t threads, int64_t isa) {
  auto conv = std::make_shared<const ConvBeside>(
      starts, pairs, columns, values, scales, bias, out_features, chunk, block, kernel_h, kernel_w,
      stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, activation, channels,
      height, width, checked_spread(images, threads), isa);
  return keep_conv(std::move(conv));
}

int64_t bind_depthwise_beside(const Tensor& weight, const std::optional<Tensor>& bias,
                              int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                              int64_t stride_w, int64_t padding_h, int64_t padding_w,
                              int64_t dilation_h, int64_t dilation_w, int64_t activation,
                              int64_t channels, int64_t height, int64_t width, int64_t images,
                              int64_t threads, int64_t isa) {
  check_tensor(weight, "weight", ScalarType::Float, "float32");
  SW_CHECK(weight.dim() == 4 && weight.size(1) == 1 && weight.size(2) == kernel_h &&
               weight.size(3) == kernel_w,
           "weight must have shape (out, 1, ", kernel_h, ", ", kernel_w, ")");
  SW_CHECK(channels >= 1 && weight.size(0) % channels == 0, "each of ", channels,
           " channels must give as many of ", weight.size(0), " outputs");
  bias_of(bias, weight.size(0));
  return keep_conv(std::make_shared<const ConvBeside>(
      weight, bias, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, activation,
      channels, height, width, checked_spread(images, threads), isa));
}

std::vector<Tensor> beside_chain(const Tensor& x, std::vector<Tensor> residuals,
                                 std::vector<int64_t> numbers, int64_t adds, int64_t kept,
                                 int64_t over) {
  std::vector<std::shared_ptr<const ConvBeside>> stages;
  for (const int64_t number : numbers) stages.push_back(conv_of(number));
  return run(std::move(stages), x, residuals, {adds, kept, over});
}

int64_t number_of_why_no_code() { return static_cast<int64_t>(why_no_code()); }

// Of the weight's code and the values that it reads; 0 where there is none.
int64_t code_bytes(int64_t number) {
  const auto found = product(number);
  if (found->code) return found->code->code_bytes();
  return found->beside ? found->beside->code_bytes() : 0;
}

// That a call of beside_chain reads of the weights: their code, or their tensors.
int64_t weight_bytes(std::vector<int64_t> numbers) {
  int64_t bytes = 0;
  for (const int64_t number : numbers) bytes += conv_of(number)->weight_bytes();
  return bytes;
}

}  // namespace

}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def(
      "bind_csb_conv2d_beside(Tensor starts, Tensor pairs, Tensor columns, Tensor values, Tensor? "
      "scales, Tensor? bias, int out_features, int chunk, int block, int kernel_h, int kernel_w, "
      "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, "
      "int activation, int channels, int height, int width, int images, int threads, int isa) -> "
      "int");
  m.def(
      "bind_depthwise_beside(Tensor weight, Tensor? bias, int kernel_h, int kernel_w, int "
      "stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, int "
      "activation, int channels, int height, int width, int images, int threads, int isa) -> int");
  m.def(
      "beside_chain(Tensor x, Tensor[] residuals, int[] numbers, int adds, int kept, int over) -> "
      "Tensor[]");
  m.def("why_no_code() -> int");
  m.def("code_bytes(int number) -> int");
  m.def("weight_bytes(int[] numbers) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("bind_csb_conv2d_beside", TORCH_BOX(&sparsewright::bind_csb_conv2d_beside));
  m.impl("bind_depthwise_beside", TORCH_BOX(&sparsewright::bind_depthwise_beside));
  m.impl("beside_chain", TORCH_BOX(&sparsewright::beside_chain));
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CompositeExplicitAutograd, m) {
  m.impl("why_no_code", TORCH_BOX(&sparsewright::number_of_why_no_code));
  m.impl("code_bytes", TORCH_BOX(&sparsewright::code_bytes));
  m.impl("weight_bytes", TORCH_BOX(&sparsewright::weight_bytes));
}
