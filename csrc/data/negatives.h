// Negative items for the retrieval task, without rejection.
#pragma once

#include <cstdint>

namespace ameir_fast {

// Draws `count` items per row, independently from 1 .. num_items - 1 without the user's own items
// user_items[user_offsets[u], user_offsets[u + 1]) (ascending, distinct) and without the row's positive: uniformly,
// or with `starts` [num_items + 1] in proportion to starts[i + 1] - starts[i] (never decreasing, starts[0] and
// starts[1] zero, the last below 2^32; the caller checks). A draw is a pure function of (seed, rows[b], slot), with
// the row's place in the batch where `rows` is null. Where nothing is left to draw, 0 if `may_be_none`; otherwise,
// and for every other mistake, throws std::invalid_argument naming the offending row or user.
void sample_negatives(const int64_t* users, const int32_t* positives, const int64_t* rows, int64_t num_batch,
                      const int64_t* user_offsets, int64_t num_users, const int32_t* user_items,
                      int64_t num_user_items, int64_t num_items, const int64_t* starts, int64_t count, uint64_t seed,
                      bool may_be_none, int32_t* out);

}  // namespace ameir_fast
