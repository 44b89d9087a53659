#include "data/assemble.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ameir_fast {
namespace {

[[noreturn]] void bad_range(const std::string& what, int64_t begin, int64_t end, int64_t size,
                            const char* unit) {
  throw std::invalid_argument(what + " is [" + std::to_string(begin) + ", " + std::to_string(end) + ") of " +
                              std::to_string(size) + " " + unit);
}

// Behaviour columns are interleaved into rows of kDepth numbers; a depth known at compile time lets the
// compiler do that with vector instructions. 0 stands for any depth.
template <int64_t kDepth>
void copy_histories(const std::vector<const int32_t*>& events, const std::vector<int64_t>& starts,
                    const int64_t* offsets, int32_t* history) {
  const int64_t depth = kDepth ? kDepth : static_cast<int64_t>(events.size());
  const int32_t* in[kDepth ? kDepth : 1];
  for (size_t b = 0; b < starts.size(); ++b) {
    const int64_t length = offsets[b + 1] - offsets[b];
    int32_t* out = history + offsets[b] * depth;
    if constexpr (kDepth > 0) {
      for (int64_t j = 0; j < kDepth; ++j) in[j] = events[j] + starts[b];
      for (int64_t t = 0; t < length; ++t) {
        for (int64_t j = 0; j < kDepth; ++j) out[t * kDepth + j] = in[j][t];
      }
    } else {
      for (int64_t j = 0; j < depth; ++j) {
        in[0] = events[j] + starts[b];
        for (int64_t t = 0; t < length; ++t) out[t * depth + j] = in[0][t];
      }
    }
  }
}

}  // namespace

Layout plan_batch(const Storage& storage, const int64_t* rows, int64_t num_batch, int64_t max_history,
                  int64_t* history_offsets, int64_t* bag_offsets) {
  for (int64_t b = 0; b < num_batch; ++b) {
    if (rows[b] < 0 || rows[b] >= storage.num_rows) {
      throw std::invalid_argument("row " + std::to_string(rows[b]) + " at position " + std::to_string(b) +
                                  " is outside 0.." + std::to_string(storage.num_rows - 1));
    }
  }
  Layout layout;
  history_offsets[0] = 0;
  if (storage.events.empty()) {
    std::fill(history_offsets, history_offsets + num_batch + 1, 0);
  } else {
    layout.history_start.resize(num_batch);
    for (int64_t b = 0; b < num_batch; ++b) {
      const int64_t begin = storage.begin[rows[b]], end = storage.end[rows[b]];
      if (begin < 0 || begin > end || end > storage.num_events) {
        bad_range("history of row " + std::to_string(rows[b]), begin, end, storage.num_events, "events");
      }
      const int64_t length = std::min(end - begin, max_history);
      layout.history_start[b] = end - length;
      history_offsets[b + 1] = history_offsets[b] + length;
    }
  }
  const int64_t num_bags = static_cast<int64_t>(storage.bags.size());
  layout.bag_start.resize(num_batch * num_bags);
  bag_offsets[0] = 0;
  for (int64_t b = 0; b < num_batch; ++b) {
    for (int64_t j = 0; j < num_bags; ++j) {
      const Bag& bag = storage.bags[j];
      const int64_t begin = bag.offsets[rows[b]], end = bag.offsets[rows[b] + 1];
      if (begin < 0 || begin > end || end > bag.num_ids) {
        bad_range("bag " + std::to_string(j) + " of row " + std::to_string(rows[b]), begin, end, bag.num_ids,
                  "ids");
      }
      const int64_t at = b * num_bags + j;
      layout.bag_start[at] = begin;
      bag_offsets[at + 1] = bag_offsets[at] + (end - begin);
    }
  }
  return layout;
}

void fill_batch(const Storage& storage, const int64_t* rows, int64_t num_batch, const Layout& layout,
                const int64_t* history_offsets, const int64_t* bag_offsets, int32_t* fields, int32_t* history,
                int32_t* bag_ids) {
  const int64_t num_columns = static_cast<int64_t>(storage.columns.size());
  // Column by column: the reads of one column at random rows are independent of each other, so several are in
  // flight.
  for (int64_t c = 0; c < num_columns; ++c) {
    const int32_t* column = storage.columns[c];
    for (int64_t b = 0; b < num_batch; ++b) {
      fields[b * num_columns + c] = column ? column[rows[b]] : 0;
    }
  }
  switch (storage.events.size()) {
    case 0: break;
    case 1: copy_histories<1>(storage.events, layout.history_start, history_offsets, history); break;
    case 2: copy_histories<2>(storage.events, layout.history_start, history_offsets, history); break;
    case 3: copy_histories<3>(storage.events, layout.history_start, history_offsets, history); break;
    default: copy_histories<0>(storage.events, layout.history_start, history_offsets, history);
  }
  const int64_t num_bags = static_cast<int64_t>(storage.bags.size());
  for (int64_t at = 0; at < num_batch * num_bags; ++at) {
    const int32_t* in = storage.bags[at % num_bags].ids + layout.bag_start[at];
    std::copy_n(in, bag_offsets[at + 1] - bag_offsets[at], bag_ids + bag_offsets[at]);
  }
}

}  // namespace ameir_fast
