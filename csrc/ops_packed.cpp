// From the places of a topology to layout csb and back, without a dense matrix: the optimizer keeps
// values in row-major order, csb's kernels want them in csb's. A row's weights in one chunk lie
// together in both, from cuts[row * chunks + chunk] on and in two steps of one pair.
#include "ops.h"
#include "places.h"

namespace sparsewright {
namespace {

template <class T>
const T* data(const Tensor& t, const char* name, ScalarType type, const char* type_name) {
  check_tensor(t, name, type, type_name);
  return static_cast<const T*>(t.const_data_ptr());
}

const int32_t* ints(const Tensor& t, const char* name) {
  return data<int32_t>(t, name, ScalarType::Int, "int32");
}

// What a csb's cells have in common: first pair and step of each, where its weights begin.
struct Cells {
  const int32_t *starts, *pairs, *cuts;
  int64_t out, block, blocks, chunks, cells;
  int64_t steps() const { return starts[2 * cells + 1]; }
};

Cells cells_of(const Tensor& starts, const Tensor& pairs, const Tensor& cuts, int64_t out,
               int64_t block) {
  SW_CHECK(1 <= block && block <= kMaxBlock, "block must be in [1, ", kMaxBlock, "]; got ", block);
  const int32_t* s = ints(starts, "starts");
  const int32_t* p = ints(pairs, "pairs");
  const int32_t* c = ints(cuts, "cuts");
  const int64_t blocks = ceil_div(out, block), cells = starts.numel() / 2 - 1;
  SW_CHECK(cells >= 0 && (blocks == 0 ? cells == 0 : cells % blocks == 0),
           "starts must have an entry for every block and chunk, and one more; got ",
           starts.numel() / 2);
  const int64_t chunks = blocks == 0 ? 0 : cells / blocks;
  SW_CHECK(cuts.numel() == out * chunks + 1, "cuts must have ", out * chunks + 1, " entries; got ",
           cuts.numel());
  SW_CHECK(s[2 * cells] == pairs.numel(), "starts must end at ", pairs.numel(), " pairs; got ",
           s[2 * cells]);
  return {s, p, c, out, block, blocks, chunks, cells};
}

// write(place of the first step, step's length, row's first weight, its weights, chunk) for both
// rows of every pair, cells shared out over threads. A row that stands for none has no weights.
template <class Write>
void over_rows(const Cells& w, const Write& write) {
  const int64_t per_cell = std::max<int64_t>(w.steps() / std::max<int64_t>(w.cells, 1), 1);
  torch::stable::parallel_for(
      0, w.cells, ceil_div(4 * kGrain, per_cell), [&](int64_t from, int64_t end) {
        for (int64_t cell = from; cell < end; ++cell) {
          const int32_t* start = w.starts + 2 * cell;
          const int64_t chunk = cell % w.chunks, row = cell / w.chunks * w.block;
          int64_t step = start[1];
          for (int64_t p = start[0]; p < start[2]; ++p) {
            const uint32_t pair = static_cast<uint32_t>(w.pairs[p]);
            const int64_t steps = pair >> 16;
            for (int64_t side = 0; side < 2; ++side) {
              const int64_t local = pair >> 8 * side & 255;
              const bool some = local < w.block && row + local < w.out;
              const int32_t* cut = w.cuts + (some ? (row + local) * w.chunks + chunk : 0);
              write(2 * step + side, steps, cut[0], some ? cut[1] - cut[0] : 0, chunk);
            }
            step += steps;
          }
        }
      });
}

}  // namespace

// values (nnz) -> (steps, 2), zeros in the padding.
Tensor csb_fill(const Tensor& values, const Tensor& starts, const Tensor& pairs, const Tensor& cuts,
                int64_t out_features, int64_t block) {
  const Cells w = cells_of(starts, pairs, cuts, out_features, block);
  const float* from = data<float>(values, "values", ScalarType::Float, "float32");
  const int64_t nnz = w.cuts[w.out * w.chunks];
  SW_CHECK(values.numel() == nnz, "values must have ", nnz, " entries; got ", values.numel());
  const int64_t shape[] = {w.steps(), 2};
  Tensor output = new_output(shape, 2);
  float* to = static_cast<float*>(output.mutable_data_ptr());
  over_rows(w, [=](int64_t place, int64_t steps, int64_t first, int64_t count, int64_t) {
    float* p = to + place;
    for (int64_t i = 0; i < count; ++i) p[2 * i] = from[first + i];
    for (int64_t i = count; i < steps; ++i) p[2 * i] = 0.0f;
  });
  return output;
}

// values[order] in the shape of order, 0 where it is -1: the values of a weight whose order is that
// of another one (a transposed one, or all of which this is a part).
Tensor take(const Tensor& values, const Tensor& order) {
  constexpr int64_t kAhead = 64;  // places lie far apart, and no CPU foresees them
  const float* from = data<float>(values, "values", ScalarType::Float, "float32");
  const int32_t* of = ints(order, "order");
  const int64_t count = order.numel();
  SW_CHECK(count == 0 || values.numel() > 0, "there are no values to take");
  const auto sizes = order.sizes();
  Tensor output = new_output(sizes.data(), sizes.size());
  float* to = static_cast<float*>(output.mutable_data_ptr());
  torch::stable::parallel_for(0, count, 4 * kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      __builtin_prefetch(from + std::max(of[std::min(i + kAhead, count - 1)], 0));
      const float v = from[std::max(of[i], 0)];
      to[i] = of[i] < 0 ? 0.0f : v;
    }
  });
  return output;
}

