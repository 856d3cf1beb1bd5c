// The torch ops: they check every argument, share the work out over torch's own threads and call
// the kernels of the chosen instruction set. Indices are validated where a weight is packed or
// loaded; here only sizes are, and what bounds a row of csr.
#include "chain.h"

namespace sparsewright {

Tensor csr_linear(const Tensor& x, const Tensor& rows, const Tensor& columns, const Tensor& values,
                  const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                  int64_t activation, int64_t isa);
Tensor nm_linear(const Tensor& x, const Tensor& values, const Tensor& columns,
                 const std::optional<Tensor>& scales, const std::optional<Tensor>& bias,
                 int64_t out_features, int64_t chunk, int64_t activation, int64_t isa);

Tensor window_linear(const Tensor& x, const Tensor& starts, const Tensor& order,
                     const Tensor& columns, const Tensor& places, const Tensor& firsts,
                     const Tensor& values, const std::optional<Tensor>& scales,
                     const std::optional<Tensor>& bias, int64_t in_features, int64_t out_features,
                     int64_t activation, int64_t isa);
Tensor sell_linear(const Tensor& x, const Tensor& starts, const Tensor& order,
                   const Tensor& columns, const Tensor& values, const std::optional<Tensor>& scales,
                   const std::optional<Tensor>& bias, int64_t out_features, int64_t activation,
                   int64_t isa);
Tensor csb_linear(const Tensor& x, const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                  const Tensor& values, const std::optional<Tensor>& scales,
                  const std::optional<Tensor>& bias, int64_t out_features, int64_t chunk,
                  int64_t block, int64_t activation, int64_t isa);

Tensor block_linear(const Tensor& x, const Tensor& starts, const Tensor& columns,
                    const Tensor& values, const std::optional<Tensor>& scales,
                    const std::optional<Tensor>& bias, int64_t in_features, int64_t out_features,
                    int64_t activation, int64_t isa);

Tensor csb_conv2d(const Tensor& x, const Tensor& starts, const Tensor& pairs, const Tensor& columns,
                  const Tensor& values, const std::optional<Tensor>& scales,
                  const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                  int64_t out_features, int64_t chunk, int64_t block, int64_t kernel_h,
                  int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t padding_h,
                  int64_t padding_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                  int64_t activation, int64_t isa);

Tensor dense_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& residual, int64_t kernel_h, int64_t kernel_w,
                    int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
                    int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t activation,
                    int64_t isa);

Tensor csb_outer(const Tensor& dy, const Tensor& x, const Tensor& starts, const Tensor& pairs,
                 const Tensor& columns, const Tensor& cuts, int64_t chunk, int64_t block,
                 int64_t isa);
Tensor csb_conv2d_outer(const Tensor& dy, const Tensor& x, const Tensor& starts,
                        const Tensor& pairs, const Tensor& columns, const Tensor& cuts,
                        int64_t chunk, int64_t block, int64_t kernel_h, int64_t kernel_w,
                        int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
                        int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t isa);
Tensor csr_outer(const Tensor& dy, const Tensor& x, const Tensor& rows, const Tensor& columns,
                 int64_t isa);

Tensor csb_fill(const Tensor& values, const Tensor& starts, const Tensor& pairs, const Tensor& cuts,
                int64_t out_features, int64_t block);
Tensor take(const Tensor& values, const Tensor& order);
void csb_slots(const Tensor& order, const Tensor& starts, const Tensor& pairs, const Tensor& cuts,
               int64_t out_features, int64_t block, const Tensor& slots);
void csb_cuts(const Tensor& starts, const Tensor& columns, int64_t chunk, const Tensor& cuts);
void csb_places(const Tensor& columns, const Tensor& starts, const Tensor& pairs,
                const Tensor& cuts, int64_t out_features, int64_t chunk, int64_t block,
                const Tensor& places);
void csr_transpose(const Tensor& starts, const Tensor& columns, const Tensor& starts_out,
                   const Tensor& columns_out, const Tensor& order);

namespace {

// What `doctor` and the kernel table ask: 0 where the instruction set serves, else a reason's code.
int64_t isa_missing(int64_t isa) { return why_not(isa) ? 1 : 0; }

}  // namespace
}  // namespace sparsewright

// What every product takes but x: its op's own, and that which binds them (bound.h).
#define SW_PRODUCT(name, rest)                  \
  m.def(name "(Tensor x, " rest ") -> Tensor"); \
  m.def("bind_" name "(" rest ") -> int")

