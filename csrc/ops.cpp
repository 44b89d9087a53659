// The map from operations to CPU implementations. This library holds no schema and no pybind11, so Python
// loads it with torch.ops.load_library whenever it likes, before or after the schemas.
#include <torch/library.h>

#include "ops.h"

TORCH_LIBRARY_IMPL(ameir_fast, CPU, m) {
  m.impl("auc_columns", &ameir_fast::auc_columns);
  m.impl("rank_counts", &ameir_fast::rank_counts);
}
