#define AMEIR_FAST_ISA portable
#include "cpu/rank_kernel.inl"

namespace ameir_fast {

const RankKernel<float> rank_kernel_float = {portable::count<float>, portable::score<float>, portable::dot<float>};
const RankKernel<double> rank_kernel_double = {portable::count<double>, portable::score<double>, portable::dot<double>};

}  // namespace ameir_fast
