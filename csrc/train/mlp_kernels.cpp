// Inner loops of mlp.cpp for one instruction set.
#include "train/mlp.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#if AMEIR_FAST_LANES > 4
#include <immintrin.h>
#endif

namespace ameir_fast::train::AMEIR_FAST_ISA {
namespace {

using plan::Act;
#include "plan/simd.inl"
#include "train/part.inl"
#include "train/slopes.inl"

constexpr int64_t kFew = 16;  // rows that are summed up on their own, so that rounding errors stay small

// visit(column, count) for every vector of n columns; the last one may have fewer than V.
template <typename Visit>
inline void by_columns(int64_t n, Visit visit) {
  for (int64_t c = 0; c < n; c += V) visit(c, std::min<int64_t>(V, n - c));
}

void moments(const float* x, int64_t rows, int64_t n, float* sums) {
  by_columns(n, [&](int64_t c, int64_t count) {
    vf sum = {}, rest = {}, squares = {};
    const float size = static_cast<float>(rows);
    auto for_few = [&](vf& total, auto add) {
      for (int64_t start = 0; start < rows; start += kFew) {
        vf few = {};
        for (int64_t r = start; r < std::min(start + kFew, rows); ++r) few = add(load_part(x + r * n + c, count), few);
        total += few;
      }
    };
    for_few(sum, [](vf s, vf few) { return s + few; });
    const vf near = sum / size;  // whose distance from the mean comes out of the distances from it
    for_few(rest, [&](vf s, vf few) { return (s - near) + few; });
    const vf mean = near + rest / size;
    for_few(squares, [&](vf s, vf few) { return fma(s - mean, s - mean, few); });
    store_part(sums + c, mean, count);
    store_part(sums + n + c, squares, count);
  });
}

struct Unit {  // V units of a Dice
  vf alpha, mean, scale;

  Unit(const Dice& dice, int64_t c, int64_t count)
      : alpha(load_part(dice.alpha + c, count)), mean(load_part(dice.mean + c, count)),
        scale(load_part(dice.scale + c, count)) {}
};

void dice(const Dice& at, const float* x, int64_t rows, float* to) {
  by_columns(at.n, [&](int64_t c, int64_t count) {
    const Unit unit(at, c, count);
    for (int64_t r = 0; r < rows; ++r) {
      const vf s = load_part(x + r * at.n + c, count), p = sigmoid((s - unit.mean) * unit.scale);
      store_part(to + r * at.n + c, s * fma(p, 1.0f - unit.alpha, unit.alpha), count);
    }
  });
}

void dice_sums(const Dice& at, const float* x, const float* grad, int64_t rows, float* sums) {
  by_columns(at.n, [&](int64_t c, int64_t count) {
    const Unit unit(at, c, count);
    vf alpha = {}, shift = {}, tilt = {};
    for (int64_t start = 0; start < rows; start += kFew) {
      vf few[3] = {};
      for (int64_t r = start; r < std::min(start + kFew, rows); ++r) {
        const vf s = load_part(x + r * at.n + c, count), g = load_part(grad + r * at.n + c, count);
        const vf z = (s - unit.mean) * unit.scale, p = sigmoid(z), part = g * s * sigmoid(-z);
        const vf d = part * p * (1.0f - unit.alpha);
        few[0] += part, few[1] += d, few[2] = fma(d, z, few[2]);
      }
      alpha += few[0], shift += few[1], tilt += few[2];
    }
    store_part(sums + c, alpha, count);
    store_part(sums + at.n + c, shift, count);
    store_part(sums + 2 * at.n + c, tilt, count);
  });
}

void dice_backward(const Dice& at, const float* x, const float* grad, int64_t rows, const float* shift,
                   const float* tilt, float* to) {
  by_columns(at.n, [&](int64_t c, int64_t count) {
    const Unit unit(at, c, count);
    const vf all = load_part(shift + c, count), slope = load_part(tilt + c, count);
    for (int64_t r = 0; r < rows; ++r) {
      const vf s = load_part(x + r * at.n + c, count), g = load_part(grad + r * at.n + c, count);
      const vf z = (s - unit.mean) * unit.scale, p = sigmoid(z), rest = 1.0f - unit.alpha;
      const vf d = g * s * sigmoid(-z) * p * rest;
      store_part(to + r * at.n + c, fma(g, fma(p, rest, unit.alpha), unit.scale * (d - all - slope * z)), count);
    }
  });
}

}  // namespace

extern const MlpKernels mlp_kernels;
const MlpKernels mlp_kernels = {activate, activate_back, moments, dice, dice_sums, dice_backward};

}  // namespace ameir_fast::train::AMEIR_FAST_ISA
