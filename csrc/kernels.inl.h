// Every kernel of one instruction set, over its Simd struct. A translation unit per instruction set
// defines SPARSEWRIGHT_ISA (the namespace that holds Simd) and includes this file.
#include "beside.inl.h"
#include "block.inl.h"
#include "csb.inl.h"
#include "csb_beside.inl.h"
#include "csb_pixels.inl.h"
#include "csr.inl.h"
#include "depthwise.inl.h"
#include "mask.inl.h"
#include "max_pool.inl.h"
#include "nm.inl.h"
#include "outer.inl.h"
#include "sell.inl.h"
#include "window.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {

const Kernels kKernels = {
    .name = Simd::kName,
    .width = kW,
    .tile = kTileWidth,
    .pixels = kPixelVectors * kW,
    .csr_dot_batch = Simd::kCsrDotBatch,
    .nm_lookup_batch = Simd::kNmLookupBatch,
    .sell_dot_batch = Simd::kSellDotBatch,
    .window_dot_batch = Simd::kWindowDotBatch,
    .csr_dot = csr_dot,
    .csr_tile = csr_tile,
    .across_tile = Simd::kAcross * kW,
    .csr_across = csr_across,
    .nm_tile = nm_tile,
    .nm_tables = nm_tables,
    .nm_lookup = nm_lookup,
    .sell_dot = sell_dot,
    .sell_tile = sell_tile,
    .window_dot = window_dot,
    .window_tile = window_tile,
    .csb_tile = csb_tile,
    .csb_outer = csb_outer,
    .csr_outer = csr_outer,
    .every_second = every_second,
    .lay_tile = lay_tile,
    .csb_pixels = csb_pixels,
    .csb_beside = csb_beside,
    .depthwise_beside = depthwise_beside,
    .pick_beside = pick_beside,
    .block_lanes_batch = Simd::kBlockLanesBatch,
    .block_tile_rows = kBlockVectors * kW,
    .block_lanes = block_lanes,
    .block_tile = block_tile,
    .depthwise = depthwise,
    .max_pool = max_pool,
    .max_beside = max_beside,
    .activate = activate,
    .zero_where = zero_where,
    .transpose = transpose,
    .to_rows = to_rows,
    .transpose_in = transpose_in,
    .copy_in = copy_in,
};

}  // namespace sparsewright::SPARSEWRIGHT_ISA
