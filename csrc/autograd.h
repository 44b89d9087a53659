#pragma once

#include <torch/library.h>

#include <array>

namespace ameir_fast {

// Operations whose `<name>_backward` this library has.
inline constexpr std::array differentiable_operations = {"embedding_interactions", "sequence_block", "sequence_pool",
                                                         "sliced_mlp", "squeeze_excite"};

// Their boxed autograd kernel; see autograd.cpp.
void differentiable(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace ameir_fast
