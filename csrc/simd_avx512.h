// Sixteen floats with AVX-512. The 32-entry look-up is one vpermi2ps over two registers.
// With SPARSEWRIGHT_EMULATE_AVX512 the same code runs on SIMDe, for tests on other CPUs.
#pragma once
#ifdef SPARSEWRIGHT_EMULATE_AVX512
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#endif
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace sparsewright::avx512 {

#ifdef SPARSEWRIGHT_EMULATE_AVX512
using F16 = simde__m512;
using I16 = simde__m512i;
#else
using F16 = __m512;
using I16 = __m512i;
#endif

struct Simd {
  static constexpr const char* kName = "avx512";
  static constexpr int kWidth = 16;
  static constexpr int kSellDotBatch = 1;
  static constexpr int kWindowDotBatch = 8;
  static constexpr int kCsrDotBatch = 1;
  static constexpr int kNmLookupBatch = 8;
  static constexpr int kAcross = 16;  // vectors of sums that the registers hold, values beside them
  static constexpr int kBlockLanesBatch = 8;
  static constexpr int kBlockVectors = 4;  // 16 sums: half of the registers
  using Vec = F16;

  // Here, lest the compiler reads it again from memory wherever it is used.
#ifdef SPARSEWRIGHT_EMULATE_AVX512  // no register holds one
  static void in_register(Vec&) {}
#else
  static void in_register(Vec& v) { __asm__("" : "+v"(v)); }
#endif
  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec broadcast(float v) { return _mm512_set1_ps(v); }
  static __m128 load4(const float* p) { return _mm_loadu_ps(p); }
  static __m128 load4(const Bf16* p) {
    const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), four));
  }
  static __m128 load4(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
  }
#ifdef SPARSEWRIGHT_EMULATE_AVX512
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
    return _mm512_set1_ps(v.v[kPlace]);
  }
#else
  using Four = Vec;
  template <class T>
  static Four four(const T* p) {
    return _mm512_broadcast_f32x4(load4(p));
  }
  template <int kPlace>
  static Vec spread4(Four v) {
    return _mm512_permute_ps(v, kPlace * 0x55);
  }
#endif
  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
#ifdef SPARSEWRIGHT_EMULATE_AVX512  // SIMDe 0.7.4 widens no integers to 512 bits
  template <class T>
  static Vec load(const T* p) {
    alignas(64) float all[16];
    for (int i = 0; i < 16; i += 4) _mm_store_ps(all + i, load4(p + i));
    return _mm512_loadu_ps(all);
  }
#else
  static Vec load(const Bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static Vec load(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
#endif
  static void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static Vec relu(Vec v) { return _mm512_max_ps(zero(), v); }  // NaN stays NaN
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  // The second where either is NaN.
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  // The greater one, NaN where either is.
  static Vec most(Vec a, Vec b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
  }
  static Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  // Zero, and nothing read, where the mask is 0; it is -1 elsewhere.
  static Vec load_some(const float* p, const int32_t* mask) {
#ifdef SPARSEWRIGHT_EMULATE_AVX512
    alignas(64) float f[16];
    for (int i = 0; i < 16; ++i) f[i] = mask[i] ? p[i] : 0.0f;
    return _mm512_loadu_ps(f);
#else
    return _mm512_maskz_loadu_ps(_mm512_movepi32_mask(_mm512_loadu_si512(mask)), p);
#endif
  }
  // x at sixteen places, of which the near ones are all below 16; `none` where one is below zero.
  static Vec pick_near(const float* x, const int32_t* i, Vec none) {
#ifdef SPARSEWRIGHT_EMULATE_AVX512
    return pick_where(x, i, none);
#else
    const __m512i places = _mm512_loadu_si512(i);
    const __mmask16 some = _mm512_cmpge_epi32_mask(places, _mm512_setzero_si512());
    return _mm512_mask_permutexvar_ps(none, some, places, _mm512_loadu_ps(x));
#endif
  }
  static Vec pick_where(const float* x, const int32_t* i, Vec none) {
#ifdef SPARSEWRIGHT_EMULATE_AVX512
    alignas(64) float f[16];
    _mm512_storeu_ps(f, none);
    for (int l = 0; l < 16; ++l)
      if (i[l] >= 0) f[l] = x[i[l]];
    return _mm512_loadu_ps(f);
#else
    const __m512i places = _mm512_loadu_si512(i);
    const __mmask16 some = _mm512_cmpge_epi32_mask(places, _mm512_setzero_si512());
    return _mm512_mask_i32gather_ps(none, some, places, x, 4);
#endif
  }
  // Every other float of two vectors.
  static Vec evens(Vec a, Vec b) {
    return _mm512_permutex2var_ps(
        a, _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0), b);
  }
  static Vec odds(Vec a, Vec b) {
    return _mm512_permutex2var_ps(
        a, _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1), b);
  }
  static Vec in_order(Vec v) { return v; }
  static float sum(Vec v) {
    alignas(64) float f[16];
    _mm512_storeu_ps(f, v);
    __m256 s = _mm256_add_ps(_mm256_load_ps(f), _mm256_load_ps(f + 8));
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
  }
  // x at sixteen places. One gather takes two thirds of the time of sixteen single loads on Emerald
  // Rapids, and 20 cycles on Zen 5, where the plan may find the kernels of AVX2 ahead.
