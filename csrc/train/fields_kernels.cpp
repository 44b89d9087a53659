// Inner loops of fields.cpp for one instruction set.
#include "train/fields.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#if AMEIR_FAST_LANES > 4
#include <immintrin.h>
#endif

namespace ameir_fast::train::AMEIR_FAST_ISA {
namespace {

#include "plan/simd.inl"
#include "train/part.inl"
#include "train/multiply.inl"
#include "train/slopes.inl"
#include "train/lookup.inl"

template <typename Lanes>
inline float dot(const float* a, const float* b, int64_t k) {
  Lanes sum = {};
  for (int64_t i = 0; i < k; i += width_of<Lanes>) sum += get<Lanes>(a + i) * get<Lanes>(b + i);
  if constexpr (width_of<Lanes> == 1) {
    return sum;
  } else {
    float parts[width_of<Lanes>];
    put<Lanes>(parts, sum);
    for (int64_t n = width_of<Lanes> / 2; n; n /= 2) {
      for (int64_t i = 0; i < n; ++i) parts[i] += parts[i + n];
    }
    return parts[0];
  }
}

#include "train/excite.inl"

// The inputs of the first layer: dense, fields, products.
void fill_inputs(const Interactions& at, int64_t begin, int64_t end, float* h, int64_t pitch) {
  for (int64_t s = begin; at.dense_width && s < end; ++s) {
    std::memcpy(h + (s - begin) * pitch, at.dense + s * at.dense_stride, at.dense_width * sizeof(float));
  }
  look_up(at.fields, begin, end, h + at.dense_width, pitch);
}

void interactions(const Interactions& at, int64_t begin, int64_t end, float* scratch, float* out) {
  const int64_t pitch = pitch_of(at.inputs), count = end - begin;
  fill_inputs(at, begin, end, scratch, pitch);
  out += begin * at.outputs;
  product({scratch, pitch, 1}, count, {at.forward, 0}, at.inputs, at.outputs, at.bias, false, out, at.outputs);
  if (at.act != Act::identity) activate(at.act, out, count * at.outputs, out);
}

void interactions_backward(const Interactions& at, int64_t begin, int64_t end, const float* grad, bool add,
                           float* scratch, const InteractionGradients& to) {
  const int64_t pitch = pitch_of(at.inputs), count = end - begin;
  float *h = scratch, *d = h + kTile * pitch, *sums = d + kTile * pitch, *lefts = sums + kTile * padded(at.outputs);
  fill_inputs(at, begin, end, h, pitch);
  grad += begin * at.outputs;
  if (at.act != Act::identity) {
    product({h, pitch, 1}, count, {at.forward, 0}, at.inputs, at.outputs, at.bias, false, sums, at.outputs);
    activate_back(at.act, sums, grad, count * at.outputs, sums);
    grad = sums;
  }
  product({grad, at.outputs, 1}, count, {at.backward, 0}, at.outputs, at.inputs, nullptr, false, d, pitch);
  product({grad, 1, at.outputs}, at.outputs, {h, pitch}, count, at.inputs, nullptr, add, to.weight, at.inputs);
  sum_columns(grad, at.outputs, count, at.outputs, add, to.bias);
  for (int64_t s = begin; at.dense_width && s < end; ++s) {
    std::memcpy(to.dense + s * at.dense_width, d + (s - begin) * pitch, at.dense_width * sizeof(float));
  }
  look_up_back(at.fields, begin, end, h + at.dense_width, d + at.dense_width, pitch, lefts, to.fields);
}

}  // namespace

extern const FieldKernels field_kernels;
const FieldKernels field_kernels = {kPanel, pack, interactions, interactions_backward, excite, excite_back, scatter};

}  // namespace ameir_fast::train::AMEIR_FAST_ISA
