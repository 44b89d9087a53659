// Mean binary log loss of many columns of logits against one label: -log sigmoid((2 label - 1) logit), in double, a few
// hundred samples at a time so that nothing but the logits is read from memory.
#include "cpu/log_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "ops.h"

namespace ameir_fast {
namespace {

constexpr int64_t kChunk = 512;

template <typename Logit>
void log_loss_of_columns(const Logit* logits, const double* sign, int64_t columns, int64_t samples, double* result) {
  const LogLossKernels& kernels = log_loss_kernels();
  at::parallel_for(0, columns, 1, [&](int64_t begin, int64_t end) {
    double x[kChunk];
    for (int64_t c = begin; c < end; ++c) {
      double total = 0;
      for (int64_t start = 0; start < samples; start += kChunk) {
        const int64_t count = std::min(kChunk, samples - start);
        const Logit* from = logits + c * samples + start;
        for (int64_t i = 0; i < count; ++i) x[i] = sign[start + i] * static_cast<double>(from[i]);
        total += kernels.sum(x, count);
      }
      result[c] = total / static_cast<double>(samples);
    }
  });
}

}  // namespace

at::Tensor log_loss_columns(const at::Tensor& logits, const at::Tensor& label) {
  TORCH_CHECK(logits.dim() == 2, "log_loss_columns: logits must be [n, S], not of ", logits.dim(), " dimensions");
  TORCH_CHECK(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kDouble,
              "log_loss_columns: logits must be float32 or float64, not ", logits.scalar_type());
  TORCH_CHECK(label.dim() == 1 && label.size(0) == logits.size(1) && label.scalar_type() == at::kFloat,
              "log_loss_columns: label must be float32 [", logits.size(1), "]");
  const at::Tensor columns = logits.contiguous(), labels = label.contiguous();
  const int64_t samples = logits.size(1);
  std::vector<double> sign(samples);
  const float* value = labels.const_data_ptr<float>();
  for (int64_t s = 0; s < samples; ++s) sign[s] = 2.0 * value[s] - 1.0;
  at::Tensor result = at::empty({logits.size(0)}, logits.options().dtype(at::kDouble));
  if (logits.scalar_type() == at::kFloat) {
    log_loss_of_columns(columns.const_data_ptr<float>(), sign.data(), logits.size(0), samples,
                        result.mutable_data_ptr<double>());
  } else {
    log_loss_of_columns(columns.const_data_ptr<double>(), sign.data(), logits.size(0), samples,
                        result.mutable_data_ptr<double>());
  }
  return result;
}

}  // namespace ameir_fast