#ifdef SPARSEWRIGHT_EMULATE_AVX512  // SIMDe 0.7.4 has no 16-wide gather
  template <class Index>
  static Vec gather(const float* x, const Index* i) {
    alignas(64) float f[16];
    for (int k = 0; k < 16; ++k) f[k] = x[i[k]];
    return _mm512_loadu_ps(f);
  }
#else
  static Vec gather(const float* x, const uint16_t* i) {
    const __m256i p = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(i));
    return _mm512_i32gather_ps(_mm512_cvtepu16_epi32(p), x, 4);
  }
  static Vec gather(const float* x, const int32_t* i) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(i), x, 4);
  }
#endif
  template <class Index>
  static Vec pick(const float* x, const Index* i) {
    return gather(x, i);
  }
  // x at the places of sixteen rows in a window.
  class WindowPlaces {
   public:
    explicit WindowPlaces(const uint8_t* places) : places_(_mm512_loadu_si512(places)) {}
    Vec look_up(const float* x, int step, int) const {
      static_assert(kWindow == 32 && kPlacesOfLane == 4);  // it reads five bits of each number
      return _mm512_permutex2var_ps(_mm512_loadu_ps(x), _mm512_srli_epi32(places_, 8 * step),
                                    _mm512_loadu_ps(x + 16));
    }

    // Which of the rows have a weight in a step: a bit for each.
    unsigned present(int step, int) const {
#ifdef SPARSEWRIGHT_EMULATE_AVX512  // SIMDe 0.7.4 has no 512-bit vptestnmd
      uint8_t places[64];
      std::memcpy(places, &places_, sizeof places);
      unsigned bits = 0;
      for (int l = 0; l < kWidth; ++l) bits |= (places[4 * l + step] < 0x80u) << l;
      return bits;
#else
      return _mm512_testn_epi32_mask(_mm512_srli_epi32(places_, 8 * step), _mm512_set1_epi32(0x80));
#endif
    }

   private:
    I16 places_;
  };
  // The numbers from p on, one after the other, in the lanes of a mask; 0 in the others.
  // kExpandsWithin: it reads no others; else it may read as many as there are lanes.
  template <class T>
  static constexpr bool kExpandsWithin = sizeof(T) == sizeof(float);
#ifdef SPARSEWRIGHT_EMULATE_AVX512
  template <class T>
  static Vec expand(unsigned lanes, const T* p) {
    float out[kWidth] = {};
    for (int l = 0; l < kWidth; ++l)
      if (lanes >> l & 1) out[l] = widen(*p++);
    return _mm512_loadu_ps(out);
  }
#else
  static Vec expand(unsigned lanes, const float* p) {
    return _mm512_maskz_expandloadu_ps(static_cast<__mmask16>(lanes), p);
  }
  template <class T>
  static Vec expand(unsigned lanes, const T* p) {
    return _mm512_maskz_expand_ps(static_cast<__mmask16>(lanes), load(p));
  }
