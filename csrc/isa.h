// Which instruction set's kernels run. A kernel file is compiled once for each, with AMEIR_FAST_ISA (its name) and
// AMEIR_FAST_LANES (floats of a vector) defined; see CMakeLists.txt.
#pragma once

#include <string>
#include <vector>

namespace ameir_fast {

// Names of the sets that this build and this processor have, the best one last.
std::vector<std::string> instruction_sets();

// The set in use: an index into {portable, avx2, avx512}; the best one unless use_instruction_set chose another.
int isa();

// Chooses a set by name, for all threads; "" goes back to the best. Returns the name now in use; throws for a set that
// is not there.
std::string use_instruction_set(std::string name);

// The kernels of the set in use among those compiled for each: {portable} or {portable, avx2, avx512}.
template <typename Kernels, size_t count>
const Kernels& choose(const Kernels* const (&all)[count]) {
  return *all[isa()];
}

}  // namespace ameir_fast

#ifdef AMEIR_FAST_AVX2
#define AMEIR_FAST_EVERY_SET(type, name)                                                      \
  namespace portable { extern const type name; }                                              \
  namespace avx2 { extern const type name; }                                                  \
  namespace avx512 { extern const type name; }                                                \
  inline const type& name() { return choose<type, 3>({&portable::name, &avx2::name, &avx512::name}); }
#else
#define AMEIR_FAST_EVERY_SET(type, name)        \
  namespace portable { extern const type name; } \
  inline const type& name() { return choose<type, 1>({&portable::name}); }
#endif
