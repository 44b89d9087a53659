// What the inner loops of sliced_mlp do; see mlp.cpp and mlp_kernels.cpp.
#pragma once

#include <cstdint>

#include "isa.h"
#include "plan/program.h"

namespace ameir_fast::train {

// Dice of n units: p s + (1 - p) alpha s with p = sigmoid((s - mean) * scale).
struct Dice {
  int64_t n;
  const float *alpha, *mean, *scale;
};

// x, grad and `to` are `rows` rows of n numbers; `sums` are those of one chunk of rows.
struct MlpKernels {
  void (*activate)(plan::Act, const float* x, int64_t count, float* to);
  void (*activate_backward)(plan::Act, const float* x, const float* grad, int64_t count, float* to);
  // sums [2][n]: the mean, and the squared distances from it.
  void (*moments)(const float* x, int64_t rows, int64_t n, float* sums);
  void (*dice)(const Dice&, const float* x, int64_t rows, float* to);
  // sums [3][n]: the gradient of alpha, that of z = (s - mean) * scale, and the latter times z.
  void (*dice_sums)(const Dice&, const float* x, const float* grad, int64_t rows, float* sums);
  // The gradient of s, where z's is d - shift - tilt * z.
  void (*dice_backward)(const Dice&, const float* x, const float* grad, int64_t rows, const float* shift,
                        const float* tilt, float* to);
};

AMEIR_FAST_EVERY_SET(MlpKernels, mlp_kernels)

}  // namespace ameir_fast::train
