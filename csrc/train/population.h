// What the inner loops of mlp_population work on: all children's MLPs as a tree of shared sums. See mlp_population.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "plan/program.h"

namespace ameir_fast::train {

// A layer's pre-activation after one beginning of an MLP: the widths and activations of the layers below.
struct PopulationNode {
  int64_t level = 0, units = 0;           // as many units as the widest child asks for
  int64_t first = 0, last = 0;            // branches
  int64_t dice = 0, statistics = 0;       // units whose statistics Dice needs, and where those lie
  uint32_t measured = 0;                  // bit l: here or above are statistics of level l
};

// One activation of a node.
struct PopulationBranch {
  plan::Act act;
  int64_t first, last;                    // stops, by ascending units
  uint32_t measured = 0;
};

// The first `units` activated units of a branch: what goes on from there.
struct PopulationStop {
  int64_t units;
  int64_t node = -1;                      // the next layer's; none at the last layer
  int64_t first, last;                    // the last layer's: places in `outputs`
  uint32_t measured = 0;
};

struct PopulationLayer {                  // from a layer's units to the next one's
  const float *weight, *bias;             // weight[out, in] at out * pitch + in
  int64_t pitch;
};

// Pointers are to arrays that the caller keeps alive.
struct Population {
  int64_t samples = 0, layers = 0, width = 0;  // width: units of the widest node
  const float* x = nullptr;               // the first pre-activation, a row of numbers a sample, `pitch` apart
  int64_t pitch = 0;
  std::vector<PopulationLayer> maps;      // layers - 1
  std::vector<const float*> alpha;        // of each layer's Dice
  const float *head = nullptr, *common = nullptr;
  std::vector<PopulationNode> nodes;      // the first one is the root
  std::vector<PopulationBranch> branches;
  std::vector<PopulationStop> stops;
  std::vector<int64_t> outputs;           // rows of `logits`
  std::vector<float> mean, scale;         // of Dice
  float* logits = nullptr;                // [children][samples]
};

constexpr int64_t kSamples = 48;             // samples that go through all children while they are in cache

// Moments of some units over some samples: how many, their means, their squared distances from these.
struct Moments {
  int64_t count = 0;
  double *mean, *squares;
};

struct PopulationKernels {
  // Adds up to kSamples samples to the moments of all nodes of a level that Dice needs.
  void (*measure)(const Population&, int64_t level, int64_t start, int64_t rows, Moments& to, float* space);
  // Writes the logits of up to kSamples samples.
  void (*score)(const Population&, int64_t start, int64_t rows, float* space);
};

// Floats of `space`.
inline int64_t population_space(const Population& p) { return (2 * p.layers - 1) * p.width * kSamples; }

AMEIR_FAST_EVERY_SET(PopulationKernels, population_kernels)

}  // namespace ameir_fast::train
