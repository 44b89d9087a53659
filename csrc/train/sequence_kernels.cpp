// Forward and backward passes of behaviour blocks and pools for one instruction set.
//
// V samples of similar length lie side by side: a feature is a row of numbers, element t of lane s at t * V + s. So a
// neighbour in time is V away, recurrences and attention run along t with whole vectors, and nothing is summed across
// lanes but the gradients of parameters. A backward pass computes its group's forward pass again, in cache.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>
#if AMEIR_FAST_LANES > 4
#include <immintrin.h>
#endif

#include "train/sequence.h"

namespace ameir_fast::train::AMEIR_FAST_ISA {
namespace {

using plan::kNarrow;
using plan::kWide;
constexpr int64_t kChunk = 128;  // inputs that are summed up on their own, so that rounding errors of long sums stay small

#include "plan/simd.inl"
#include "plan/linear.inl"
#include "train/part.inl"
#include "train/slopes.inl"
#include "train/arena.inl"
#include "train/reduce.inl"
#include "train/group.inl"
#include "train/recurrent.inl"
#include "train/attention.inl"
#include "train/unit.inl"
#include "train/layers.inl"

}  // namespace
}  // namespace ameir_fast::train::AMEIR_FAST_ISA

namespace ameir_fast::AMEIR_FAST_ISA {

const SequenceKernels sequence_kernels = {train::AMEIR_FAST_ISA::V, train::AMEIR_FAST_ISA::forward,
                                          train::AMEIR_FAST_ISA::backward};

}  // namespace ameir_fast::AMEIR_FAST_ISA
