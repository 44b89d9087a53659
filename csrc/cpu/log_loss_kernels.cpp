// log(1 + exp(-x)) in double for one instruction set, to a few units in the last place of each term, however small.
#include "cpu/log_loss.h"

#include <cstring>
#if AMEIR_FAST_LANES > 4
#include <immintrin.h>
#endif

namespace ameir_fast::AMEIR_FAST_ISA {
namespace {

constexpr int V = AMEIR_FAST_LANES / 2;
typedef double vd __attribute__((vector_size(V * 8)));
typedef int64_t vl __attribute__((vector_size(V * 8)));

inline vd fma(vd a, vd b, vd c) {
#if AMEIR_FAST_LANES == 16
  return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif AMEIR_FAST_LANES == 8
  return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

inline vd set(double x) { return vd{} + x; }

// e^x for -708 <= x <= 0, by Taylor's series within half of log 2.
inline vd exp(vd x) {
  constexpr double kShift = 6755399441055744.0;  // brings the nearest integer into the lowest bits
  const vd shifted = fma(x, set(1.4426950408889634), set(kShift));
  const vd n = shifted - kShift;
  vd r = fma(n, set(-6.93147180369123816490e-01), x);
  r = fma(n, set(-1.90821492927058770002e-10), r);
  constexpr double kFactorials[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                    1.0 / 40320,     1.0 / 5040,     1.0 / 720,     1.0 / 120,
                                    1.0 / 24,        1.0 / 6,        1.0 / 2,       1.0};
  vd p = set(1.0 / 6227020800);
  for (double one : kFactorials) p = fma(p, r, set(one));
  p = fma(p, r, set(1.0));
  return (vd)((vl)p + ((vl)shifted << 52));
}

// log(1 + e) for 0 <= e <= 1, as 2 artanh(e / (2 + e)) by its series.
inline vd log1p(vd e) {
  const vd t = e / (2.0 + e), square = t * t;
  vd p = set(1.0 / 35);
  for (int odd = 33; odd > 0; odd -= 2) p = fma(p, square, set(1.0 / odd));
  return 2.0 * t * p;
}

inline vd term(vd x) {
  const vd large = x < 0.0 ? -x : vd{};
  vd near = x < 0.0 ? x : -x;
  near = near < -708.0 ? set(-708.0) : near;
  // What is no number stays none.
  return x == x ? large + log1p(exp(near)) : x;
}

double sum(const double* x, int64_t n) {
  vd total[2] = {};
  int64_t i = 0;
  auto next = [&] {
    vd one;
    std::memcpy(&one, x + i, sizeof one);
    i += V;
    return term(one);
  };
  while (i + 2 * V <= n) total[0] += next(), total[1] += next();
  if (i + V <= n) total[0] += next();
  if (i < n) {
    vd rest = set(1e300);  // whose term is nothing
    std::memcpy(&rest, x + i, (n - i) * sizeof(double));
    total[1] += term(rest);
  }
  total[0] += total[1];
  double all = 0;
  for (int lane = 0; lane < V; ++lane) all += total[0][lane];
  return all;
}

}  // namespace

extern const LogLossKernels log_loss_kernels;
const LogLossKernels log_loss_kernels = {sum};

}  // namespace ameir_fast::AMEIR_FAST_ISA
