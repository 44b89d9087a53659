// A hash table with linear probing that holds keys and their numbers side by side. Once it outgrows the caches nearly
// every look-up waits for memory, so the slots of the next keys are asked for in advance.
#include "data/distinct.h"

#include <bit>
#include <cstddef>
#include <utility>

#include "data/mix.h"

namespace ameir_fast {
namespace {

constexpr uint32_t kFree = 0xFFFFFFFFu;
constexpr int64_t kAhead = 16;

struct Slot {
  uint64_t key;
  uint32_t code;
};

class Table {
 public:
  explicit Table(int bits) : slots_(std::size_t{1} << bits, Slot{0, kFree}), mask_((uint64_t{1} << bits) - 1) {}

  void prefetch(uint64_t key) const {
#if defined(__GNUC__)
    __builtin_prefetch(&slots_[mix(key) & mask_]);
#endif
  }

  // The slot of the key, or the free one where it belongs.
  Slot& find(uint64_t key) {
    uint64_t at = mix(key) & mask_;
    while (slots_[at].code != kFree && slots_[at].key != key) at = (at + 1) & mask_;
    return slots_[at];
  }

  bool full(std::size_t used) const { return used * 2 > mask_; }

  void grow() {
    Table larger(std::popcount(mask_) + 2);
    for (const Slot& slot : slots_) {
      if (slot.code != kFree) larger.find(slot.key) = slot;
    }
    std::swap(*this, larger);
  }

 private:
  std::vector<Slot> slots_;
  uint64_t mask_;
};

}  // namespace

std::vector<int64_t> distinct(const uint64_t* keys, const bool* missing, int64_t count, uint32_t* codes) {
  Table table(10);
  std::vector<int64_t> first;
  uint32_t of_missing = kFree;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) table.prefetch(keys[i + kAhead]);
    if (missing != nullptr && missing[i]) {
      if (of_missing == kFree) {
        of_missing = static_cast<uint32_t>(first.size());
        first.push_back(i);
      }
      codes[i] = of_missing;
      continue;
    }
    Slot& slot = table.find(keys[i]);
    if (slot.code == kFree) {
      slot = {keys[i], static_cast<uint32_t>(first.size())};
      codes[i] = slot.code;
      first.push_back(i);
      if (table.full(first.size())) table.grow();
    } else {
      codes[i] = slot.code;
    }
  }
  return first;
}

}  // namespace ameir_fast
