// Rows of an embedding matrix after their gradients, or after steps in which they had none; see reference/.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"

namespace ameir_fast {

enum class Optimizer { sgd, adagrad, adam };

// The distinct rows of a list, and for each of them the places where it stands, in ascending order.
struct Chains {
  std::vector<int64_t> rows;
  std::vector<int64_t> first;    // place of each row's first occurrence
  const int64_t* next = nullptr;  // of each place, the next one of the same row; -1 after the last
};

struct RowUpdate {
  Optimizer optimizer;
  int64_t width;          // K
  float* embedding;       // [F, K]
  float* first;           // sum of squares or first moment, [F, K]
  float* second;          // second moment, [F, K]
  const float* gradient;  // [n, K], a row for each place
  float learning_rate, beta1, beta2, eps;
  float rest1, rest2;              // 1 - beta, which has another last digit than what floats would give
  float correction1, correction2;  // Adam's 1 - beta^step
};

// Columns of the table of sums, a row for each step since `base`: see reference/embedding_catch_up.py.
enum Sums { kCentre = 0, kOrder0 = 1, kOrders = 5, kLearningRate = 6, kSumsColumns = 7 };

struct CatchUp {
  int64_t width;
  float *embedding, *first, *second;  // [F, K]
  int32_t* last_step;                 // [F]
  const double* sums;                 // [step - base + 1, kSumsColumns]
  int64_t base, step, exact, window;
  double beta1, beta2, eps;
  std::vector<float> decay1, decay2;  // beta^d of short gaps d
};

struct RowKernels {
  void (*update)(const RowUpdate& update, const Chains& chains);
  void (*catch_up)(const CatchUp& catch_up, const int64_t* rows, int64_t count);
};

AMEIR_FAST_EVERY_SET(RowKernels, row_kernels)

}  // namespace ameir_fast
