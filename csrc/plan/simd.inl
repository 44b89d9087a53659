// Vectors of AMEIR_FAST_LANES floats, and functions of them that PyTorch computes elementwise. Included once for each
// instruction set, inside its namespace. Every result of a lane depends on that lane's inputs alone, and no expression
// is contracted behind our back (-ffp-contract=off): results are the same whatever shares a vector.

constexpr int V = AMEIR_FAST_LANES;
typedef float vf __attribute__((vector_size(V * 4)));
typedef int32_t vi __attribute__((vector_size(V * 4)));

typedef uint32_t vu __attribute__((vector_size(V * 4)));  // for sums of bits, which may wrap

inline vf load(const float* p) {
  vf r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
inline void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }
// A broadcast from memory, which costs no arithmetic (0 + x would: it is not x for x = -0).
inline vf set(float x) {
#if AMEIR_FAST_LANES == 16
  return (vf)_mm512_set1_ps(x);
#elif AMEIR_FAST_LANES == 8
  return (vf)_mm256_set1_ps(x);
#else
  return vf{x, x, x, x};
#endif
}

// a * b + c, in one rounding where the processor has that.
inline vf fma(vf a, vf b, vf c) {
#if AMEIR_FAST_LANES == 16
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif AMEIR_FAST_LANES == 8
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
inline float fma(float a, float b, float c) {
#if AMEIR_FAST_LANES == 4
  return a * b + c;
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// Vectors of outputs, for single samples.
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
inline Eight fma(Eight a, float b, Eight c) {
#if AMEIR_FAST_LANES == 4
  return a * b + c;
#else
  return (Eight)_mm256_fmadd_ps((__m256)a, _mm256_set1_ps(b), (__m256)c);
#endif
}
inline Four fma(Four a, float b, Four c) {
#if AMEIR_FAST_LANES == 4
  return a * b + c;
#else
  return (Four)_mm_fmadd_ps((__m128)a, _mm_set1_ps(b), (__m128)c);
#endif
}

inline vf sqrt(vf x) {
#if AMEIR_FAST_LANES == 16
  return (vf)_mm512_sqrt_ps((__m512)x);
#elif AMEIR_FAST_LANES == 8
  return (vf)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < V; ++i) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// The larger one; b where either is no number.
inline vf larger(vf a, vf b) {
#if AMEIR_FAST_LANES == 16
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif AMEIR_FAST_LANES == 8
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
inline vf smaller(vf a, vf b) {
#if AMEIR_FAST_LANES == 16
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif AMEIR_FAST_LANES == 8
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

inline vf abs(vf x) { return (vf)((vi)x & 0x7FFFFFFF); }
inline vf with_sign(vf x, vf sign) { return (vf)(((vi)x & 0x7FFFFFFF) | ((vi)sign & (int32_t)0x80000000)); }

// e^x; a NaN stays one. Outside [-87, 88] the result is that of the nearer end.
inline vf exp(vf x) {
  x = smaller(set(88.0f), larger(set(-87.0f), x));
  const vf shifted = fma(x, set(1.44269504f), set(12582912.0f));  // the nearest integer, in the lowest bits
  const vf n = shifted - 12582912.0f;
  vf r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  vf q = set(1.375138214e-3f);
  q = fma(q, r, set(8.368923427e-3f));
  q = fma(q, r, set(4.166953422e-2f));
  q = fma(q, r, set(1.666651840e-1f));
  q = fma(q, r, set(4.999998859e-1f));
  const vf p = fma(q, r * r, r) + 1.0f;
  return (vf)((vu)p + ((vu)shifted << 23));
}

// 2^x for x up to 126; below -126 the result is that of -126.
inline vf exp2(vf x) {
  x = larger(set(-126.0f), x);
  const vf shifted = x + 12582912.0f;
  const vf r = x - (shifted - 12582912.0f);
  vf p = set(1.537070482e-04f);
  p = fma(p, r, set(1.339984829e-03f));
  p = fma(p, r, set(9.618373251e-03f));
  p = fma(p, r, set(5.550329035e-02f));
  p = fma(p, r, set(2.402264846e-01f));
  p = fma(p, r, set(6.931472056e-01f));
  p = fma(p, r, set(1.0f));
  return (vf)((vu)p + ((vu)shifted << 23));
}

inline vf sigmoid(vf x) { return x < -88.0f ? vf{} : 1.0f / (1.0f + exp(-x)); }

// Lane i is that of x whose number from[i] is.
inline vf pick(vf x, vi from) {
#if AMEIR_FAST_LANES == 16
  return (vf)_mm512_permutexvar_ps((__m512i)from, (__m512)x);
#elif AMEIR_FAST_LANES == 8
  return (vf)_mm256_permutevar8x32_ps((__m256)x, (__m256i)from);
#else
  vf y;
  for (int i = 0; i < V; ++i) y[i] = x[from[i]];
  return y;
#endif
}

inline vf tanh(vf x) {
  const vf z = x * x;
  vf small = set(-5.704042525e-3f);
  small = fma(small, z, set(2.063786149e-2f));
  small = fma(small, z, set(-5.373915650e-2f));
  small = fma(small, z, set(1.333143175e-1f));
  small = fma(small, z, set(-3.333328128e-1f));
  small = fma(small * z, x, x);
  const vf e = exp(-2.0f * abs(x));
  const vf large = with_sign((1.0f - e) / (1.0f + e), x);
  return abs(x) < 0.625f ? small : large;
}

inline vf erf(vf y) {
  const vf t = abs(y), z = y * y;
  vf small = set(7.847259127e-5f);
  small = fma(small, z, set(-8.008189323e-4f));
  small = fma(small, z, set(5.188098889e-3f));
  small = fma(small, z, set(-2.685369110e-2f));
  small = fma(small, z, set(1.128358225e-1f));
  small = fma(small, z, set(-3.761262557e-1f));
  small = fma(small, z, set(1.128379166f)) * y;
  const vf u = t > 4.0f ? set(4.0f) : t;  // erfc(4) is 1.5e-8
  vf e = set(-1.865517096e-4f);
  e = fma(e, u, set(2.948945950e-3f));
  e = fma(e, u, set(-2.184170712e-2f));
  e = fma(e, u, set(1.031114566e-1f));
  e = fma(e, u, set(6.381424864e-1f));
  e = fma(e, u, set(1.127088923f));
  e = fma(e, u, set(3.419623434e-4f));
  const vf large = with_sign(1.0f - exp(-e), y);
  return t < 1.0f ? small : large;
}

inline vf gelu(vf x) { return 0.5f * x * (1.0f + erf(x * 0.70710678f)); }

template <Act act>
inline vf activate(vf x) {
  if constexpr (act == Act::relu) return x < 0.0f ? vf{} : x;
  if constexpr (act == Act::swish) return x * sigmoid(x);
  if constexpr (act == Act::gelu) return gelu(x);
  return x;
}

// 4 floats of each of V rows, as 4 vectors whose lanes are the rows.
inline void transpose4(const float* const* rows, int64_t at, vf* out) {
#if AMEIR_FAST_LANES == 16
  __m512 r[4];
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm512_castps128_ps512(_mm_loadu_ps(rows[j] + at));
    r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(rows[j + 4] + at), 1);
    r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(rows[j + 8] + at), 2);
    r[j] = _mm512_insertf32x4(r[j], _mm_loadu_ps(rows[j + 12] + at), 3);
  }
  const __m512 a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
  const __m512 c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
  out[0] = (vf)_mm512_shuffle_ps(a, c, 0x44);
  out[1] = (vf)_mm512_shuffle_ps(a, c, 0xEE);
  out[2] = (vf)_mm512_shuffle_ps(b, d, 0x44);
  out[3] = (vf)_mm512_shuffle_ps(b, d, 0xEE);
#elif AMEIR_FAST_LANES == 8
  __m256 r[4];
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[j] + at)), _mm_loadu_ps(rows[j + 4] + at), 1);
  }
  const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
  const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
  out[0] = (vf)_mm256_shuffle_ps(a, c, 0x44);
  out[1] = (vf)_mm256_shuffle_ps(a, c, 0xEE);
  out[2] = (vf)_mm256_shuffle_ps(b, d, 0x44);
  out[3] = (vf)_mm256_shuffle_ps(b, d, 0xEE);
#else
  const vf a = load(rows[0] + at), b = load(rows[1] + at), c = load(rows[2] + at), d = load(rows[3] + at);
  for (int j = 0; j < 4; ++j) out[j] = vf{a[j], b[j], c[j], d[j]};
#endif
}
