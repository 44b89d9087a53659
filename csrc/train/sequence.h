// Behaviour blocks and pools over jagged histories: what ATen's side hands to the kernels of an instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "plan/program.h"

namespace ameir_fast::train {

using plan::Act;
using plan::Floats;
using plan::Linear;

enum class Layer { conv, avg_pool, max_pool, bi_gru, self_attn, target_attn, pool };

// DIN's local activation unit with its first layer folded, W [x, t, x - t, x * t] = (W1 + W3 + W4 diag t) x +
// (W2 - W3) t, all [hidden][width]. Its tensors: weight [hidden, 4 D], bias, PReLU's slope, weight [1, hidden], bias [1].
struct Unit {
  int64_t hidden = 0;
  Floats own, product, target;
  const float *bias = nullptr, *out = nullptr;
  float slope = 0, out_bias = 0;
};

// One operation's arguments. Pointers are to contiguous arrays that the caller keeps alive.
struct Sequences {
  Layer layer;
  Act act = Act::identity;
  std::vector<Act> acts;                         // of a block's forward pass, each with an output of its own
  int64_t width = 0, samples = 0, elements = 0;  // D, B, ΣT
  const float* x = nullptr;                      // [ΣT][D]
  const int64_t* offsets = nullptr;              // [B + 1], checked
  bool has_target = false;
  const float* target = nullptr;                 // [B][D]
  const float *gain = nullptr, *shift = nullptr;  // of the norm, or null
  std::vector<const float*> weights;             // in PyTorch's order
  std::vector<int64_t> sizes;                    // of each
  int64_t taps = 1, dilation = 1, heads = 1;

  // Made by prepare().
  Linear first, second;            // the convolution; q, k, v and the output projection; the GRU's input part
  Linear first_back, second_back;  // their transposes
  Unit unit;
  std::vector<int64_t> order;      // samples, the longest first: those of a group are about equally long

  int64_t reach() const {  // elements to each side that an output reads
    if (layer == Layer::conv) return dilation * (taps - 1) / 2;
    return layer == Layer::avg_pool || layer == Layer::max_pool || layer == Layer::bi_gru ? 1 : 0;
  }
  int64_t outputs() const { return (has_target ? 3 : 2) * width; }  // of a pool
  int64_t parameters() const {
    int64_t total = gain ? 2 * width : 0;
    for (int64_t size : sizes) total += size;
    return total;
  }
};

// A group is `lanes` samples of the order side by side. Gradients of parameters, [parameters()] in the order norm,
// weights, are added up; everything else is written, each sample's part by its own group.
struct SequenceKernels {
  int lanes;
  void (*forward)(const Sequences&, int64_t group, float* out);
  void (*backward)(const Sequences&, int64_t group, const float* grad, float* grad_x, float* grad_target, float* parameters);
};

}  // namespace ameir_fast::train

namespace ameir_fast {
using train::SequenceKernels;
AMEIR_FAST_EVERY_SET(SequenceKernels, sequence_kernels)
}  // namespace ameir_fast
