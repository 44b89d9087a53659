#define AMEIR_FAST_ISA avx2
#define AMEIR_FAST_LANES 8
#include "plan/tile.inl"

namespace ameir_fast::plan {

const Kernels avx2_kernels = {"avx2", avx2::V, avx2::TILE, avx2::run, avx2::share, avx2::rank};

}  // namespace ameir_fast::plan
