// Eight floats with AVX2 and FMA. The 32-entry look-up works on bytes: a table is kept as four
// planes (first bytes of its floats, second bytes, ...), vpshufb picks 32 bytes at once from each
// plane, and unpacking joins the four bytes of each float again. It costs half of the shuffles
// that vpermps on whole floats needs.
#pragma once
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace sparsewright::avx2 {

// For each mask of eight lanes: which of the numbers that follow each other it gets, counted from
// 0, or 0x80.
struct Expansions {
  uint8_t from[256][8] = {};
  constexpr Expansions() {
    for (int mask = 0; mask < 256; ++mask)
      for (uint8_t l = 0, next = 0; l < 8; ++l) from[mask][l] = mask >> l & 1 ? next++ : 0x80;
  }
};
inline constexpr Expansions kExpansions;

struct Simd {
  static constexpr const char* kName = "avx2";
  static constexpr int kWidth = 8;
  static constexpr int kSellDotBatch = 1;
  static constexpr int kWindowDotBatch = 4;
  static constexpr int kCsrDotBatch = 1;
  static constexpr int kNmLookupBatch = 4;
  static constexpr int kAcross = 8;  // vectors of sums that the registers hold, values beside them
  static constexpr int kBlockLanesBatch = 4;
  static constexpr int kBlockVectors = 3;  // 12 sums, of 16 registers
  using Vec = __m256;

  // Here, lest the compiler reads it again from memory wherever it is used.
  static void in_register(Vec& v) { __asm__("" : "+x"(v)); }
  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec broadcast(float v) { return _mm256_set1_ps(v); }
  // Four numbers, each of which is to fill a vector: one load, where broadcasts would be four.
  using Four = Vec;
  static Four four(const float* p) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
  }
  static Four four(const Bf16* p) {
    int64_t four;
    std::memcpy(&four, p, sizeof four);
    const __m256i zero = _mm256_setzero_si256();
    return _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, _mm256_set1_epi64x(four)));
  }
  static Four four(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_set1_epi32(four)));
  }
  template <int kPlace>
  static Vec spread4(Four v) {
    return _mm256_permute_ps(v, kPlace * 0x55);
  }
  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static Vec load(const Bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Vec load(const int8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  static void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static Vec relu(Vec v) { return _mm256_max_ps(zero(), v); }  // NaN stays NaN
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  // The second where either is NaN.
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  // The greater one, NaN where either is.
  static Vec most(Vec a, Vec b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  }
  static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  // Zero, and nothing read, where the mask is 0; it is -1 elsewhere.
  static Vec load_some(const float* p, const int32_t* mask) {
    return _mm256_maskload_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask)));
  }
  // x at eight places, of which the near ones are all below 16; `none` where one is below zero.
  static Vec pick_near(const float* x, const int32_t* i, Vec none) {
    const __m256i places = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(i));
    const Vec a = _mm256_permutevar8x32_ps(load(x), places);
    const Vec b = _mm256_permutevar8x32_ps(load(x + 8), places);
    const __m256i second = _mm256_slli_epi32(places, 28);  // bit 3, as a sign
    const Vec picked = _mm256_blendv_ps(a, b, _mm256_castsi256_ps(second));
    return _mm256_blendv_ps(picked, none, _mm256_castsi256_ps(places));
  }
  static Vec pick_where(const float* x, const int32_t* i, Vec none) {
    const __m256i places = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(i));
    alignas(32) int32_t inside[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(inside),
                       _mm256_max_epi32(places, _mm256_setzero_si256()));
    return _mm256_blendv_ps(pick(x, inside), none, _mm256_castsi256_ps(places));
  }
  // Every other float of two vectors, in an order that in_order undoes.
  static Vec evens(Vec a, Vec b) { return _mm256_shuffle_ps(a, b, 0x88); }
  static Vec odds(Vec a, Vec b) { return _mm256_shuffle_ps(a, b, 0xdd); }
  static Vec in_order(Vec v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
  }
  static float sum(Vec v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static Vec gather(const float* x, const uint16_t* i) {
    const __m128i p = _mm_loadu_si128(reinterpret_cast<const __m128i*>(i));
    return _mm256_i32gather_ps(x, _mm256_cvtepu16_epi32(p), 4);
  }
  static Vec gather(const float* x, const int32_t* i) {
    return _mm256_i32gather_ps(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(i)), 4);
  }

  // x at eight places. Single loads put together: on Zen 3 twice as fast as vgatherdps.
  template <class Index>
  static Vec pick(const float* x, const Index* i) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(pick4(x, i)), pick4(x, i + 4), 1);
  }
  // x at the places of eight rows in a window: a look-up in each eight of its columns, of which two
  // bits of a place say which one it is.
  class WindowPlaces {
   public:
    explicit WindowPlaces(const uint8_t* places) {
      for (int k = 0; k < 2; ++k)
        places_[k] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(places) + k);
    }
    Vec look_up(const float* x, int step, int part) const {
      static_assert(kWindow == 32 && kPlacesOfLane == 4);
      const __m256i at = _mm256_srli_epi32(places_[part], 8 * step);
      const Vec odd = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));
      const Vec late = _mm256_castsi256_ps(_mm256_slli_epi32(at, 27));
      const auto eight = [&](int k) { return _mm256_permutevar8x32_ps(load(x + 8 * k), at); };
      return _mm256_blendv_ps(_mm256_blendv_ps(eight(0), eight(1), odd),
                              _mm256_blendv_ps(eight(2), eight(3), odd), late);
    }

    // Which of the rows have a weight in a step: a bit for each.
    unsigned present(int step, int part) const {
      const __m256i at = _mm256_slli_epi32(places_[part], 24 - 8 * step);
      return ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(at))) & 0xff;
    }

   private:
    __m256i places_[2];
  };
  // The numbers from p on, one after the other, in the lanes of a mask; 0 in the others.
  // kExpandsWithin: it reads no others; else it may read as many as there are lanes.
  template <class T>
  static constexpr bool kExpandsWithin = false;
  template <class T>
  static Vec expand(unsigned lanes, const T* p) {
    const auto* const from = reinterpret_cast<const __m128i*>(kExpansions.from[lanes]);
    const __m256i at = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from));
    const Vec found = _mm256_permutevar8x32_ps(load(p), at);
    return _mm256_blendv_ps(found, zero(), _mm256_castsi256_ps(at));
  }
  static __m128 pick4(const float* x, const uint16_t* i) {
    uint64_t four;
    std::memcpy(&four, i, sizeof four);
    const __m128 a = _mm_load_ss(x + (four & 0xffff));
    const __m128 b = insert<0x10>(a, x + (four >> 16 & 0xffff));
    const __m128 c = insert<0x20>(b, x + (four >> 32 & 0xffff));
    return insert<0x30>(c, x + (four >> 48));
  }
  static __m128 pick4(const float* x, const int32_t* i) {
    const __m128 a = insert<0x10>(_mm_load_ss(x + i[0]), x + i[1]);
    return insert<0x30>(insert<0x20>(a, x + i[2]), x + i[3]);
  }
  // From memory in one instruction: GCC splits the intrinsic into a load and an insert.
  template <int kPlace>
  static __m128 insert(__m128 to, const float* p) {
    __m128 out;
    __asm__("vinsertps %3, %2, %1, %0" : "=x"(out) : "x"(to), "m"(*p), "i"(kPlace));
    return out;
  }

  // x at the columns of strips of R rows: that of the first in R lanes, then of the second.
  template <int R, class Index>
  static Vec spread(const float* x, const Index* columns) {
    const Vec first = _mm256_broadcast_ss(x + columns[0]);
    if constexpr (R >= kWidth) return first;
    static_assert(R >= 4);
    return _mm256_blend_ps(first, _mm256_broadcast_ss(x + columns[1]), 0xf0);
  }
  // x where a value is present, else 0.
  static Vec where_present(Vec value, Vec x) {
    return _mm256_and_ps(x, _mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_NEQ_UQ));
  }

  // Two 16-row tiles: v[k] holds rows 4k..4k+3 of the first, then of the second, because
  // unpacking works within 128 bits.
  struct Lanes {
    __m256 v[4];
  };
  struct Places {
    __m256i low, high;  // vpshufb's places in entries 0..15 and 16..31; bit 7 set gives 0
  };
  struct Table {
    const __m128i* plane;
  };
  static void prepare(const float* x, float* table) {
    const __m128i group = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m128i* plane = reinterpret_cast<__m128i*>(table);
    for (int half = 0; half < 2; ++half) {
      __m128i r[4];
      for (int i = 0; i < 4; ++i) {
        const float* p = x + 16 * half + 4 * i;
        r[i] = _mm_shuffle_epi8(_mm_castps_si128(_mm_loadu_ps(p)), group);
      }
      const __m128i a = _mm_unpacklo_epi32(r[0], r[1]), b = _mm_unpacklo_epi32(r[2], r[3]);
      const __m128i c = _mm_unpackhi_epi32(r[0], r[1]), d = _mm_unpackhi_epi32(r[2], r[3]);
      _mm_storeu_si128(plane + 0 + half, _mm_unpacklo_epi64(a, b));
      _mm_storeu_si128(plane + 2 + half, _mm_unpackhi_epi64(a, b));
      _mm_storeu_si128(plane + 4 + half, _mm_unpacklo_epi64(c, d));
      _mm_storeu_si128(plane + 6 + half, _mm_unpackhi_epi64(c, d));
    }
  }
  static Table table(const float* p) { return {reinterpret_cast<const __m128i*>(p)}; }
  static Places places(const uint8_t* a, const uint8_t* b) {
    const __m256i i = both(a, b);
    return {_mm256_adds_epu8(i, _mm256_set1_epi8(0x70)),
            _mm256_sub_epi8(i, _mm256_set1_epi8(0x10))};
  }
  static Lanes lanes(const float* a, const float* b) {
    Lanes l;
    for (int k = 0; k < 4; ++k) l.v[k] = _mm256_loadu2_m128(b + 4 * k, a + 4 * k);
    return l;
  }
  static Lanes lanes(const Bf16* a, const Bf16* b) {
    const __m256i zero = _mm256_setzero_si256();
    Lanes l;
    for (int k = 0; k < 4; k += 2) {
      const __m256i two = both(a + 4 * k, b + 4 * k);
      l.v[k] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, two));
      l.v[k + 1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, two));
    }
    return l;
  }
  // A byte b, its sign bit turned, is the last of a float 2^23 + 128 + b: then no instruction has
  // to extend the sign or to convert.
  static Lanes lanes(const int8_t* a, const int8_t* b) {
    const __m256i bytes = _mm256_xor_si256(both(a, b), _mm256_set1_epi8(-128));
    const __m256i high = _mm256_set1_epi16(0x4b00), zero = _mm256_setzero_si256();
    const __m256i low = _mm256_unpacklo_epi8(bytes, zero);
    const __m256i rest = _mm256_unpackhi_epi8(bytes, zero);
    const __m256i all[] = {_mm256_unpacklo_epi16(low, high), _mm256_unpackhi_epi16(low, high),
                           _mm256_unpacklo_epi16(rest, high), _mm256_unpackhi_epi16(rest, high)};
    Lanes l;
    for (int k = 0; k < 4; ++k)
      l.v[k] = _mm256_sub_ps(_mm256_castsi256_ps(all[k]), _mm256_set1_ps(8388608.0f + 128.0f));
    return l;
  }
  template <class T>
  static __m256i both(const T* a, const T* b) {
    return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(b),
                               reinterpret_cast<const __m128i*>(a));
  }
  static __m256i pick(Table t, int plane, const Places& p) {
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128(t.plane + 2 * plane));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128(t.plane + 2 * plane + 1));
    return _mm256_or_si256(_mm256_shuffle_epi8(low, p.low), _mm256_shuffle_epi8(high, p.high));
  }
  // table[place], or 0 for padding.
  static Lanes lookup(Table t, const Places& p) {
    // Keeps the compiler from hoisting eight loads into registers that it then has to spill.
    __asm__("" : "+r"(t.plane));
    const __m256i b0 = pick(t, 0, p), b1 = pick(t, 1, p), b2 = pick(t, 2, p), b3 = pick(t, 3, p);
    const __m256i low01 = _mm256_unpacklo_epi8(b0, b1), low23 = _mm256_unpacklo_epi8(b2, b3);
    const __m256i high01 = _mm256_unpackhi_epi8(b0, b1), high23 = _mm256_unpackhi_epi8(b2, b3);
    return {{_mm256_castsi256_ps(_mm256_unpacklo_epi16(low01, low23)),
             _mm256_castsi256_ps(_mm256_unpackhi_epi16(low01, low23)),
             _mm256_castsi256_ps(_mm256_unpacklo_epi16(high01, high23)),
             _mm256_castsi256_ps(_mm256_unpackhi_epi16(high01, high23))}};
  }
  static void fma(Lanes& sum, const Lanes& a, const Lanes& b) {
    for (int k = 0; k < 4; ++k) sum.v[k] = _mm256_fmadd_ps(a.v[k], b.v[k], sum.v[k]);
  }
  static void store(float* a, float* b, const Lanes& l) {
    for (int k = 0; k < 4; ++k) _mm256_storeu2_m128(b + 4 * k, a + 4 * k, l.v[k]);
  }

  // The sums of eight vectors are added to eight floats.
  static void add_sums(const Vec* v, float* to) { store(to, add(load(to), sums8(v))); }

#include "sums8.h"
#include "transpose8x8.h"
  static void transpose16x16(const float* x, int64_t x_step, float* y, int64_t y_step) {
    for (int r = 0; r < 16; r += 8)
      for (int c = 0; c < 16; c += 8)
        transpose8x8(x + r * x_step + c, x_step, y + c * y_step + r, y_step);
  }
#include "widen.h"
};

}  // namespace sparsewright::avx2
