// Implementations of the ameir_fast operations, one per file of csrc/cpu. Python defines schemas and fakes.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace ameir_fast {

// scores [n, S] float32 or float64, label [S] float32 (1 is positive) -> float64 [n]; see metrics.py.
at::Tensor auc_columns(const at::Tensor& scores, const at::Tensor& label);

// users [B, K], items [V, K], both float32 or float64, positive [B] int64 in 1..V-1, candidates [B, n] int32 or none,
// seen [*] int32 with offsets [B+1] int64 or none -> int64 [B, 2]: above, tied (the positive included), -1 where a
// score is not finite; see ranking.py.
at::Tensor rank_counts(const at::Tensor& users, const at::Tensor& items, const at::Tensor& positive,
                       const std::optional<at::Tensor>& candidates, const std::optional<at::Tensor>& seen_offsets,
                       const std::optional<at::Tensor>& seen);

// Arguments and results: ameir_fast/reference. Each backward pass takes the gradient of the first output and gives those of
// all floating-point tensors among the arguments, in their order. float32 alone.
at::Tensor sequence_block(const at::Tensor& x, const at::Tensor& offsets, at::TensorList norm, at::TensorList weights,
                          const std::optional<at::Tensor>& target, std::string layer, std::string activation,
                          int64_t max_length);
std::vector<at::Tensor> sequence_block_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                                at::TensorList norm, at::TensorList weights,
                                                const std::optional<at::Tensor>& target, std::string layer,
                                                std::string activation, int64_t max_length);
at::Tensor sequence_pool(const at::Tensor& x, const at::Tensor& offsets, const std::optional<at::Tensor>& target,
                         at::TensorList attention, int64_t max_length);
std::vector<at::Tensor> sequence_pool_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                               const std::optional<at::Tensor>& target, at::TensorList attention,
                                               int64_t max_length);

}  // namespace ameir_fast
