// Sums over lanes and elements: the gradients of parameters. Included once for each instruction set.

// The sums over the lanes of four vectors.
inline Four totals(vf a, vf b, vf c, vf d) {
#if AMEIR_FAST_LANES == 4
  Four sum;
  const vf all[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) sum[i] = (all[i][0] + all[i][1]) + (all[i][2] + all[i][3]);
  return sum;
#else
  auto halves = [](vf x) {  // down to eight lanes
#if AMEIR_FAST_LANES == 16
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
#else
    return (__m256)x;
#endif
  };
  const __m256 ab = _mm256_hadd_ps(halves(a), halves(b)), cd = _mm256_hadd_ps(halves(c), halves(d));
  const __m256 all = _mm256_hadd_ps(ab, cd);
  return (Four)_mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
#endif
}

// add(o, i, Σ_p y[o][p] x[i][p]) for all outputs and inputs.
constexpr int kOuter = 4, kInner = 4;

template <typename Add>
inline void outer(const float* const* y, int64_t outputs, const float* const* x, int64_t inputs, int64_t lanes, Add add) {
  for (int64_t o = 0; o < outputs; o += kOuter) {
    const float* from[kOuter];
    for (int j = 0; j < kOuter; ++j) from[j] = y[std::min(o + j, outputs - 1)];
    for (int64_t i = 0; i < inputs; i += kInner) {
      const float* with[kInner];
      for (int j = 0; j < kInner; ++j) with[j] = x[std::min(i + j, inputs - 1)];
      vf sum[kOuter][kInner] = {};
      for (int64_t p = 0; p < lanes; p += V) {
        vf in[kInner];
        for (int j = 0; j < kInner; ++j) in[j] = load(with[j] + p);
        for (int k = 0; k < kOuter; ++k) {
          const vf out = load(from[k] + p);
          for (int j = 0; j < kInner; ++j) sum[k][j] = fma(out, in[j], sum[k][j]);
        }
      }
      for (int k = 0; k < kOuter && o + k < outputs; ++k) {
        const Four found = totals(sum[k][0], sum[k][1], sum[k][2], sum[k][3]);
        for (int j = 0; j < kInner && i + j < inputs; ++j) add(o + k, i + j, found[j]);
      }
    }
  }
}

// to[i] += Σ_p rows[i][p].
inline void add_sums(const float* const* rows, int64_t count, int64_t lanes, float* to) {
  for (int64_t i = 0; i < count; i += 4) {
    const float* from[4];
    for (int j = 0; j < 4; ++j) from[j] = rows[std::min(i + j, count - 1)];
    vf sum[4] = {};
    for (int64_t p = 0; p < lanes; p += V) {
      for (int j = 0; j < 4; ++j) sum[j] += load(from[j] + p);
    }
    const Four found = totals(sum[0], sum[1], sum[2], sum[3]);
    for (int j = 0; j < 4 && i + j < count; ++j) to[i + j] += found[j];
  }
}