#endif

  // x at the columns of strips of R rows: that of the first in R lanes, then of the second, ...
  template <int R, class Index>
  static Vec spread(const float* x, const Index* columns) {
    Vec all = _mm512_set1_ps(x[columns[0]]);
    if constexpr (R == 8) all = _mm512_mask_mov_ps(all, 0xff00, _mm512_set1_ps(x[columns[1]]));
    if constexpr (R == 4) {
      all = _mm512_mask_mov_ps(all, 0x00f0, _mm512_set1_ps(x[columns[1]]));
      all = _mm512_mask_mov_ps(all, 0x0f00, _mm512_set1_ps(x[columns[2]]));
      all = _mm512_mask_mov_ps(all, 0xf000, _mm512_set1_ps(x[columns[3]]));
    }
    return all;
  }
  // x where a value is present, else 0.
  static Vec where_present(Vec value, Vec x) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_NEQ_UQ), x);
  }

  // Two 16-row tiles, one vector each.
  struct Lanes {
    F16 v[2];
  };
  struct Places {
    I16 v[2];
    __mmask16 present[2];
  };
  struct Table {
    F16 low, high;
  };
  static void prepare(const float* x, float* table) {
    _mm512_storeu_ps(table, _mm512_loadu_ps(x));
    _mm512_storeu_ps(table + 16, _mm512_loadu_ps(x + 16));
  }
  static Table table(const float* p) { return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)}; }
#ifdef SPARSEWRIGHT_EMULATE_AVX512  // SIMDe 0.7.4 has no 512-bit vpmovzxbd
  static I16 widen(__m128i bytes) {
    const __m256i low = _mm256_cvtepu8_epi32(bytes);
    const __m256i high = _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes));
    alignas(64) int32_t all[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(all), low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(all + 8), high);
    return _mm512_loadu_si512(all);
  }
#else
  static I16 widen(__m128i bytes) { return _mm512_cvtepu8_epi32(bytes); }
#endif
  static Places places(const uint8_t* a, const uint8_t* b) {
    Places p;
    const uint8_t* from[2] = {a, b};
    for (int k = 0; k < 2; ++k) {
      p.v[k] = widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from[k])));
      p.present[k] = _mm512_cmpgt_epi32_mask(_mm512_set1_epi32(32), p.v[k]);
    }
    return p;
  }
  template <class T>
  static Lanes lanes(const T* a, const T* b) {
    return {{load(a), load(b)}};
  }
  // table[place], or 0 for padding.
  static Lanes lookup(const Table& t, const Places& p) {
    Lanes l;
    for (int k = 0; k < 2; ++k)
      l.v[k] = _mm512_maskz_permutex2var_ps(p.present[k], t.low, p.v[k], t.high);
    return l;
  }
  static void fma(Lanes& sum, const Lanes& a, const Lanes& b) {
    for (int k = 0; k < 2; ++k) sum.v[k] = _mm512_fmadd_ps(a.v[k], b.v[k], sum.v[k]);
  }
  static void store(float* a, float* b, const Lanes& l) {
    _mm512_storeu_ps(a, l.v[0]);
    _mm512_storeu_ps(b, l.v[1]);
  }

  // The sums of eight vectors are added to eight floats.
  static void add_sums(const Vec* v, float* to) {
    __m256 half[8];
    for (int i = 0; i < 8; ++i)
      half[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]),
                              _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v[i]), 1)));
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sums8(half)));
  }

#include "sums8.h"
#include "transpose8x8.h"
#include "widen.h"

  // A lane of a vector holds a quarter of a row, of every fourth row: so squares of 4 by 4 are
  // all that is left to transpose.
  static void transpose16x16(const float* x, int64_t x_step, float* y, int64_t y_step) {
    for (int c = 0; c < 16; c += 4, x += 4, y += 4 * y_step) {
      Vec v[4];
      for (int i = 0; i < 4; ++i) {
        const float* p = x + i * x_step;
        v[i] = _mm512_castps128_ps512(_mm_loadu_ps(p));
        v[i] = _mm512_insertf32x4(v[i], _mm_loadu_ps(p + 4 * x_step), 1);
        v[i] = _mm512_insertf32x4(v[i], _mm_loadu_ps(p + 8 * x_step), 2);
        v[i] = _mm512_insertf32x4(v[i], _mm_loadu_ps(p + 12 * x_step), 3);
      }
      const Vec low01 = _mm512_unpacklo_ps(v[0], v[1]), high01 = _mm512_unpackhi_ps(v[0], v[1]);
      const Vec low23 = _mm512_unpacklo_ps(v[2], v[3]), high23 = _mm512_unpackhi_ps(v[2], v[3]);
      _mm512_storeu_ps(y, _mm512_shuffle_ps(low01, low23, 0x44));
      _mm512_storeu_ps(y + y_step, _mm512_shuffle_ps(low01, low23, 0xee));
      _mm512_storeu_ps(y + 2 * y_step, _mm512_shuffle_ps(high01, high23, 0x44));
      _mm512_storeu_ps(y + 3 * y_step, _mm512_shuffle_ps(high01, high23, 0xee));
    }
  }
};

}  // namespace sparsewright::avx512
