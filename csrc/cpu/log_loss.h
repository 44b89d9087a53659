// The inner loop of log_loss_columns for an instruction set; see log_loss.cpp.
#pragma once

#include <cstdint>

#include "isa.h"

namespace ameir_fast {

struct LogLossKernels {
  // The sum over n numbers of log(1 + exp(-x)).
  double (*sum)(const double* x, int64_t n);
};

AMEIR_FAST_EVERY_SET(LogLossKernels, log_loss_kernels)

}  // namespace ameir_fast
