// Implementations of the ameir_fast operations, one per file of csrc/cpu. Python defines schemas and fakes.
#pragma once

#include <ATen/core/Tensor.h>

namespace ameir_fast {

// scores [n, S] float32 or float64, label [S] float32 (1 is positive) -> float64 [n]; see metrics.py.
at::Tensor auc_columns(const at::Tensor& scores, const at::Tensor& label);

}  // namespace ameir_fast
