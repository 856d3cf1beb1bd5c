// Weights packed in layout csb: as layouts/csb.py packs them, cell after cell.
#include <numeric>

#include "packing.h"

namespace sparsewright {
namespace {

struct Cells {
  Matrix w;
  int64_t chunk, block;
  int64_t blocks() const { return ceil_div(w.out, block); }
  int64_t chunks() const { return ceil_div(w.in, chunk); }

  Cells(const Tensor& weight, int64_t columns, int64_t rows)
      : w(matrix_of(weight)), chunk(columns), block(rows) {
    SW_CHECK(1 <= chunk && chunk < kPlaces, "chunk must be in [1, ", kPlaces - 1, "]; got ", chunk);
    SW_CHECK(1 <= block && block <= kMaxBlock, "block must be in [1, ", kMaxBlock, "]; got ",
             block);
  }
};

// The rows of one block in one chunk, by ascending counts; an odd block has one more, without any.
struct Cell {
  const float* at;  // of the first row
  int64_t step, rows, width;
  int64_t even;
  Presence is_present;
  int32_t counts[kMaxBlock + 1];
  uint8_t ranked[kMaxBlock + 1];

  Cell(const Cells& c, int64_t number) {
    const int64_t b = number / c.chunks(), first = number % c.chunks() * c.chunk;
    at = c.w.row(b * c.block) + first;
    step = c.w.in;
    rows = std::min(c.block, c.w.out - b * c.block);
    width = std::min(c.chunk, c.w.in - first);
    even = c.block + c.block % 2;
    is_present = c.w.is_present;
    int32_t from[kPlaces + 1] = {};  // of each count, where its rows begin
    for (int64_t r = 0; r < even; ++r) {
      counts[r] = r < rows ? count_of(is_present, at + r * step, width) : 0;
      ++from[counts[r] + 1];
    }
    std::partial_sum(from, from + kPlaces + 1, from);
    for (int64_t r = 0; r < even; ++r) ranked[from[counts[r]]++] = static_cast<uint8_t>(r);
  }
  // Of the pair that begins at this rank.
  int32_t steps(int64_t rank) const {
    const int32_t most = counts[ranked[rank + 1]];
    return most + most % 2;
  }
  // Pairs that have weights, and steps.
  std::pair<int32_t, int32_t> totals() const {
    int32_t pairs = 0, all = 0;
    for (int64_t rank = 0; rank < even; rank += 2) pairs += steps(rank) > 0, all += steps(rank);
    return {pairs, all};
  }
  // Its row's weights, and padding, in every second place.
  void put(int64_t row, int32_t steps, uint8_t* places, float* values) const {
    const int32_t count = counts[row];
    const float* from = at + row * step;
    int32_t n = 0;
    for (int64_t c = 0; n < count && c < width; ++c) {
      values[2 * n] = from[c];
      places[2 * n] = static_cast<uint8_t>(c);
      n += is_present(from[c]);
    }
    for (; n < steps; ++n) values[2 * n] = 0.0f, places[2 * n] = kPlaces - 1;
  }
};

// starts (cells + 1, 2) and how many weights are present.
std::pair<Tensor, int64_t> csb_starts(const Cells& c) {
  const int64_t blocks = c.blocks(), chunks = c.chunks(), cells = blocks * chunks;
  Tensor starts = made({cells + 1, 2}, aoti_torch_dtype_int32());
  int32_t* const to = data<int32_t>(starts);
  to[0] = to[1] = 0;
  std::atomic<int64_t> present = 0;
  over(cells, c.block * c.chunk, [&](int64_t i) {
    const Cell cell(c, i);
    std::tie(to[2 * i + 2], to[2 * i + 3]) = cell.totals();
    present += std::accumulate(cell.counts, cell.counts + cell.even, int64_t{0});
  });
  for (int64_t i = 0; i < 2 * cells; ++i) to[i + 2] += to[i];
  return {starts, present};
}

// One lane of a pair: its weights come first, their places ascend within the chunk, then padding.
template <class IsPresent>
bool lane_holds(const IsPresent& is_present, const uint8_t* columns, int64_t at, int64_t steps,
                int64_t width) {
  int64_t before = -1;
  bool ended = false;
  for (int64_t i = at; i < at + 2 * steps; i += 2) {
    const int64_t place = columns[i];
    if (is_present(i)) {
      if (ended || place <= before || place >= width) return false;
      before = place;
    } else if (place != kPlaces - 1) {
      return false;
    } else {
      ended = true;
    }
  }
  return true;
}

template <class IsPresent>
bool cell_holds(const Csb& w, int64_t number, const IsPresent& is_present) {
  const int32_t* const from = w.starts + 2 * number;
  const int64_t first = number / w.chunks * w.block;
  const int64_t width = std::min(w.chunk, w.in - number % w.chunks * w.chunk);
  bool named[kMaxBlock] = {};
  int64_t step = from[1];
  for (int64_t pair = from[0]; pair < from[2]; ++pair) {
    const int32_t coded = w.pairs[pair];
    const int64_t steps = coded >> 16;
    if (coded < 0 || steps % 2 || step + steps > from[3]) return false;
    for (const int64_t lane : {0, 1}) {
      const int64_t row = coded >> (8 * lane) & 255;
      if (row > w.block || (row < w.block && std::exchange(named[row], true))) return false;
      const bool nowhere = row == w.block || first + row >= w.out;
      if (!lane_holds(is_present, w.columns, 2 * step + lane, steps, nowhere ? 0 : width))
        return false;
    }
    step += steps;
  }
  return step == from[3];
}

}  // namespace

// Whether starts, pairs, columns and values of these sizes keep the rules of layout csb.
bool csb_holds(const Tensor& starts, const Tensor& pairs, const Tensor& columns,
               const Tensor& values, int64_t in, int64_t out, int64_t chunk, int64_t block) {
  const Csb w = csb_places_of(starts, pairs, columns, in, out, chunk, block);
  SW_CHECK(values.dim() == 2 && values.size(1) == 2 && values.size(0) == columns.size(0),
           "values and columns must have shape (steps, 2)");
  SW_CHECK(values.is_contiguous(), "values must be contiguous");
  if (!ascend(w.starts, w.blocks * w.chunks + 1, 2)) return false;
  return by_values(values, [&](const auto& is_present) {
    return holds_of(w.blocks * w.chunks, w.block * w.chunk,
                    [&](int64_t i) { return cell_holds(w, i, is_present); });
  });
}

// Steps that layout csb needs, padding counted, and the weights that are present.
std::tuple<int64_t, int64_t> csb_steps(const Tensor& weight, int64_t chunk, int64_t block) {
  const Cells c(weight, chunk, block);
  const auto [starts, present] = csb_starts(c);
  return {data<int32_t>(starts)[starts.numel() - 1], present};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> csb_pack(const Tensor& weight, int64_t chunk,
                                                    int64_t block) {
  const Cells c(weight, chunk, block);
  Tensor starts = csb_starts(c).first;
  const int64_t cells = starts.size(0) - 1;
  const int32_t* const from = data<int32_t>(starts);
  const int64_t total = from[2 * cells + 1];
  Tensor pairs = made({from[2 * cells]}, aoti_torch_dtype_int32());
  Tensor columns = made({total, 2}, aoti_torch_dtype_uint8());
  Tensor values = made({total, 2}, aoti_torch_dtype_float32());
  const bool same = holds_of(cells, c.block * c.chunk, [&](int64_t i) {
    const Cell cell(c, i);
    if (cell.totals() !=
        std::pair(from[2 * i + 2] - from[2 * i], from[2 * i + 3] - from[2 * i + 1]))
      return false;
    int32_t* pair = data<int32_t>(pairs) + from[2 * i];
    int64_t step = from[2 * i + 1];
    for (int64_t rank = 0; rank < cell.even; rank += 2) {
      const int32_t steps = cell.steps(rank);
      if (steps == 0) continue;
      const int32_t a = cell.ranked[rank], b = cell.ranked[rank + 1];
      *pair++ = a | b << 8 | steps << 16;
      uint8_t* const places = data<uint8_t>(columns) + 2 * step;
      cell.put(a, steps, places, data<float>(values) + 2 * step);
      cell.put(b, steps, places + 1, data<float>(values) + 2 * step + 1);
      step += steps;
    }
    return true;
  });
  check_same(same);
  return {starts, pairs, columns, values};
}

}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def(
      "csb_holds(Tensor starts, Tensor pairs, Tensor columns, Tensor values, int in_features, int "
      "out_features, int chunk, int block) -> bool");
  m.def("csb_steps(Tensor weight, int chunk, int block) -> (int, int)");
  m.def("csb_pack(Tensor weight, int chunk, int block) -> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("csb_holds", TORCH_BOX(&sparsewright::csb_holds));
  m.impl("csb_steps", TORCH_BOX(&sparsewright::csb_steps));
  m.impl("csb_pack", TORCH_BOX(&sparsewright::csb_pack));
}
