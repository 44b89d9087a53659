// A hash table with linear probing that holds keys and their numbers side by side. Once it outgrows the caches nearly
// every look-up waits for memory, so slots can be asked for in advance.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace ameir_fast {

// Finalizer of SplitMix64: keys that follow a pattern (multiples, hashes of few bits) spread over all slots.
inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

constexpr uint32_t kFree = 0xFFFFFFFFu;  // the code of a free slot

// `Slot` begins with uint64_t key and uint32_t code.
template <typename Slot>
class Table {
 public:
  Table() { clear(10); }

  void prefetch(uint64_t key) const {
#if defined(__GNUC__)
    __builtin_prefetch(&slots_[mix(key) & mask_]);
#endif
  }

  // The slot for which `same` holds, or the free one where the key belongs.
  template <typename Same>
  Slot& find(uint64_t key, Same same) {
    uint64_t at = mix(key) & mask_;
    while (slots_[at].code != kFree && !same(slots_[at])) at = (at + 1) & mask_;
    return slots_[at];
  }

  bool full(std::size_t used) const { return used * 2 > mask_; }

  void grow() {
    const std::vector<Slot> old = std::move(slots_);
    clear(std::popcount(mask_) + 2);
    for (const Slot& slot : old) {
      if (slot.code != kFree) find(slot.key, [](const Slot&) { return false; }) = slot;
    }
  }

 private:
  void clear(int bits) {
    slots_.assign(std::size_t{1} << bits, Slot{0, kFree});
    mask_ = (uint64_t{1} << bits) - 1;
  }

  std::vector<Slot> slots_;
  uint64_t mask_;
};

}  // namespace ameir_fast
