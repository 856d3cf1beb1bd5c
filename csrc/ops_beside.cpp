// Convolutions of images that lie side by side, several at once.
#include <vector>

#include "bound.h"
#include "code_linear.h"
#include "conv_beside.h"

namespace sparsewright {
namespace {

constexpr size_t kMostStages = 32;

// The convolutions one after the other, tile by tile. Stage i adds the next of `residuals` where
// bit i of `adds` is set, gives its output where that of `kept` is, and writes it over what it adds
// where that of `over` is. All but the first are 1x1 at stride one.
std::vector<Tensor> run(const std::vector<std::shared_ptr<const ConvBeside>>& stages,
                        const Tensor& input, const std::vector<Tensor>& residuals, int64_t adds,
                        int64_t kept, int64_t over) {
  SW_CHECK(!stages.empty() && stages.size() <= kMostStages, "a chain has 1 to ", kMostStages,
           " convolutions; got ", stages.size());
  const Inside first = stages[0]->in(input);
  const Tensor x = input.is_contiguous() ? input : torch::stable::contiguous(input);
  std::vector<ConvBeside::Ready> ready;
  std::vector<Tensor> outputs;
  std::vector<float*> to(stages.size(), nullptr);
  std::vector<const float*> more(stages.size(), nullptr);
  size_t next = 0;
  int64_t memory = 0, tile = 0, work = 0;
  for (size_t i = 0; i < stages.size(); ++i) {
    const Inside in = i == 0 ? first : ready.back().out;
    SW_CHECK(in.channels == stages[i]->channels(), "convolution ", i, " of the chain takes ",
             stages[i]->channels(), " channels; got ", in.channels);
    SW_CHECK(i == 0 || (stages[i]->is_flat() && stages[i]->is_of(in)), "convolution ", i,
             " of the chain must be 1x1, at stride one, of ", in.images, " images of ", in.height,
             " rows and ", in.width, " columns, for ", in.threads, " threads");
    ready.push_back(stages[i]->ready(in));
    const ConvBeside::Ready& r = ready.back();
    const auto shape = r.out.shape();
    const auto bit = [i](int64_t bits) { return (bits >> i & 1) != 0; };
    std::optional<Tensor> added;
    if (bit(adds)) {
      SW_CHECK(next < residuals.size(), "more convolutions add something than there is");
      added = residuals[next++];
      const auto sizes = added->sizes();
      SW_CHECK(added->is_cpu() && added->scalar_type() == ScalarType::Float &&
                   added->dim() == static_cast<int64_t>(shape.size()) &&
                   std::equal(shape.begin(), shape.end(), sizes.begin()) && added->is_contiguous(),
               "what convolution ", i,
               " adds must be float32 on the CPU, contiguous, and have its output's shape");
      more[i] = static_cast<const float*>(added->const_data_ptr());
    }
    if (bit(kept) || i + 1 == stages.size()) {
      SW_CHECK(!bit(over) || added, "convolution ", i, " writes over nothing: it adds nothing");
      outputs.push_back(bit(over) ? *added : new_output(shape.data(), shape.size()));
      to[i] = static_cast<float*>(outputs.back().mutable_data_ptr());
    }
    memory = std::max(memory, r.memory());
    tile = std::max(tile, r.out.tile());
    work += (r.steps + r.out.channels) * (r.out.channel() / r.k.width);
  }
  const Inside& out = ready[0].out;
  if (out.in_all() == 0) return outputs;
  memory = ceil_div(memory, 16) * 16;
  const float* from = static_cast<const float*>(x.const_data_ptr());
  torch::stable::parallel_for(
      0, out.in_all(), ceil_div(kGrain, std::max<int64_t>(work, 1)), [&](int64_t a, int64_t b) {
        float* const mine = scratch<kShare>(memory + 2 * tile);
        ConvBeside::Around around;
        for (int64_t t = a; t < b; ++t) {
          const float* source = ready[0].laid ? from : from + t * first.tile();
          for (size_t i = 0; i < ready.size(); ++i) {
            const int64_t at = t * ready[i].out.tile();
            float* const y =
                to[i] ? to[i] + at : mine + memory + static_cast<int64_t>(i % 2) * tile;
            Ahead ahead;
            if (i == 0 && ready.size() > 1 && more[1])
              ahead = {more[1] + t * ready[1].out.tile(), ready[1].out.tile()};
            else if (i + 1 == ready.size() && t + 1 < b)
              ahead = ready[0].newest(from, t + 1);
            ready[i].tile(source, t, more[i] ? more[i] + at : nullptr, y, mine, around, ahead);
            source = y;
          }
        }
      });
  return outputs;
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
  Bound call = [conv](const Tensor& x, const std::optional<Tensor>& residual) {
    std::vector<Tensor> added;
    if (residual) added.push_back(*residual);
    return run({conv}, x, added, residual ? 1 : 0, 1, 0)[0];
  };
  return keep({std::move(call), nullptr, false, conv});
}

std::vector<Tensor> beside_chain(const Tensor& x, std::vector<Tensor> residuals,
                                 std::vector<int64_t> numbers, int64_t adds, int64_t kept,
                                 int64_t over) {
  std::vector<std::shared_ptr<const ConvBeside>> stages;
  for (const int64_t number : numbers) {
    stages.push_back(product(number)->beside);
    SW_CHECK(stages.back(), "call ", number, " is no convolution of images side by side");
  }
  return run(stages, x, residuals, adds, kept, over);
}

int64_t number_of_why_no_code() { return static_cast<int64_t>(why_no_code()); }

// Of the weight's code and the values that it reads; 0 where there is none.
int64_t code_bytes(int64_t number) {
  const auto found = product(number);
  if (found->code) return found->code->code_bytes();
  return found->beside ? found->beside->code_bytes() : 0;
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
      "beside_chain(Tensor x, Tensor[] residuals, int[] numbers, int adds, int kept, int over) -> "
      "Tensor[]");
  m.def("why_no_code() -> int");
  m.def("code_bytes(int number) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("bind_csb_conv2d_beside", TORCH_BOX(&sparsewright::bind_csb_conv2d_beside));
  m.impl("beside_chain", TORCH_BOX(&sparsewright::beside_chain));
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CompositeExplicitAutograd, m) {
  m.impl("why_no_code", TORCH_BOX(&sparsewright::number_of_why_no_code));
  m.impl("code_bytes", TORCH_BOX(&sparsewright::code_bytes));
}