STABLE_TORCH_LIBRARY(sparsewright, m) {
  SW_PRODUCT("csr_linear",
             "Tensor rows, Tensor columns, Tensor values, Tensor? scales, Tensor? bias, int "
             "activation, int isa");
  SW_PRODUCT("nm_linear",
             "Tensor values, Tensor columns, Tensor? scales, Tensor? bias, int out_features, int "
             "chunk, int activation, int isa");
  SW_PRODUCT("sell_linear",
             "Tensor starts, Tensor order, Tensor columns, Tensor values, Tensor? scales, Tensor? "
             "bias, int out_features, int activation, int isa");
  SW_PRODUCT("window_linear",
             "Tensor starts, Tensor order, Tensor columns, Tensor places, Tensor firsts, Tensor "
             "values, Tensor? scales, Tensor? bias, int in_features, int out_features, int "
             "activation, int isa");
  SW_PRODUCT("csb_linear",
             "Tensor starts, Tensor pairs, Tensor columns, Tensor values, Tensor? scales, Tensor? "
             "bias, int out_features, int chunk, int block, int activation, int isa");
  SW_PRODUCT("block_linear",
             "Tensor starts, Tensor columns, Tensor values, Tensor? scales, Tensor? bias, int "
             "in_features, int out_features, int activation, int isa");
  SW_PRODUCT("csb_conv2d",
             "Tensor starts, Tensor pairs, Tensor columns, Tensor values, Tensor? scales, Tensor? "
             "bias, Tensor? residual, int out_features, int chunk, int block, int kernel_h, int "
             "kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, "
             "int dilation_w, int groups, int activation, int isa");
  SW_PRODUCT("dense_conv2d",
             "Tensor weight, Tensor? bias, Tensor? residual, int kernel_h, int kernel_w, int "
             "stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int "
             "dilation_w, int groups, int activation, int isa");
  m.def(
      "csb_outer(Tensor dy, Tensor x, Tensor starts, Tensor pairs, Tensor columns, Tensor cuts, "
      "int "
      "chunk, int block, int isa) -> Tensor");
  m.def(
      "csb_conv2d_outer(Tensor dy, Tensor x, Tensor starts, Tensor pairs, Tensor columns, Tensor "
      "cuts, int chunk, int block, int kernel_h, int kernel_w, int stride_h, int stride_w, int "
      "padding_h, int padding_w, int dilation_h, int dilation_w, int groups, int isa) -> Tensor");
  m.def("csr_outer(Tensor dy, Tensor x, Tensor rows, Tensor columns, int isa) -> Tensor");
  m.def(
      "csb_fill(Tensor values, Tensor starts, Tensor pairs, Tensor cuts, int out_features, int "
      "block) -> Tensor");
  m.def("take(Tensor values, Tensor order) -> Tensor");
  m.def(
      "csb_slots(Tensor order, Tensor starts, Tensor pairs, Tensor cuts, int out_features, int "
      "block, Tensor(a!) slots) -> ()");
  m.def("csb_cuts(Tensor starts, Tensor columns, int chunk, Tensor(a!) cuts) -> ()");
  m.def(
      "csb_places(Tensor columns, Tensor starts, Tensor pairs, Tensor cuts, int out_features, int "
      "chunk, int block, Tensor(a!) places) -> ()");
  m.def(
      "csr_transpose(Tensor starts, Tensor columns, Tensor(a!) starts_out, Tensor(b!) columns_out, "
      "Tensor(c!) order) -> ()");
  m.def("isa_missing(int isa) -> int");
  m.def("best_isa() -> int");
  m.def("pool_bytes() -> int");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("csr_linear", TORCH_BOX(&sparsewright::csr_linear));
  m.impl("bind_csr_linear",
         TORCH_BOX(
             (&sparsewright::Bind<&sparsewright::csr_linear, -1, &sparsewright::csr_stage>::bind)));
  m.impl("nm_linear", TORCH_BOX(&sparsewright::nm_linear));
  m.impl("bind_nm_linear",
         TORCH_BOX(
             (&sparsewright::Bind<&sparsewright::nm_linear, -1, &sparsewright::nm_stage>::bind)));
  m.impl("sell_linear", TORCH_BOX(&sparsewright::sell_linear));
  m.impl(
      "bind_sell_linear",
      TORCH_BOX(
          (&sparsewright::Bind<&sparsewright::sell_linear, -1, &sparsewright::sell_stage>::bind)));
  m.impl("window_linear", TORCH_BOX(&sparsewright::window_linear));
  m.impl("bind_window_linear", TORCH_BOX((&sparsewright::Bind<&sparsewright::window_linear, -1,
                                                              &sparsewright::window_stage>::bind)));
  m.impl("block_linear", TORCH_BOX(&sparsewright::block_linear));
  m.impl("bind_block_linear", TORCH_BOX((&sparsewright::Bind<&sparsewright::block_linear>::bind)));
  m.impl("csb_linear", TORCH_BOX(&sparsewright::csb_linear));
  m.impl("csb_conv2d", TORCH_BOX(&sparsewright::csb_conv2d));
  m.impl("bind_csb_conv2d", TORCH_BOX((&sparsewright::Bind<&sparsewright::csb_conv2d, 6>::bind)));
  m.impl("dense_conv2d", TORCH_BOX(&sparsewright::dense_conv2d));
  m.impl("bind_dense_conv2d",
         TORCH_BOX((&sparsewright::Bind<&sparsewright::dense_conv2d, 2>::bind)));
  m.impl("csb_outer", TORCH_BOX(&sparsewright::csb_outer));
  m.impl("csb_conv2d_outer", TORCH_BOX(&sparsewright::csb_conv2d_outer));
  m.impl("csr_outer", TORCH_BOX(&sparsewright::csr_outer));
  m.impl("csb_fill", TORCH_BOX(&sparsewright::csb_fill));
  m.impl("take", TORCH_BOX(&sparsewright::take));
  m.impl("csb_slots", TORCH_BOX(&sparsewright::csb_slots));
  m.impl("csb_cuts", TORCH_BOX(&sparsewright::csb_cuts));
  m.impl("csb_places", TORCH_BOX(&sparsewright::csb_places));
  m.impl("csr_transpose", TORCH_BOX(&sparsewright::csr_transpose));
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CompositeExplicitAutograd, m) {
  m.impl("isa_missing", TORCH_BOX(&sparsewright::isa_missing));
  m.impl("best_isa", TORCH_BOX(&sparsewright::best_isa));
  m.impl("pool_bytes", TORCH_BOX(&sparsewright::pool_bytes));
}
