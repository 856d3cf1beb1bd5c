// What an instruction set offers: plain functions over plain pointers, so that no code of torch
// or of the standard library is ever compiled with an instruction set that the CPU may not have.
#pragma once
#include <cstdint>

// After the arguments of a lambda, which is then always inlined. GCC takes [[gnu::always_inline]]
// there without a word and without heed.
#define SW_INLINED __attribute__((always_inline))

namespace sparsewright {

// What a kernel applies to its sums before it stores them.
enum class Activation : int {
  kNone = 0,
  kRelu = 1,
  kGelu = 2,
  kSilu = 3,
  kRelu6 = 4,
  kHardswish = 5
};

// A float32 without its lower half.
struct Bf16 {
  uint16_t bits;
};

// The type of the stored values. It saves bytes alone: activations and sums are float32, so values
// are widened in registers. The instructions that multiply short numbers as they are
// (AVX512_BF16's vdpbf16ps, VNNI's vpdpbusd) want short activations too, which would cost accuracy
// that nobody asked to give up.
enum class Number : int { kFloat = 0, kBf16 = 1, kInt8 = 2 };

struct Values {
  const void* data;  // float, Bf16 or int8_t
  Number number;
  const float* scales;  // (out): a row's sum is multiplied by its scale, before the bias; or null
};

// Rows of present weights, ascending columns (DESIGN: layout csr).
struct Csr {
  const int32_t* rows;  // (out + 1)
  const void* columns;  // (nnz) uint16 or int32
  bool wide;            // columns are int32
  Values values;        // (nnz)
  int64_t in, out, nnz;
};

// 16 rows side by side; in every chunk of columns each row has `slots` places (layout nm).
// A slot of value 0 is padding: its place is 255 and no activation is read for it.
struct Nm {
  Values values;           // (tiles, chunks, slots, 16)
  const uint8_t* columns;  // same shape: place inside the chunk
  int64_t in, out, chunk, tiles, chunks, slots;
};

// 16 rows side by side, rows sorted by their counts. Padding has value 0.
struct Slices {
  const int32_t* starts;  // (slices + 1) first step of each slice
  const int32_t* order;   // (slices, 16) row of each lane, -1 where there is none
  const void* columns;    // uint16 or int32
  bool wide;              // columns are int32
  Values values;          // (steps, 16), but for Window's
  int64_t in, out, slices;
  // In floats, for a few rows of the batch: from one row of the activations to the next, from one
  // row of the sums to the next, and from one of a row's sums to the next.
  int64_t x_step, y_step, y_stride = 1;
  // Sums of one row of the batch stay in the order of the lanes, slices * 16.
  bool in_lanes = false;
};

// Layout sell: columns (steps, 16), of padding `in`, where the activations hold a zero; from one
// row of them to the next it is in + 1.
struct Sell : Slices {};

// Layout window: the columns that a step multiplies lie among the kWindow from the step's first on;
// columns (steps / kStepsOfWindow) holds those. Padding has place 255, of which a look-up takes the
// low bits: it finds some number in the window. x_step is `in`, or more where that is small.
// Its values have one dimension: step after step, lane after lane; `squeezed`, those of padding are
// left out.
struct Window : Slices {
  const uint8_t* places;  // (steps / kPlacesOfLane, 16, kPlacesOfLane) place inside the window
  const int32_t* firsts;  // (slices + 1) first value of each slice
  int64_t count;          // of values
  bool squeezed;
};

// Blocks of rows, chunks of columns, pairs of rows (layout csb). Padding has value 0 and place
// 255, which holds a zero.
struct Csb {
  Values values;           // (steps, 2)
  const uint8_t* columns;  // (steps, 2) place inside the chunk
  const int32_t* pairs;    // row of the block, its partner << 8, steps << 16
  const int32_t* starts;   // (blocks * chunks + 1, 2) first pair and first step
  int64_t in, out, chunk, chunks, block, blocks;
};

// Strips of 4, 8 or 16 rows (layout block). Strip s has steps [starts[2 s], starts[2 s + 1]) in
// which every row has a weight and, up to starts[2 s + 2], those in which some value is 0.
struct Block {
  const int32_t* starts;  // (2 * strips + 1)
  const void* columns;    // (steps) uint16 or int32, ascending in each of the two
  bool wide;              // columns are int32
  Values values;          // (steps, rows)
  int64_t in, out, rows, strips;
};

// One tile of the batch, transposed: column c of the activations lies at x + c * width. For layout
// csb every chunk has room for kPlaces columns, and the last of them holds zeros.
struct Tile {
  const float* x;
  int64_t width;  // a multiple of the vector width, at most kernels.tile
  int64_t batch;  // rows of the batch in it, <= width
  float* y;       // first output of the tile; a row of the batch is `out` further on
  const float* bias;
  Activation activation;
  // Where the sums go instead of y, or null: as columns, `step` floats from one to the next, of
  // which `count` are written. Those of the tile of the product that follows lie `piece` after
  // `piece`, each `stride` columns after the one before.
  float* next = nullptr;
  int64_t piece = 1, stride = 1, step = 0, count = 0;
};

// Activations and sums that both lie as columns, each `step` floats from one to the next.
struct Across {
  const float* x;
  float* y;
  int64_t step;
  const float* bias;
  Activation activation;
};

// Of images side by side: so many channels, each times weights (times, places) of its own.
struct DepthwiseBeside {
  // (vectors, places): what the first channel's outputs read; of the next one it is `step` floats
  // further on. Where it slides, the kernel is 3x3 and its stride 1: (3, vectors + 2), the columns.
  const float* const* from;
  bool slides;
  int64_t places, step, channels, times;
  const float* weights;
  const float* bias;      // or null
  const float* residual;  // or null
  float* y;               // kBeside * vectors of every output
  int64_t vectors;
  Activation activation;
};

// Positions of one image that lie together in a tile and in the output.
struct Segment {
  int64_t at, count, to;  // place in the tile, length, place in an output plane
};

// A tile of positions of one image's output. The activation of column c's weight at a position lies
// `shifts` further on (layout csb: kPlaces of them for every chunk, the last leads to zeros).
struct Pixels {
  const float* x;
  const int64_t* shifts;
  int64_t count;  // positions; beyond them x is not read where the activations are laid together
  int64_t width;  // count, or more: a multiple of the vector width, at most kernels.pixels
  const Segment* segments;
  int64_t segment_count;
  float* y;  // the image's output, one plane after the other; and what is added to it, or null
  const float* residual;
  int64_t plane;
  const float* bias;
  Activation activation;
  // Convolutions in groups: how much further on the shifts of each of the block's rows lie, and of
  // the row that stands for none. Null: all rows have the same.
  const int64_t* rows;
  // Where the activations of a chunk are laid together before the blocks use them, kPlaces *
  // width floats, or null: they are used where they lie.
  float* laid;
  float* sums;  // (w.block + 1) * width floats for each block
};

// Images, or patches of them, that lie side by side along the vector (beside.h).
constexpr int kBeside = 16;
// Most columns of a tile of theirs: images of many nets have sides of 7 times a power of two.
inline constexpr int kMostColumns = 7;

// Where the float of each of them lies, behind a place; -1: it is zero.
struct LanePlaces {
  int32_t of[kBeside];
  bool near;  // all are within the next kBeside floats
};

// Columns that are laid together. They lie `from` in channel 0; -1: they are zeros. The kBeside
// floats from there on or, where `which` is neither null nor below zero, those that picks[which]
// says.
struct LaidColumns {
  const int64_t* from;
  const int32_t* which;
  const LanePlaces* picks;
  const LanePlaces* pick(int64_t i) const {
    return which && which[i] >= 0 ? picks + which[i] : nullptr;
  }
};

// A tile of the output of many images that lie side by side.
struct Beside {
  const float* x;   // of channel 0, where the columns begin
  int64_t channel;  // floats from one channel to the next
  int64_t places;
  // What a chunk of the weight's columns reads is laid together: of each of its channels so many
  // columns. None: it is used where it lies.
  LaidColumns from;
  int64_t columns;
  const int64_t* shifts;  // as those of Pixels, into `laid`
  int64_t* table;         // of one chunk into x, where nothing is laid; its last place is written
  int64_t zeros;          // where in `laid` are `width` zeros
  int64_t width;          // floats of one output channel
  float* y;               // one output channel after the other; and what is added to it, or null
  const float* residual;
  const float* bias;
  Activation activation;
  float* laid;
  float* sums;         // (w.block + 1) * width floats for each block
  bool alike = false;  // both rows of every pair of the weight's rows read the same columns
  // What is needed soon, or null: so many bytes are fetched with every row of every chunk.
  const char* ahead = nullptr;
  int64_t ahead_bytes = 0;
};

// A convolution of planes, each with one kernel of weights of its own (depthwise).
//
// masks: for kernels and strides that `depthwise_is_usual`, else null; which lanes of every load
// lie in a row of x, (vectors of an output row, loads of each, width). zeros: a row of x.
// For others, in a padded row of `row` floats the columns of like remainder by the stride lie
// together, in `phases` parts, and those of weight kx at an output's column + shifts[kx]; `band`
// output rows are computed from as many such rows as fit the nearest cache.
struct Planes {
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h;
  Activation activation;
  const int32_t* masks;
  const float* zeros;
  int64_t row, phases, band;
  const int64_t* shifts;
};

constexpr bool depthwise_is_usual(int64_t kernel, int64_t stride) {
  return ((kernel == 3 || kernel == 5) && (stride == 1 || stride == 2)) ||
         (kernel == 7 && stride == 1);
}

// Of a row of x, for a vector of outputs: with stride two, two loads hold two weights' columns.
constexpr int64_t depthwise_loads(int64_t kernel, int64_t stride) {
  return stride == 1 ? kernel : (kernel + 1) / 2 * 2;
}

// Where a load begins, from the first column of the first output on.
constexpr int64_t depthwise_column(int64_t load, int64_t stride, int64_t width) {
  return stride == 1 ? load : load / 2 * 2 + load % 2 * width;
}

// Max pooling of planes.
struct MaxPool {
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
};

constexpr int kLanes = 16;         // rows side by side in layout nm
constexpr int kTable = 32;         // columns that the register look-up can hold
constexpr int kWindow = 32;        // and of those of a step of layout window
constexpr int kStepsOfWindow = 2;  // that have one window, whose activations are loaded once
constexpr int kPlacesOfLane = 4;   // of layout window, side by side in memory
static_assert(kPlacesOfLane % kStepsOfWindow == 0);
constexpr int kRowBlock = 64;  // output rows that one work item of the tiled kernels computes
constexpr uint8_t kPadding = 255;
constexpr int kPlaces = 256;    // places of a chunk of layout csb
constexpr int kNarrow = 65536;  // columns that uint16 can name, one of them for padding
constexpr int kMaxBlock = 128;  // most rows of a block of layout csb

// Layout block: most rows and strips that a work item computes, and the activations that it uses
// over and over before it goes on to others.
constexpr int64_t kBlockRows = 128;
constexpr int64_t kBlockStrips = kBlockRows / 4;
constexpr int64_t kBlockFloats = 12 * 1024;

// false means that an index of the weight does not fit the activations; nothing was read there.
struct Kernels {
  const char* name;
  int64_t width;             // floats in a vector
  int64_t tile;              // most rows of the batch in a Tile
  int64_t pixels;            // most positions in a tile of an image
  int64_t csr_dot_batch;     // largest batch for which csr_dot is ahead of the tiled kernel
  int64_t nm_lookup_batch;   // the same for nm_lookup
  int64_t sell_dot_batch;    // and for sell_dot
  int64_t window_dot_batch;  // and for window_dot
  // x (batch, in) times rows [begin, end).
  bool (*csr_dot)(const Csr&, const float* x, int64_t batch, const float* bias, float* y,
                  int64_t begin, int64_t end);
  // Rows [begin, end) of one tile.
  bool (*csr_tile)(const Csr&, const Tile&, int64_t begin, int64_t end);
  // The same of `width` rows of the batch: one, two, four or eight vectors, or across_tile.
  int64_t across_tile;
  bool (*csr_across)(const Csr&, const Across&, int64_t width, int64_t begin, int64_t end);
  void (*nm_tile)(const Nm&, const Tile&, int64_t begin, int64_t end);
  // x (batch, in) -> tables (batch, chunks, kTable), then pairs [begin, end) of 16-row tiles.
  void (*nm_tables)(const Nm&, const float* x, int64_t batch, float* tables);
  void (*nm_lookup)(const Nm&, const float* tables, int64_t batch, const float* bias, float* y,
                    int64_t begin, int64_t end);
  // Rows of x one element longer than `in` (a zero), slices [begin, end).
  void (*sell_dot)(const Sell&, const float* x, int64_t batch, const float* bias, float* y,
                   int64_t begin, int64_t end);
  void (*sell_tile)(const Sell&, const Tile&, int64_t slice);
  // Rows of x with kWindow floats at least, slices [begin, end).
  void (*window_dot)(const Window&, const float* x, int64_t batch, const float* bias, float* y,
                     int64_t begin, int64_t end);
  void (*window_tile)(const Window&, const Tile&, int64_t slice);
  void (*csb_tile)(const Csb&, const Tile&, int64_t block);
  // The gradient of weights: to the places of pairs [first, last), whose steps begin at `step`, add
  // the sums over one tile of dy[row] * x[column] to `sums` (four floats more than it has places).
  // x: the activations of the pairs' chunk; dy: the rows of their block; both as those of a Tile.
  // rows: how many columns further on those of each of the block's rows lie (groups), or null.
  void (*csb_outer)(const Csb&, const float* x, const float* dy, int64_t width, const int64_t* rows,
                    int64_t first, int64_t last, int64_t step, float* sums);
  // The same for rows [begin, end) of a csr; x and dy are those of all columns and rows.
  bool (*csr_outer)(const Csr&, const float* x, const float* dy, int64_t width, int64_t begin,
                    int64_t end, float* sums);
  void (*every_second)(const float* x, int64_t count, float* out);
  void (*lay_tile)(const Csb&, const float* x, const int64_t* shifts, int64_t count, int64_t width,
                   float* tile);
  // Blocks [begin, end) of one tile.
  void (*csb_pixels)(const Csb&, const Pixels&, int64_t begin, int64_t end);
  void (*csb_beside)(const Csb&, const Beside&, int64_t begin, int64_t end);
  void (*depthwise_beside)(const DepthwiseBeside&);
  // Of so many channels those floats behind x, as far apart as there.
  void (*pick_beside)(const float* x, int64_t channel, const LanePlaces&, int64_t channels,
                      float* to);
  // Strips [begin, end), at most kBlockStrips: of rows of the batch where they lie, of a tile.
  int64_t block_lanes_batch;  // largest batch for which block_lanes is ahead of the tiles; half
                              // of it where strips have fewer rows than a vector has floats
  int64_t block_tile_rows;    // most rows of the batch in a Tile for block_tile
  void (*block_lanes)(const Block&, const float* x, int64_t batch, const float* bias, float* y,
                      int64_t begin, int64_t end, Activation);
  void (*block_tile)(const Block&, const Tile&, int64_t begin, int64_t end);
  // One plane of x times (kernel_h, kernel_w) weights, plus residual if it is not null.
  void (*depthwise)(const Planes&, const float* x, const float* weights, float bias,
                    const float* residual, float* y, float* band);
  // The maxima of one plane's windows. row: its width, padding, and what vectors read beyond, all
  // of it the least of numbers; the padding stays so.
  void (*max_pool)(const MaxPool&, const float* x, float* y, float* row);
  // Of images side by side: of every channel and each of `columns` the greatest of `places` times
  // so many that lie `from` there, where they are not zeros, and of the least.
  void (*max_beside)(const float* x, int64_t channel, const LaidColumns& from, int64_t places,
                     int64_t columns, int64_t channels, float least, float* y);
  void (*activate)(float* y, int64_t n, Activation);
  void (*zero_where)(const float* from, const uint8_t* where, float* to, int64_t count);
  // y[c * y_step + r] = x[r * x_step + c]
  void (*transpose)(const float* x, int64_t x_step, int64_t rows, int64_t columns, float* y,
                    int64_t y_step);
  // y[r * y_step + i] = x[i * width + r], for `count` of the width (a multiple of the vector's).
  void (*to_rows)(const float* x, int64_t width, int64_t rows, int64_t count, float* y,
                  int64_t y_step);
  // Rows [0, batch) of x, columns [begin, end) -> column-major (in, width), zeros beyond batch.
  void (*transpose_in)(const float* x, int64_t in, int64_t batch, float* out, int64_t width,
                       int64_t begin, int64_t end);
  // The same of x transposed: its columns are `step` floats apart.
  void (*copy_in)(const float* x, int64_t step, int64_t batch, float* out, int64_t width,
                  int64_t begin, int64_t end);
};

namespace portable {
extern const Kernels kKernels;
}
#ifdef SPARSEWRIGHT_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

}  // namespace sparsewright
