// A plan: a program, the kernels of an instruction set, and the sharing out of a batch among threads.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plan/program.h"

namespace ameir_fast::plan {

// Sizes of the arrays of a batch as their owner knows them.
struct Extent {
  int64_t elements = 0, bags = 0;
};

// W [outputs][inputs] of which entry (o, i) is at weight[o * outer + i * inner], in panels; bias null for zeros.
Linear pack(const float* weight, int64_t outputs, int64_t inputs, int64_t outer, int64_t inner, const float* bias);

// The same as bfloat16.
Half pack_half(const float* weight, int64_t outputs, int64_t inputs, const float* bias);

// The best product of bfloat16 numbers that this processor has and the system grants, or the one of that name: "amx" or
// "avx512_bf16"; for kernels of 16 lanes. Null, and the name "none", where there is none.
MultiplyHalf half_products(std::string* name);

float rounded_to_half(float x);

// The instruction sets that this processor can run, the best one first.
std::vector<const Kernels*> supported();

// Scores of a batch into out [B][outputs]. Throws std::invalid_argument for offsets that do not rise from 0 to the
// extent or a history that is too long; ids outside their vocabulary are told by the result, and `out` is of no use.
std::optional<Fault> score(const Program& program, const Kernels& kernels, const Input& input, const Extent& extent,
                           float* out);

// The same on this thread alone, and the seconds of each Part.
std::vector<double> score_by_parts(const Program& program, const Kernels& kernels, const Input& input, const Extent& extent,
                                   float* out, std::optional<Fault>* fault);

// Scores [n][outputs] of candidates for the user of `input`, whose only row it is. Throws like score(); a fault's row is
// the candidate's where the field is one of theirs.
std::optional<Fault> rank(const Program& program, const Kernels& kernels, const Input& input, const Extent& extent,
                          Candidates& candidates, int64_t count, float* out);

}  // namespace ameir_fast::plan
