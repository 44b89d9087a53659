// What the inner loops of interaction_population work on. See candidates.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "plan/program.h"

namespace ameir_fast::train {

constexpr int64_t kTile = 32;    // samples that go through all candidates while they are in cache
constexpr int64_t kBlock = 112;  // hidden units at a time, whose rows of the second layer stay in the nearest cache
constexpr int64_t kRoom = kBlock + 16;  // of a list of these
constexpr int64_t kWhole = 16;   // rows of units are padded to so many numbers: whole vectors of every instruction set

inline int64_t whole(int64_t n) { return (n + kWhole - 1) / kWhole * kWhole; }

// Pointers are to arrays that the caller keeps alive.
struct Candidates {
  int64_t samples = 0, count = 0, width = 0;  // B, n, K
  const float* e = nullptr;                   // a sample's fields, [N][K], `pitch` apart
  int64_t pitch = 0;
  const float* base = nullptr;                // a sample's H units, `base_pitch` apart
  int64_t base_pitch = 0, hidden = 0, outputs = 0;
  const int64_t* fields = nullptr;            // of one candidate after the other: its fields' places in a sample's row
  const int64_t* orders = nullptr;
  const float* projections = nullptr;         // each [K][whole(H)], `projection_pitch` apart
  int64_t projection_pitch = 0;               // 0: one that all have in common
  plan::Floats weight, bias, head;            // [whole(H)][whole(G)]; [whole(G)]; zero beyond G
  float head_bias = 0;
  float* logits = nullptr;                    // [n][B]
};

struct CandidateKernels {
  // Writes all candidates' logits of up to kTile samples.
  void (*score)(const Candidates&, int64_t start, int64_t rows, float* space);
};

inline int64_t block_count(const Candidates& c) { return (whole(c.hidden) + kBlock - 1) / kBlock; }

// Floats of `space`: of a tile the second layer's sums, the base, units, lists of them and products.
inline int64_t candidate_space(const Candidates& c) {
  return kTile * (2 * whole(c.outputs) + 3 * whole(c.hidden) + block_count(c) * (kRoom + 1) + 2 * c.width);
}

AMEIR_FAST_EVERY_SET(CandidateKernels, candidate_kernels)

}  // namespace ameir_fast::train
