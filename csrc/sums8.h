// The sums of eight AVX registers, side by side in one: halves of two registers change places
// before they are added, so that every addition serves both. Included inside a Simd struct, as
// transpose8x8.h is. No include guard for that reason.
static __m256 sums8(const __m256* v) {
  __m256 two[4], four[2];
  for (int i = 0; i < 4; ++i) {  // of a lane: a + a, a + a, b + b, b + b
    const __m256 a = v[2 * i], b = v[2 * i + 1];
    two[i] = _mm256_add_ps(_mm256_blend_ps(a, b, 0xcc), _mm256_shuffle_ps(a, b, 0x4e));
  }
  for (int i = 0; i < 2; ++i) {  // a, b, c, d
    const __m256 a = two[2 * i], b = two[2 * i + 1];
    four[i] = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
  }
  return _mm256_add_ps(_mm256_blend_ps(four[0], four[1], 0xf0),
                       _mm256_permute2f128_ps(four[0], four[1], 0x21));
}
