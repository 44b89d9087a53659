#include "data/distinct.h"

#include "data/table.h"

namespace ameir_fast {
namespace {

constexpr int64_t kAhead = 16;

struct Slot {
  uint64_t key;
  uint32_t code;
};

}  // namespace

std::vector<int64_t> distinct(const uint64_t* keys, const bool* missing, int64_t count, uint32_t* codes) {
  Table<Slot> table;
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
    Slot& slot = table.find(keys[i], [&](const Slot& other) { return other.key == keys[i]; });
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
