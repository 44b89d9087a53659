// Negative items for the retrieval task, without rejection.
#pragma once

#include <cstdint>

namespace ameir_fast {

// Draws `count` items per row, uniformly and independently from 1 .. num_items - 1 without the user's own
// items user_items[user_offsets[u], user_offsets[u + 1]) (ascending, distinct) and without the row's
// positive. A draw is a pure function of (seed, row, slot). Throws std::invalid_argument naming the offending
// row or user.
void sample_negatives(const int64_t* users, const int32_t* positives, int64_t num_batch,
                      const int64_t* user_offsets, int64_t num_users, const int32_t* user_items,
                      int64_t num_user_items, int64_t num_items, int64_t count, uint64_t seed, int32_t* out);

}  // namespace ameir_fast
