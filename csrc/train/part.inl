// The first `count` lanes of a vector, 1 to V; the others are zero, and their memory is left alone. Included once for
// each instruction set, inside its namespace.

inline vf load_part(const float* p, int64_t count) {
#if AMEIR_FAST_LANES == 16
  return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#else
  if (count == V) return load(p);
  vf x = {};
  for (int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
#endif
}

inline void store_part(float* p, vf x, int64_t count) {
#if AMEIR_FAST_LANES == 16
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)x);
#else
  if (count == V) return store(p, x);
  for (int64_t i = 0; i < count; ++i) p[i] = x[i];
#endif
}