// order (nnz) as `take` wants it for csb's places -> slots (steps, 2), -1 in the padding.
void csb_slots(const Tensor& order, const Tensor& starts, const Tensor& pairs, const Tensor& cuts,
               int64_t out_features, int64_t block, const Tensor& slots) {
  const Cells w = cells_of(starts, pairs, cuts, out_features, block);
  const int32_t* from = ints(order, "order");
  check_tensor(slots, "slots", ScalarType::Int, "int32");
  SW_CHECK(slots.numel() == 2 * w.steps() && order.numel() == w.cuts[w.out * w.chunks],
           "slots must have ", 2 * w.steps(), " entries and order ", w.cuts[w.out * w.chunks]);
  int32_t* to = static_cast<int32_t*>(slots.mutable_data_ptr());
  over_rows(w, [=](int64_t place, int64_t steps, int64_t first, int64_t count, int64_t) {
    int32_t* p = to + place;
    for (int64_t i = 0; i < count; ++i) p[2 * i] = from[first + i];
    for (int64_t i = count; i < steps; ++i) p[2 * i] = -1;
  });
}

// The place in its chunk of every weight of a topology, 255 in the padding -> places (steps, 2).
void csb_places(const Tensor& columns, const Tensor& starts, const Tensor& pairs,
                const Tensor& cuts, int64_t out_features, int64_t chunk, int64_t block,
                const Tensor& places) {
  const Cells w = cells_of(starts, pairs, cuts, out_features, block);
  check_tensor(places, "places", ScalarType::Byte, "uint8");
  SW_CHECK(places.numel() == 2 * w.steps(), "places must have ", 2 * w.steps(), " entries; got ",
           places.numel());
  SW_CHECK(columns.numel() == w.cuts[w.out * w.chunks], "cuts must end at ", columns.numel());
  uint8_t* to = static_cast<uint8_t*>(places.mutable_data_ptr());
  by_index(columns, [&](const auto* from) {
    over_rows(w, [=](int64_t place, int64_t steps, int64_t first, int64_t count, int64_t c) {
      uint8_t* p = to + place;
      for (int64_t i = 0; i < count; ++i)
        p[2 * i] = static_cast<uint8_t>(int64_t{from[first + i]} - c * chunk);
      for (int64_t i = count; i < steps; ++i) p[2 * i] = kPadding;
    });
  });
}

// Where the weights of every row and chunk begin, row after row -> cuts (out * chunks + 1).
void csb_cuts(const Tensor& starts, const Tensor& columns, int64_t chunk, const Tensor& cuts) {
  const int64_t* row = data<int64_t>(starts, "starts", ScalarType::Long, "int64");
  check_tensor(cuts, "cuts", ScalarType::Int, "int32");
  SW_CHECK(chunk >= 1 && starts.numel() >= 1, "chunk must be at least 1, starts not empty");
  const int64_t out = starts.numel() - 1, chunks = out ? (cuts.numel() - 1) / out : 0;
  SW_CHECK(cuts.numel() == out * chunks + 1, "cuts must have an entry for every row and chunk");
  SW_CHECK(row[0] == 0 && row[out] == columns.numel(), "starts must run from 0 to ",
           columns.numel());
  int32_t* to = static_cast<int32_t*>(cuts.mutable_data_ptr());
  by_index(columns, [&](const auto* from) {
    const auto some = [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        int64_t i = row[r];
        for (int64_t c = 0; c < chunks; ++c) {
          while (i < row[r + 1] && from[i] < c * chunk) ++i;
          to[r * chunks + c] = static_cast<int32_t>(i);
        }
      }
    };
    torch::stable::parallel_for(0, out, ceil_div(8 * kGrain * out, columns.numel() + 1), some);
  });
  to[out * chunks] = static_cast<int32_t>(row[out]);
}

// The places of the transposed weight, and which weight each one is; by counting.
void csr_transpose(const Tensor& starts, const Tensor& columns, const Tensor& starts_out,
                   const Tensor& columns_out, const Tensor& order) {
  const int64_t* row = data<int64_t>(starts, "starts", ScalarType::Long, "int64");
  check_tensor(starts_out, "starts_out", ScalarType::Long, "int64");
  const int64_t out = starts.numel() - 1, in = starts_out.numel() - 1, nnz = columns.numel();
  SW_CHECK(out >= 0 && in >= 0, "starts must not be empty");
  SW_CHECK(row[0] == 0 && row[out] == nnz, "starts must run from 0 to ", nnz);
  check_tensor(order, "order", ScalarType::Int, "int32");
  SW_CHECK(columns_out.numel() == nnz && order.numel() == nnz, "columns_out and order must have ",
           nnz, " entries");
  int64_t* to = static_cast<int64_t*>(starts_out.mutable_data_ptr());
  int32_t* of = static_cast<int32_t*>(order.mutable_data_ptr());
  std::fill_n(to, in + 1, 0);
  by_index(columns, [&](const auto* from) {
    for (int64_t i = 0; i < nnz; ++i) {
      SW_CHECK(from[i] < in, "a column must be below ", in, "; got ", from[i]);
      ++to[from[i] + 1];
    }
    for (int64_t c = 0; c < in; ++c) to[c + 1] += to[c];
    by_index(columns_out, [&](const auto* typed) {
      using Index = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
      Index* rows = static_cast<Index*>(columns_out.mutable_data_ptr());
      for (int64_t r = 0; r < out; ++r) {
        for (int64_t i = row[r]; i < row[r + 1]; ++i) {
          const int64_t at = to[from[i]]++;
          rows[at] = static_cast<Index>(r), of[at] = static_cast<int32_t>(i);
        }
      }
    });
  });
  for (int64_t c = in; c > 0; --c) to[c] = to[c - 1];  // every start has moved on by its row
  to[0] = 0;
}

}  // namespace sparsewright
