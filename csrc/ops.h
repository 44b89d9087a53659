// Implementations of the ameir_fast operations: csrc/cpu, and csrc/train for those of the training path. Python defines
// schemas and fakes.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace ameir_fast {

// scores [n, S] float32 or float64, label [S] float32 (1 is positive) -> float64 [n]; see metrics.py.
at::Tensor auc_columns(const at::Tensor& scores, const at::Tensor& label);

// logits [n, S] float32 or float64, label [S] float32, 0 or 1 -> float64 [n]; see metrics.py.
at::Tensor log_loss_columns(const at::Tensor& logits, const at::Tensor& label);

// users [B, K], items [V, K], both float32 or float64, positive [B] int64 in 1..V-1, candidates [B, n] int32 or none,
// seen [*] int32 with offsets [B+1] int64 or none -> int64 [B, 2]: above, tied (the positive included), -1 where a
// score is not finite; see ranking.py.
at::Tensor rank_counts(const at::Tensor& users, const at::Tensor& items, const at::Tensor& positive,
                       const std::optional<at::Tensor>& candidates, const std::optional<at::Tensor>& seen_offsets,
                       const std::optional<at::Tensor>& seen);

// Operations of the training path, float32; see ameir_fast/reference, and autograd.cpp for what their backward gives.
using MaybeTensor = std::optional<at::Tensor>;

at::Tensor sequence_block(const at::Tensor& x, const at::Tensor& offsets, at::TensorList norm, at::TensorList weights,
                          const MaybeTensor& target, std::string layer, std::string activation,
                          int64_t max_length);
std::vector<at::Tensor> sequence_block_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                                at::TensorList norm, at::TensorList weights,
                                                const MaybeTensor& target, std::string layer,
                                                std::string activation, int64_t max_length);
// [n, ΣT, D]: a block with each of these activations.
at::Tensor sequence_activations(const at::Tensor& x, const at::Tensor& offsets, at::TensorList norm,
                                at::TensorList weights, const MaybeTensor& target, std::string layer,
                                c10::List<std::string> activations, int64_t max_length);
at::Tensor sequence_pool(const at::Tensor& x, const at::Tensor& offsets, const MaybeTensor& target,
                         at::TensorList attention, int64_t max_length);
std::vector<at::Tensor> sequence_pool_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                               const MaybeTensor& target, at::TensorList attention,
                                               int64_t max_length);

at::Tensor embedding_interactions(const at::Tensor& embedding, const at::Tensor& rows, const MaybeTensor& bag_rows,
                                  const MaybeTensor& bag_offsets, at::IntArrayRef multi_fields,
                                  at::IntArrayRef interaction_fields, at::IntArrayRef orders, const MaybeTensor& dense,
                                  const at::Tensor& weight, const at::Tensor& bias, std::string_view activation);
std::vector<at::Tensor> embedding_interactions_backward(
    const at::Tensor& grad, const at::Tensor& embedding, const at::Tensor& rows, const MaybeTensor& bag_rows,
    const MaybeTensor& bag_offsets, at::IntArrayRef multi_fields, at::IntArrayRef interaction_fields,
    at::IntArrayRef orders, const MaybeTensor& dense, const at::Tensor& weight, const at::Tensor& bias,
    std::string_view activation);

at::Tensor squeeze_excite(const at::Tensor& embedding, const at::Tensor& rows, const MaybeTensor& bag_rows,
                          const MaybeTensor& bag_offsets, at::IntArrayRef multi_fields,
                          at::IntArrayRef interaction_fields, at::IntArrayRef orders, const at::Tensor& project,
                          const at::Tensor& squeeze, const at::Tensor& excite);
std::vector<at::Tensor> squeeze_excite_backward(
    const at::Tensor& grad, const at::Tensor& embedding, const at::Tensor& rows, const MaybeTensor& bag_rows,
    const MaybeTensor& bag_offsets, at::IntArrayRef multi_fields, at::IntArrayRef interaction_fields,
    at::IntArrayRef orders, const at::Tensor& project, const at::Tensor& squeeze, const at::Tensor& excite);

std::tuple<at::Tensor, at::Tensor> sliced_mlp(const at::Tensor& x, at::TensorList weights, at::TensorList biases,
                                              c10::List<std::string> activations, at::TensorList dice);
std::vector<at::Tensor> sliced_mlp_backward(const at::Tensor& grad, const at::Tensor& x, at::TensorList weights,
                                            at::TensorList biases, c10::List<std::string> activations,
                                            at::TensorList dice);

// Logits [n, B] of n children's MLPs from their common first pre-activation x [B, K0], float32; children int64 [n, 2 L];
// see reference/mlp_population.py.
at::Tensor mlp_population(const at::Tensor& x, at::TensorList weights, at::TensorList biases, at::TensorList dice,
                          const at::Tensor& head, const at::Tensor& common, const at::Tensor& children);

// Step 2's logits [n, B] of n candidates from the fields' embeddings e [B, N, K] and their common first pre-activation base
// [B, H], float32; see reference/interaction_population.py.
at::Tensor interaction_population(const at::Tensor& e, const at::Tensor& base, at::IntArrayRef interaction_fields,
                                  at::IntArrayRef orders, const at::Tensor& projections, const at::Tensor& weight,
                                  const at::Tensor& bias, const at::Tensor& head, const at::Tensor& head_bias);

// In place, float32: embedding and moments [F, K], rows int64 [n] with repeats, gradient [n, K];
// see reference/embedding_update.py.
void embedding_update(const at::Tensor& embedding, const std::optional<at::Tensor>& first,
                      const std::optional<at::Tensor>& second, const at::Tensor& rows, const at::Tensor& gradient,
                      c10::string_view optimizer, double learning_rate, int64_t step, double beta1, double beta2,
                      double eps);

// In place, float32: embedding and moments [F, K], last_step int32 [F], rows int64 [n] with repeats or none for all,
// sums float64 [steps, 7]; see reference/embedding_catch_up.py.
void embedding_catch_up(const at::Tensor& embedding, const at::Tensor& first, const at::Tensor& second,
                        const at::Tensor& last_step, const std::optional<at::Tensor>& rows, const at::Tensor& sums,
                        int64_t base, int64_t step, int64_t exact, int64_t window, double beta1, double beta2,
                        double eps);

}  // namespace ameir_fast
