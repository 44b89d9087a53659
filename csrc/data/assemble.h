// Rows of columnar storage as one jagged batch. Plain pointers, no Python: callers hold no lock while this
// runs.
#pragma once

#include <cstdint>
#include <vector>

namespace ameir_fast {

// One multi-categorical column: row r owns ids[offsets[r], offsets[r + 1]).
struct Bag {
  const int32_t* ids;
  int64_t num_ids;
  const int64_t* offsets;
};

// R rows: categorical columns [R] (null where the field is multi-categorical), bags, and behaviour columns
// [E] of which row r's history is [begin[r], end[r]).
struct Storage {
  int64_t num_rows;
  std::vector<const int32_t*> columns;
  std::vector<Bag> bags;
  std::vector<const int32_t*> events;
  int64_t num_events;
  const int64_t* begin;
  const int64_t* end;
};

// Which parts of the storage a batch takes. The lengths are the differences of the offsets, the starts are
// positions in the storage; all were checked, so copying needs to look at no untrusted number again.
struct Layout {
  std::vector<int64_t> history_start;  // [B]
  std::vector<int64_t> bag_start;      // [B * bags], row-major
};

// Checks every index and fills the offsets (history_offsets [B + 1], bag_offsets [B * bags + 1]). The newest
// max_history events are taken. Throws std::invalid_argument naming the offending row.
Layout plan_batch(const Storage& storage, const int64_t* rows, int64_t num_batch, int64_t max_history,
                  int64_t* history_offsets, int64_t* bag_offsets);

// Copies what plan_batch laid out: fields [B, columns], history [T, events], bag_ids [*].
void fill_batch(const Storage& storage, const int64_t* rows, int64_t num_batch, const Layout& layout,
                const int64_t* history_offsets, const int64_t* bag_offsets, int32_t* fields, int32_t* history,
                int32_t* bag_ids);

}  // namespace ameir_fast
