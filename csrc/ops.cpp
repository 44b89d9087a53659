// The map from operations to CPU implementations. This library holds no schema and no pybind11, so Python
// loads it with torch.ops.load_library whenever it likes, before or after the schemas.
#include "ops.h"

#include <torch/library.h>

#include "autograd.h"
#include "isa.h"

TORCH_LIBRARY_IMPL(ameir_fast, CPU, m) {
  m.impl("auc_columns", &ameir_fast::auc_columns);
  m.impl("log_loss_columns", &ameir_fast::log_loss_columns);
  m.impl("rank_counts", &ameir_fast::rank_counts);
  m.impl("sequence_block", &ameir_fast::sequence_block);
  m.impl("sequence_block_backward", &ameir_fast::sequence_block_backward);
  m.impl("sequence_activations", &ameir_fast::sequence_activations);
  m.impl("sequence_pool", &ameir_fast::sequence_pool);
  m.impl("sequence_pool_backward", &ameir_fast::sequence_pool_backward);
  m.impl("embedding_interactions", &ameir_fast::embedding_interactions);
  m.impl("embedding_interactions_backward", &ameir_fast::embedding_interactions_backward);
  m.impl("squeeze_excite", &ameir_fast::squeeze_excite);
  m.impl("squeeze_excite_backward", &ameir_fast::squeeze_excite_backward);
  m.impl("sliced_mlp", &ameir_fast::sliced_mlp);
  m.impl("sliced_mlp_backward", &ameir_fast::sliced_mlp_backward);
  m.impl("mlp_population", &ameir_fast::mlp_population);
  m.impl("interaction_population", &ameir_fast::interaction_population);
  m.impl("embedding_update", &ameir_fast::embedding_update);
  m.impl("embedding_catch_up", &ameir_fast::embedding_catch_up);
}

// Every operation of CPU above that has a `_backward`.
TORCH_LIBRARY_IMPL(ameir_fast, AutogradCPU, m) {
  for (const char* name : ameir_fast::differentiable_operations) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&ameir_fast::differentiable>());
  }
}

TORCH_LIBRARY_IMPL(ameir_fast, CompositeExplicitAutograd, m) {
  m.impl("instruction_sets", [] { return ameir_fast::instruction_sets(); });
  m.impl("use_instruction_set", [](std::string name) { return ameir_fast::use_instruction_set(std::move(name)); });
}
