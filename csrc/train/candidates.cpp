// interaction_population: step 2's logits of many candidates from their common first pre-activation. A tile of samples goes
// through all candidates, and only logits leave it (candidates_kernels.cpp).
#include "train/candidates.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "ops.h"
#include "train/common.h"

namespace ameir_fast {

using namespace train;
using at::Tensor;

Tensor interaction_population(const Tensor& e, const Tensor& base, at::IntArrayRef interaction_fields,
                              at::IntArrayRef orders, const Tensor& projections, const Tensor& weight,
                              const Tensor& bias, const Tensor& head, const Tensor& head_bias) {
  check_float(e, "e", 3);
  check_float(base, "base", 2);
  check_float(weight, "weight", 2);
  Candidates c;
  c.samples = e.size(0), c.count = static_cast<int64_t>(orders.size()), c.width = e.size(2);
  c.outputs = weight.size(0), c.hidden = weight.size(1);
  check_shape(base, "base", {c.samples, c.hidden});
  check_shape(projections, "projections", {c.count, c.hidden, c.width});
  check_shape(bias, "bias", {c.outputs});
  check_shape(head, "head", {c.outputs});
  check_shape(head_bias, "head_bias", {1});
  const int64_t pitch = whole(c.outputs), hidden = whole(c.hidden);
  TORCH_CHECK(hidden < std::numeric_limits<int32_t>::max(), "weight: too large, ", weight.sizes());
  int64_t total = 0;
  for (const int64_t order : orders) {
    TORCH_CHECK(order > 0, "orders: ", order, " is not positive");
    total += order;
  }
  TORCH_CHECK(total == static_cast<int64_t>(interaction_fields.size()), "interaction_fields: ",
              interaction_fields.size(), " for orders that sum up to ", total);
  std::vector<int64_t> places;
  for (const int64_t field : interaction_fields) {
    TORCH_CHECK(field >= 0 && field < e.size(1), "interaction_fields: ", field, " of ", e.size(1), " fields");
    places.push_back(field * c.width);
  }
  Tensor out = at::empty({c.count, c.samples}, e.options());
  if (out.numel() == 0) return out;

  const Tensor fields = e.contiguous(), rows = with_whole_rows(base), second = weight.contiguous();
  const bool same = projections.stride(0) == 0;
  const int64_t different = same ? 1 : c.count;
  const Tensor packed = at::zeros({different, c.width, hidden}, e.options());
  packed.narrow(2, 0, c.hidden).copy_(projections.narrow(0, 0, different).transpose(1, 2));
  c.e = fields.const_data_ptr<float>(), c.pitch = e.size(1) * c.width;
  c.base = rows.const_data_ptr<float>(), c.base_pitch = rows.stride(0);
  c.fields = places.data(), c.orders = orders.data();
  c.projections = packed.const_data_ptr<float>(), c.projection_pitch = same ? 0 : c.width * hidden;
  c.weight.assign(hidden * pitch, 0.0f), c.bias.assign(pitch, 0.0f), c.head.assign(pitch, 0.0f);
  const float* from = second.const_data_ptr<float>();
  for (int64_t o = 0; o < c.outputs; ++o) {
    for (int64_t i = 0; i < c.hidden; ++i) c.weight[i * pitch + o] = from[o * c.hidden + i];
  }
  const Tensor shift = bias.contiguous(), last = head.contiguous();
  std::copy_n(shift.const_data_ptr<float>(), c.outputs, c.bias.data());
  std::copy_n(last.const_data_ptr<float>(), c.outputs, c.head.data());
  c.head_bias = head_bias.item<float>();
  c.logits = out.mutable_data_ptr<float>();

  const CandidateKernels& kernels = candidate_kernels();
  const int64_t tiles = (c.samples + kTile - 1) / kTile;
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels.score(c, t * kTile, std::min(kTile, c.samples - t * kTile), scratch(candidate_space(c)));
    }
  });
  return out;
}

}  // namespace ameir_fast
