// What looks fields up, as the inner loops of embedding_interactions and squeeze_excite see it. Samples go by tiles:
// rows of numbers in scratch memory, padded to kPad floats; see fields.cpp and fields_kernels.cpp.
#pragma once

#include <cstdint>

#include "isa.h"
#include "plan/program.h"

namespace ameir_fast::train {

using plan::Act;

constexpr int64_t kTile = 128;  // samples of a tile: its inputs stay in the second-level cache
constexpr int64_t kPad = 16;    // floats of the widest vector

inline int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// Floats from one row of scratch memory to the next: an odd number of cache lines, or a column's rows would share sets.
inline int64_t pitch_of(int64_t n) { return padded(n) | kPad; }

// The fields of a batch and their products.
struct Fields {
  const float* embedding;  // row r from r * stride on
  int64_t stride, k;
  const int64_t* rows;  // [samples][fields]
  int64_t fields;
  const int64_t *bag_of, *bag_rows, *bag_offsets;  // [fields] place among a sample's bags or -1; no bags: all null
  int64_t bags;                                    // of a sample
  const int64_t *factors, *orders;
  int64_t interactions, most_factors;

  int64_t columns() const { return (fields + interactions) * k; }
};

// b[i, j] at i * row + j * column, for `rows` x `columns`.
struct Matrix {
  const float* at;
  int64_t rows, columns, row, column;
};

// embedding_interactions. Weights are packed as right factors of products: [inputs][outputs], and [outputs][inputs].
struct Interactions {
  Fields fields;
  const float* dense;
  int64_t dense_width, dense_stride, inputs, outputs;
  const float *forward, *backward, *bias;  // the bias padded
  Act act;

  int64_t scratch() const { return kTile * (2 * pitch_of(inputs) + padded(outputs)) + fields.most_factors * kPad; }
};

struct InteractionGradients {
  float *fields;        // [samples][fields][k]
  float *dense;         // [samples][dense_width]
  float *weight, *bias; // of a chunk of samples
};

// squeeze_excite. squeeze [hidden][columns] and excite [columns][hidden] packed as they lie and transposed.
struct Excite {
  Fields fields;
  int64_t columns, hidden;
  const float *project, *squeeze, *squeeze_t, *excite, *excite_t;

  int64_t scratch() const {
    return kTile * (2 * pitch_of(fields.columns()) + 3 * padded(columns) + 2 * padded(hidden)) +
           fields.most_factors * kPad + padded(fields.k);
  }
};

struct ExciteGradients {
  float* fields;                      // [samples][fields][k]
  float *project, *squeeze, *excite;  // of a chunk of samples
};

// Samples begin to end are one tile. `add` is false where a chunk's sums start.
struct FieldKernels {
  int64_t panel;  // columns of a packed panel
  void (*pack)(const Matrix&, int64_t first_panel, int64_t last_panel, float* to);
  void (*interactions)(const Interactions&, int64_t begin, int64_t end, float* scratch, float* out);
  void (*interactions_backward)(const Interactions&, int64_t begin, int64_t end, const float* grad, bool add,
                                float* scratch, const InteractionGradients&);
  void (*excite)(const Excite&, int64_t begin, int64_t end, float* scratch, float* out);
  void (*excite_backward)(const Excite&, int64_t begin, int64_t end, const float* grad, bool add, float* scratch,
                          const ExciteGradients&);
  // Rows begin to end of the embedding's gradient, from that of all samples' fields.
  void (*scatter)(const Fields&, int64_t samples, const float* gradient, int64_t begin, int64_t end, float* to);
};

AMEIR_FAST_EVERY_SET(FieldKernels, field_kernels)

}  // namespace ameir_fast::train
