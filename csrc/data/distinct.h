// The distinct ones of many keys.
#pragma once

#include <cstdint>
#include <vector>

namespace ameir_fast {

// codes[i] is the number of keys[i] among the distinct keys in order of first appearance; returned is where each of
// them appears first. Elements with missing[i] (null: none) share one number of their own, whatever their key.
// count < 2^32.
std::vector<int64_t> distinct(const uint64_t* keys, const bool* missing, int64_t count, uint32_t* codes);

}  // namespace ameir_fast
