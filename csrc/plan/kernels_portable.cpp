#define AMEIR_FAST_ISA portable
#define AMEIR_FAST_LANES 4
#include "plan/tile.inl"

namespace ameir_fast::plan {

const Kernels portable_kernels = {"portable", portable::V, portable::TILE, portable::run, portable::share, portable::rank};

}  // namespace ameir_fast::plan
