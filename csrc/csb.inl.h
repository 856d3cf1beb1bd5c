// Layout csb (compressed sparse blocks, after Buluç, Fineman, Frigo, Gilbert and Leiserson, 2009):
// a block of rows and a chunk of columns at a time, so that the activations of a chunk stay in the
// nearest cache; two rows of like counts side by side, so that a loop's end is rarely a surprise.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "tile.inl.h"

namespace sparsewright::SPARSEWRIGHT_ISA {
namespace {

// Where the activations of a place of a chunk begin, for the first row of a pair and the second:
// beside each other, as transpose_in lays them.
template <int V>
struct Columns {
  const float* x;
  Columns chunk(int64_t c) const { return {x + c * kPlaces * V * kW}; }
  const float* a(uint32_t place) const { return x + place * (V * kW); }
  const float* b(uint32_t place) const { return a(place); }
  const Columns& of(uint32_t, uint32_t) const { return *this; }
};

// Sums that wait in memory for the other chunks of the weight.
template <int V>
struct Waiting {
  float* sums;
  [[gnu::always_inline]] void load(int64_t row, Vec* v) const {
    const float* from = sums + row * (V * kW);
    each<V>([&](int i) SW_INLINED { v[i] = Simd::load(from + i * kW); });
  }
  [[gnu::always_inline]] void store(int64_t row, const Vec* v) const {
    float* to = sums + row * (V * kW);
    each<V>([&](int i) SW_INLINED { Simd::store(to + i * kW, v[i]); });
  }
};

static_assert(std::endian::native == std::endian::little);  // the first of four places comes last

template <int V>
[[gnu::always_inline]] inline void add(Vec* sums, Vec value, const float* x) {
  if constexpr (V >= 4) __asm__("" : "+r"(x));  // an index beside the base would cost each load
  each<V>([&](int v) SW_INLINED { sums[v] = Simd::fma(value, Simd::load(x + v * kW), sums[v]); });
}

// The same for two rows: what they read is loaded once.
template <int V>
[[gnu::always_inline]] inline void add_both(Vec* a, Vec* b, Vec value_a, Vec value_b,
                                            const float* x) {
  __asm__("" : "+r"(x));
  each<V>([&](int v) SW_INLINED {
    Vec read = Simd::load(x + v * kW);
    Simd::in_register(read);
    a[v] = Simd::fma(value_a, read, a[v]);
    b[v] = Simd::fma(value_b, read, b[v]);
  });
}

// Two rows, `steps` weights of each, an even number.
template <int V, class T, class Where, class Rows>
[[gnu::always_inline]] inline void csb_pair(const T* values, const uint8_t* places, int64_t steps,
                                            const Where& where, const Rows& rows, int64_t row_a,
                                            int64_t row_b) {
  // Narrow sums would wait for each other's fma: then every second step has sums of its own.
  constexpr int kSets = V <= 2 ? 2 : 1;
  Vec a[kSets][V], b[kSets][V];
  rows.load(row_a, a[0]);
  rows.load(row_b, b[0]);
  if constexpr (kSets == 2) each<V>([&](int v) SW_INLINED { a[1][v] = b[1][v] = Simd::zero(); });
  if constexpr (requires { Where::kAlike; }) {
    const T* const end = values + 2 * steps;
    for (; values < end; values += 4, places += 4) {
      const auto value = [&](int i) SW_INLINED { return Simd::broadcast(Simd::widen(values[i])); };
      add_both<V>(a[0], b[0], value(0), value(1), where.a(places[0]));
      add_both<V>(a[kSets - 1], b[kSets - 1], value(2), value(3), where.a(places[2]));
    }
    steps = 0;
  }
  for (int64_t i = 0; i < steps; i += 2) {
    const Simd::Four w = Simd::four(values + 2 * i);
    uint32_t four;  // places, by one load
    std::memcpy(&four, places + 2 * i, sizeof four);
    add<V>(a[0], Simd::spread4<0>(w), where.a(four & 255));
    add<V>(b[0], Simd::spread4<1>(w), where.b(four >> 8 & 255));
    add<V>(a[kSets - 1], Simd::spread4<2>(w), where.a(four >> 16 & 255));
    add<V>(b[kSets - 1], Simd::spread4<3>(w), where.b(four >> 24));
  }
  if constexpr (kSets == 2) {
    each<V>([&](int v) SW_INLINED {
      a[0][v] = Simd::add(a[0][v], a[1][v]);
      b[0][v] = Simd::add(b[0][v], b[1][v]);
    });
  }
  rows.store(row_a, a[0]);
  rows.store(row_b, b[0]);
}

// Those rows of a block that have weights in a chunk. By value and not inlined: no store of a sum
// may change where the others lie, so nothing of it is read again.
template <int V, class T, class Where, class Rows>
[[gnu::noinline]] void csb_chunk(const Csb& w, int64_t block, int64_t chunk, Where where,
                                 Rows rows) {
  const int32_t* start = w.starts + 2 * (block * w.chunks + chunk);
  const T* values = values_of<T>(w.values) + 2 * int64_t{start[1]};
  const uint8_t* places = w.columns + 2 * int64_t{start[1]};
  const int64_t all = 2 * int64_t{w.starts[2 * w.blocks * w.chunks + 1]};
  const bool is_far = all * static_cast<int64_t>(sizeof(T)) > kFar;
  const int32_t* const end = w.pairs + start[2];
  for (const int32_t* p = w.pairs + start[0]; p < end; ++p) {
    const uint32_t pair = static_cast<uint32_t>(*p);
    const int64_t steps = pair >> 16;
    const uint32_t a = pair & 255, b = pair >> 8 & 255;
    if (is_far) {
      fetch(values, kValuesAhead, 2 * steps * static_cast<int64_t>(sizeof(T)));
      fetch(places, kPlacesAhead, 2 * steps);
    }
    csb_pair<V>(values, places, steps, where.of(a, b), rows, a, b);
    values += 2 * steps, places += 2 * steps;
  }
}

template <int V, class Where>
void csb_block(const Csb& w, int64_t block, const Where& where, float* sums) {
  by_number(w.values, [&]<class T>() {
    for (int64_t c = 0; c < w.chunks; ++c)
      csb_chunk<V, T>(w, block, c, where.chunk(c), Waiting<V>{sums});
  });
}

// The bias in the rows [begin, end) of the weight, zeros in those that only fill pairs.
void begin_csb(float* sums, const Csb& w, const float* bias, int64_t width, int64_t begin,
               int64_t end) {
  begin_block(sums, w.values, bias, width, begin, end);
  for (int64_t i = (end - begin) * width; i < (w.block + 1) * width; ++i) sums[i] = 0.0f;
}

template <int V>
void csb_tile_of(const Csb& w, const Tile& tile, int64_t block) {
  // One more row of sums than a block has: the partner of an odd last row.
  alignas(64) float sums[(kMaxBlock + 1) * V * kW];
  const int64_t begin = block * w.block, end = least(w.out, begin + w.block);
  begin_csb(sums, w, tile.bias, tile.width, begin, end);
  csb_block<V>(w, block, Columns<V>{tile.x}, sums);
  finish_block(sums, w.values, tile, begin, end, w.out);
}

void csb_tile(const Csb& w, const Tile& tile, int64_t block) {
  by_vectors<kVectors>(tile.width / kW, [&]<int V>() { csb_tile_of<V>(w, tile, block); });
}

}  // namespace
}  // namespace sparsewright::SPARSEWRIGHT_ISA
