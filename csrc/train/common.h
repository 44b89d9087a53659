// Checks and memory that the operations of the training path share.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "plan/program.h"

namespace ameir_fast::train {

inline void check_float(const at::Tensor& t, const char* name, int64_t dim) {
  TORCH_CHECK(t.scalar_type() == at::kFloat, name, ": dtype ", t.scalar_type(), ", expected float32");
  TORCH_CHECK(t.device().is_cpu(), name, ": on ", t.device(), ", expected the CPU");
  TORCH_CHECK(t.dim() == dim, name, ": ", t.dim(), " dimensions, expected ", dim);
}

inline void check_shape(const at::Tensor& t, const char* name, at::IntArrayRef shape) {
  check_float(t, name, static_cast<int64_t>(shape.size()));
  TORCH_CHECK(t.sizes() == shape, name, ": shape ", t.sizes(), ", expected ", shape);
}

// The tensor itself where the numbers of a row lie side by side.
inline at::Tensor with_whole_rows(const at::Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : t.contiguous();
}

// An activation of single numbers.
inline plan::Act act_of(std::string_view name) {
  if (name == "identity") return plan::Act::identity;
  if (name == "relu") return plan::Act::relu;
  if (name == "swish") return plan::Act::swish;
  TORCH_CHECK_VALUE(name == "gelu", "unknown activation '", name, "'");
  return plan::Act::gelu;
}

// This thread's memory, kept between calls. It is NaN when new, and where AMEIR_FAST_POISON is set every time, so that a
// result that depends on it shows it.
inline float* scratch(int64_t count) {
  thread_local plan::Floats memory;
  if (static_cast<int64_t>(memory.size()) < count) memory.assign(count, std::numeric_limits<float>::quiet_NaN());
  static const char* asked = std::getenv("AMEIR_FAST_POISON");
  const bool poison = asked && *asked;
  if (poison) std::fill_n(memory.data(), count, std::numeric_limits<float>::quiet_NaN());
  return memory.data();
}

}  // namespace ameir_fast::train
