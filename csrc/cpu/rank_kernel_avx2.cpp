// Compiled with -mavx2 -mfma; rank_counts.cpp calls it only on processors that have both.
#define AMEIR_FAST_ISA avx2
#include "cpu/rank_kernel.inl"

namespace ameir_fast {

const RankKernel<float> rank_kernel_float_avx2 = {avx2::count<float>, avx2::score<float>, avx2::dot<float>};
const RankKernel<double> rank_kernel_double_avx2 = {avx2::count<double>, avx2::score<double>, avx2::dot<double>};

}  // namespace ameir_fast
