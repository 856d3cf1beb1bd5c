// Four floats through the compiler's vector extension: runs on every CPU.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace sparsewright::portable {

struct Simd {
  static constexpr const char* kName = "portable";
  static constexpr int kWidth = 4;
  static constexpr int kSellDotBatch = 1;
  static constexpr int kWindowDotBatch = 1;
  static constexpr int kCsrDotBatch = 1;
  static constexpr int kNmLookupBatch = 1;
  static constexpr int kAcross = 8;  // vectors of sums that the registers hold, values beside them
  static constexpr int kBlockLanesBatch = 4;
  static constexpr int kBlockVectors = 3;  // 12 sums, of 16 registers
  typedef float Vec __attribute__((vector_size(16)));

  // Here, lest the compiler reads it again from memory wherever it is used.
  static void in_register(Vec& v) { (void)v; }
  static Vec zero() { return Vec{0, 0, 0, 0}; }
  static Vec broadcast(float v) { return Vec{v, v, v, v}; }
  // Four numbers, each of which is to fill a vector: where shuffles are cheap, one load for all.
  struct Four {
    float v[4];
  };
  template <class T>
  static Four four(const T* p) {
    return {widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
  }
  template <int kPlace>
  static Vec spread4(Four v) {
    return broadcast(v.v[kPlace]);
  }
  static Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  template <class T>
  static Vec load(const T* p) {
    return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
  }
  static void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
  static Vec relu(Vec v) {  // NaN stays NaN
    for (int i = 0; i < 4; ++i) v[i] = v[i] < 0.0f ? 0.0f : v[i];
    return v;
  }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  // The second where either is NaN.
  static Vec max(Vec a, Vec b) {
    for (int i = 0; i < kWidth; ++i) b[i] = a[i] > b[i] ? a[i] : b[i];
    return b;
  }
  // The greater one, NaN where either is.
  static Vec most(Vec a, Vec b) {
    for (int i = 0; i < kWidth; ++i) b[i] = a[i] > b[i] || a[i] != a[i] ? a[i] : b[i];
    return b;
  }
  static Vec min(Vec a, Vec b) {
    for (int i = 0; i < kWidth; ++i) b[i] = a[i] < b[i] ? a[i] : b[i];
    return b;
  }
  // Zero, and nothing read, where the mask is 0; it is -1 elsewhere.
  static Vec load_some(const float* p, const int32_t* mask) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v[i] = mask[i] ? p[i] : 0.0f;
    return v;
  }
  // x at four places; `none` where one is below zero.
  static Vec pick_where(const float* x, const int32_t* i, Vec none) {
    for (int l = 0; l < 4; ++l)
      if (i[l] >= 0) none[l] = x[i[l]];
    return none;
  }
  static Vec pick_near(const float* x, const int32_t* i, Vec none) {
    return pick_where(x, i, none);
  }
  // Every other float of two vectors.
  static Vec evens(Vec a, Vec b) { return Vec{a[0], a[2], b[0], b[2]}; }
  static Vec odds(Vec a, Vec b) { return Vec{a[1], a[3], b[1], b[3]}; }
  static Vec in_order(Vec v) { return v; }
  static float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  template <class Index>
  static Vec gather(const float* x, const Index* i) {
    return Vec{x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
  }

  template <class Index>
  static Vec pick(const float* x, const Index* i) {
    return gather(x, i);
  }

  // x at the places of four rows in a window.
  class WindowPlaces {
   public:
    explicit WindowPlaces(const uint8_t* places) : places_(places) {}
    Vec look_up(const float* x, int step, int part) const {
      alignas(32) int32_t at[kWidth];
      for (int l = 0; l < kWidth; ++l)
        at[l] = places_[(part * kWidth + l) * kPlacesOfLane + step] % kWindow;
      return pick(x, at);
    }

    // Which of the rows have a weight in a step: a bit for each.
    unsigned present(int step, int part) const {
      unsigned bits = 0;
      for (int l = 0; l < kWidth; ++l)
        bits |= (places_[(part * kWidth + l) * kPlacesOfLane + step] < 0x80u) << l;
      return bits;
    }

   private:
    const uint8_t* places_;
  };
  // The numbers from p on, one after the other, in the lanes of a mask; 0 in the others.
  // kExpandsWithin: it reads no others; else it may read as many as there are lanes.
  template <class T>
  static constexpr bool kExpandsWithin = true;
  template <class T>
  static Vec expand(unsigned lanes, const T* p) {
    Vec out = zero();
    for (int l = 0; l < kWidth; ++l)
      if (lanes >> l & 1) out[l] = widen(*p++);
    return out;
  }

  // x at the column of a strip of R rows, which are at least as many as the lanes.
  template <int R, class Index>
  static Vec spread(const float* x, const Index* columns) {
    return broadcast(x[columns[0]]);
  }
  // x where a value is present, else 0.
  static Vec where_present(Vec value, Vec x) {
    for (int i = 0; i < kWidth; ++i) x[i] = value[i] != 0.0f ? x[i] : 0.0f;
    return x;
  }

  // Two 16-row tiles, one float per row.
  struct Lanes {
    float v[32];
  };
  struct Places {
    uint8_t v[32];
  };
  struct Table {
    const float* x;
  };
  static void prepare(const float* x, float* table) { std::memcpy(table, x, 32 * sizeof(float)); }
  static Table table(const float* p) { return {p}; }
  static Places places(const uint8_t* a, const uint8_t* b) {
    Places p;
    std::memcpy(p.v, a, 16);
    std::memcpy(p.v + 16, b, 16);
    return p;
  }
  template <class T>
  static Lanes lanes(const T* a, const T* b) {
    Lanes l;
    for (int i = 0; i < 16; ++i) l.v[i] = widen(a[i]), l.v[16 + i] = widen(b[i]);
    return l;
  }
  // table[place], or 0 for padding.
  static Lanes lookup(Table t, const Places& p) {
    Lanes l;
    for (int i = 0; i < 32; ++i) l.v[i] = p.v[i] < 32 ? t.x[p.v[i]] : 0.0f;
    return l;
  }
  static void fma(Lanes& sum, const Lanes& a, const Lanes& b) {
    for (int i = 0; i < 32; ++i) sum.v[i] += a.v[i] * b.v[i];
  }
  static void store(float* a, float* b, const Lanes& l) {
    std::memcpy(a, l.v, 64);
    std::memcpy(b, l.v + 16, 64);
  }

  // The sums of eight vectors are added to eight floats.
  static void add_sums(const Vec* v, float* to) {
    for (int i = 0; i < 8; ++i) to[i] += sum(v[i]);
  }

#include "widen.h"

  static void transpose8x8(const float* x, int64_t x_step, float* y, int64_t y_step) {
    for (int r = 0; r < 8; ++r)
      for (int c = 0; c < 8; ++c) y[c * y_step + r] = x[r * x_step + c];
  }
  static void transpose16x16(const float* x, int64_t x_step, float* y, int64_t y_step) {
    for (int r = 0; r < 16; r += 8)
      for (int c = 0; c < 16; c += 8)
        transpose8x8(x + r * x_step + c, x_step, y + c * y_step + r, y_step);
  }
};

}  // namespace sparsewright::portable
