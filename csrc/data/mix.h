// Spreading 64-bit keys over a hash table.
#pragma once

#include <cstdint>

namespace ameir_fast {

// Finalizer of SplitMix64: keys that follow a pattern (multiples, hashes of few bits) spread over all slots.
inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

}  // namespace ameir_fast
