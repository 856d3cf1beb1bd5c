// Weights of a topology that leave, and others that come: which is where, where all are next, and
// whatever lies entry by entry beside them (values, gradients, optimizer state) in that order, in
// its own memory.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "ops.h"
#include "places.h"

namespace sparsewright {
namespace {

const int64_t* longs(const Tensor& t, const char* name) {
  check_tensor(t, name, ScalarType::Long, "int64");
  return static_cast<const int64_t*>(t.const_data_ptr());
}

const bool* bools(const Tensor& t, const char* name) {
  check_tensor(t, name, ScalarType::Bool, "bool");
  return static_cast<const bool*>(t.const_data_ptr());
}

// The places that a topology has next, row by row.
struct Next {
  int64_t rows, width;
  const int64_t* starts;
  const bool* gone;
  const int64_t* born;
  int64_t count;  // of born
  int64_t size;   // next
};

template <class Index>
void write_next(const Next& w, const Index* columns, int64_t* starts, Index* out, int32_t* at) {
  int64_t g = 0, to = 0;
  for (int64_t r = 0; r < w.rows; ++r) {
    starts[r] = to;
    const auto come = [&](int64_t below) {
      for (; g < w.count && w.born[g] < below; ++g) {
        SW_CHECK(w.born[g] >= r * w.width && (g == 0 || w.born[g] > w.born[g - 1]) && to < w.size,
                 "weights that come must ascend");
        at[g] = static_cast<int32_t>(to);
        out[to++] = static_cast<Index>(w.born[g] - r * w.width);
      }
    };
    for (int64_t i = w.starts[r]; i < w.starts[r + 1]; ++i) {
      if (w.gone[i]) continue;
      const int64_t place = r * w.width + columns[i];
      come(place);
      SW_CHECK(g == w.count || w.born[g] != place, "a weight comes where one stays: ", place);
      SW_CHECK(to < w.size, "starts must not descend");
      out[to++] = columns[i];
    }
    come((r + 1) * w.width);
  }
  starts[w.rows] = to;
  SW_CHECK(g == w.count && to == w.size, "weights that come must lie inside the weight");
}

template <class T>
void exchange(T* entries, int64_t count, const bool* gone, const int32_t* at, int64_t born,
              const T* fresh, bool alike) {
  int64_t stay = 0;
  for (int64_t i = 0; i < count; ++i) {
    entries[stay] = entries[i];
    stay += !gone[i];
  }
  int64_t end = stay + born;
  for (int64_t g = born - 1; g >= 0; --g) {  // what stays moves to the right, the last first
    const int64_t place = at[g], run = end - 1 - place;
    stay -= run;
    if (run > 16)
      std::memmove(entries + place + 1, entries + stay, static_cast<size_t>(run) * sizeof(T));
    else
      for (int64_t i = run; i-- > 0;) entries[place + 1 + i] = entries[stay + i];
    end = place;
    entries[place] = fresh[alike ? 0 : g];
  }
}

}  // namespace

// places (n) -> at (n): which weight lies there, -1 for none.
void find_places(const Tensor& starts, const Tensor& columns, const Tensor& places, int64_t width,
                 const Tensor& at) {
  const int64_t* start = starts_of(starts, columns);
  const int64_t *from = longs(places, "places"), rows = starts.numel() - 1;
  longs(at, "at");
  int64_t* to = static_cast<int64_t*>(at.mutable_data_ptr());
  const int64_t count = places.numel();
  SW_CHECK(at.numel() == count, "at must have ", count, " entries; got ", at.numel());
  for (int64_t i = 0; i < count; ++i)
    SW_CHECK(0 <= from[i] && from[i] < rows * width, "places must lie in [0, ", rows * width,
             "); got ", from[i]);
  by_index(columns, [&](const auto* typed) {
    torch::stable::parallel_for(0, count, kGrain, [=](int64_t begin, int64_t end) {
      int64_t row = 0, at = 0, before = 0;  // of the place before this one
      for (int64_t i = begin; i < end; ++i) {
        const int64_t place = from[i];
        if (i == begin || place < before || place >= (row + 1) * width)
          row = place / width, at = start[row];
        before = place;
        const int64_t column = place - row * width, last = start[row + 1];
        for (int near = 0; near < 8 && at < last && typed[at] < column; ++near) ++at;
        if (at < last && typed[at] < column)
          at = std::lower_bound(typed + at, typed + last, column) - typed;
        to[i] = at < last && typed[at] == column ? at : -1;
      }
    });
  });
}

// gone: of the weights that there are. born (n): places, ascending. Writes the next topology, and
// where in it the born ones are.
void exchange_places(const Tensor& starts, const Tensor& columns, const Tensor& gone,
                     const Tensor& born, int64_t width, const Tensor& starts_out,
                     const Tensor& columns_out, const Tensor& at) {
  const int64_t* start = starts_of(starts, columns);
  longs(starts_out, "starts_out");
  check_tensor(at, "at", ScalarType::Int, "int32");
  check_tensor(columns_out, "columns_out", columns.scalar_type(), "of the type of columns");
  SW_CHECK(gone.numel() == columns.numel() && at.numel() == born.numel() &&
               starts_out.numel() == starts.numel(),
           "gone must be of columns' size, at of born's and starts_out of starts'");
  const Next next{
      starts.numel() - 1, width, start, bools(gone, "gone"), longs(born, "born"), born.numel(),
      columns_out.numel()};
  by_index(columns, [&](const auto* typed) {
    using Index = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
    write_next(next, typed, static_cast<int64_t*>(starts_out.mutable_data_ptr()),
               static_cast<Index*>(columns_out.mutable_data_ptr()),
               static_cast<int32_t*>(at.mutable_data_ptr()));
  });
}

// The entries of the weights that stay, and at `at` those that are fresh: one for each, or one for
// all. In place: entries has room for as many as there are, and as there are next.
void exchange_entries(const Tensor& entries, const Tensor& gone, const Tensor& at,
                      const Tensor& fresh) {
  const bool* leaves = bools(gone, "gone");
  check_tensor(at, "at", ScalarType::Int, "int32");
  check_tensor(entries, "entries", entries.scalar_type(), "of one type");
  check_tensor(fresh, "fresh", entries.scalar_type(), "of entries' type");
  const int64_t count = gone.numel(), born = at.numel();
  const int64_t next = count - std::count(leaves, leaves + count, true) + born;
  SW_CHECK(entries.numel() >= std::max(count, next), "entries must have room for ",
           std::max(count, next), "; got ", entries.numel());
  SW_CHECK(fresh.numel() == 1 || fresh.numel() == born, "fresh must have 1 entry or ", born,
           "; got ", fresh.numel());
  const int32_t* places = static_cast<const int32_t*>(at.const_data_ptr());
  for (int64_t g = 0; g < born; ++g)
    SW_CHECK(
        g <= places[g] && places[g] < next - born + g + 1 && (g == 0 || places[g] > places[g - 1]),
        "at must ascend inside the weight");
  const auto as = [&](auto like) {
    using T = decltype(like);
    exchange(static_cast<T*>(entries.mutable_data_ptr()), count, leaves, places, born,
             static_cast<const T*>(fresh.const_data_ptr()), fresh.numel() == 1);
  };
  switch (entries.element_size()) {
    case 1:
      return as(uint8_t{});
    case 2:
      return as(uint16_t{});
    case 4:
      return as(uint32_t{});
    case 8:
      return as(uint64_t{});
    default:
      fail("entries must have 1, 2, 4 or 8 bytes; got ", entries.element_size());
  }
}

// Rows from `begin` on, as many as weight has: its values, zeros where none is, and where one is.
void show_rows(const Tensor& starts, const Tensor& columns, const Tensor& values, int64_t begin,
               int64_t width, const Tensor& weight, const Tensor& mask) {
  const int64_t* start = starts_of(starts, columns);
  check_tensor(values, "values", ScalarType::Float, "float32");
  check_tensor(weight, "weight", ScalarType::Float, "float32");
  bools(mask, "mask");
  const int64_t rows = width ? weight.numel() / width : 0;
  SW_CHECK(rows * width == weight.numel() && mask.numel() == weight.numel() && 0 <= begin &&
               begin + rows < starts.numel() && values.numel() == columns.numel(),
           "weight and mask must be whole rows, and values as many as columns");
  const float* from = static_cast<const float*>(values.const_data_ptr());
  float* to = static_cast<float*>(weight.mutable_data_ptr());
  bool* there = static_cast<bool*>(mask.mutable_data_ptr());
  std::fill_n(to, weight.numel(), 0.0f);
  std::fill_n(there, weight.numel(), false);
  by_index(columns, [&](const auto* typed) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = start[begin + r]; i < start[begin + r + 1]; ++i) {
        const int64_t place = r * width + typed[i];
        to[place] = from[i], there[place] = true;
      }
    }
  });
}

}  // namespace sparsewright

STABLE_TORCH_LIBRARY_FRAGMENT(sparsewright, m) {
  m.def(
      "find_places(Tensor starts, Tensor columns, Tensor places, int width, Tensor(a!) at) -> ()");
  m.def(
      "exchange_places(Tensor starts, Tensor columns, Tensor gone, Tensor born, int width, "
      "Tensor(a!) starts_out, Tensor(b!) columns_out, Tensor(c!) at) -> ()");
  m.def("exchange_entries(Tensor(a!) entries, Tensor gone, Tensor at, Tensor fresh) -> ()");
  m.def(
      "show_rows(Tensor starts, Tensor columns, Tensor values, int begin, int width, Tensor(a!) "
      "weight, Tensor(b!) mask) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(sparsewright, CPU, m) {
  m.impl("find_places", TORCH_BOX(&sparsewright::find_places));
  m.impl("exchange_places", TORCH_BOX(&sparsewright::exchange_places));
  m.impl("exchange_entries", TORCH_BOX(&sparsewright::exchange_entries));
  m.impl("show_rows", TORCH_BOX(&sparsewright::show_rows));
}
