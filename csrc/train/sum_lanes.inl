// The sum of all lanes. Included once for each instruction set, inside its namespace.
inline float sum_lanes(vf x) {
#if AMEIR_FAST_LANES == 16
  return _mm512_reduce_add_ps((__m512)x);
#else
#if AMEIR_FAST_LANES == 8
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  const Four y = (Four)half;
#else
  const vf y = x;
#endif
  return (y[0] + y[2]) + (y[1] + y[3]);
#endif
}
