#define AMEIR_FAST_ISA avx512
#define AMEIR_FAST_LANES 16
#include "plan/tile.inl"

namespace ameir_fast::plan {

const Kernels avx512_kernels = {"avx512", avx512::V, avx512::TILE, avx512::run, avx512::share, avx512::rank};

}  // namespace ameir_fast::plan
