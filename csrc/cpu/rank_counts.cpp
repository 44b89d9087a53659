// Where each user's positive item stands among all items (without some of each user's, if wanted), or among given
// candidates: how many score above it and how many exactly as it does. Scores are dot products; they are counted in tiles and never kept, so the memory
// needed is a tile of items and the users' vectors, whatever the number of items.
//
// Work: 2 * B * V * K flops, each thread on its own users. Each thread packs a tile of items (32 KiB, so that it
// stays in the first-level cache) for all of its users.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string_view>

#include "cpu/rank_kernels.h"
#include "ops.h"

namespace ameir_fast {
namespace {

constexpr int64_t kTileBytes = 32 * 1024;
constexpr int64_t kAhead = 8;  // candidates whose rows are on their way
constexpr std::align_val_t kAlignment{64};

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
};

template <typename T>
std::unique_ptr<T[], Free> aligned(int64_t count) {
  T* const memory = static_cast<T*>(::operator new(static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T),
                                                   kAlignment));
  std::fill(memory, memory + count, T{});
  return std::unique_ptr<T[], Free>(memory);
}

#ifdef AMEIR_FAST_AVX2
// ATEN_CPU_CAPABILITY=default turns vector instructions off here as it does in PyTorch.
bool has_avx2() {
  static const bool found = [] {
    const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
    return !(wanted && std::string_view(wanted) == "default") && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma");
  }();
  return found;
}
#endif

const RankKernel<float>& kernel(float) {
#ifdef AMEIR_FAST_AVX2
  if (has_avx2()) return rank_kernel_float_avx2;
#endif
  return rank_kernel_float;
}

const RankKernel<double>& kernel(double) {
#ifdef AMEIR_FAST_AVX2
  if (has_avx2()) return rank_kernel_double_avx2;
#endif
  return rank_kernel_double;
}

// One call's tensors.
template <typename T>
struct Problem {
  const T* users;
  const T* items;
  const int64_t* positive;
  const int32_t* candidates;  // null: all items but 0, and without
  const int64_t* seen_offsets;  // these of each user, ascending; null: none
  const int32_t* seen;
  int64_t num_items, width, num_candidates;
  T limit;  // of a user's largest absolute value, so that no score overflows
  int64_t* result;

  const T* item(int64_t id) const { return items + id * width; }
};

// Largest absolute value; NaN where there is one.
template <typename T>
T largest(const T* values, int64_t count) {
  T most = 0, poison = 0;
  for (int64_t i = 0; i < count; ++i) {
    most = std::max(most, std::abs(values[i]));
    poison += values[i] * T{0};
  }
  return most + poison;
}

// Item vectors [width] into column `lane` of a panel [width][kItems].
template <typename T>
void pack_item(const T* item, int64_t width, T* panel, int lane) {
  for (int64_t k = 0; k < width; ++k) {
    panel[k * RankLanes<T>::kItems + lane] = item[k];
  }
}

// Users first .. first + kRankUsers - 1 (below end; zeros beyond) as a block [width][kRankUsers].
template <typename T>
void pack_users(const Problem<T>& problem, int64_t first, int64_t end, T* block) {
  for (int u = 0; u < kRankUsers; ++u) {
    for (int64_t k = 0; k < problem.width; ++k) {
      block[k * kRankUsers + u] = first + u < end ? problem.users[(first + u) * problem.width + k] : T{0};
    }
  }
}

// Takes the row's seen items out of its counts. Their scores come from the kernel that counted them.
template <typename T>
void leave_out(const Problem<T>& problem, int64_t row, const T* block, int user, T own, T* panel, T* scores) {
  constexpr int kItems = RankLanes<T>::kItems;
  const int64_t end = problem.seen_offsets[row + 1];
  for (int64_t at = problem.seen_offsets[row]; at < end; at += kItems) {
    const int count = static_cast<int>(std::min<int64_t>(kItems, end - at));
    for (int lane = 0; lane < count; ++lane) {
      pack_item(problem.item(problem.seen[at + lane]), problem.width, panel, lane);
    }
    kernel(T{}).score(block, panel, problem.width, scores);
    for (int lane = 0; lane < count; ++lane) {
      const int64_t id = problem.seen[at + lane];
      const T score = scores[user * kItems + lane];
      const bool counted = id != 0 && id != problem.positive[row];
      problem.result[2 * row] -= counted && score > own;
      problem.result[2 * row + 1] -= counted && score == own;
    }
  }
}

template <typename T>
void rank_among_all(const Problem<T>& problem, int64_t begin, int64_t end) {
  constexpr int kItems = RankLanes<T>::kItems, kLanes = RankLanes<T>::kLanes;
  using Count = typename RankLanes<T>::Count;
  const RankKernel<T>& run = kernel(T{});
  const int64_t width = problem.width, blocks = (end - begin + kRankUsers - 1) / kRankUsers;
  const int64_t tile = std::max<int64_t>(1, kTileBytes / static_cast<int64_t>(width * kItems * sizeof(T)));
  auto users = aligned<T>(blocks * kRankUsers * width), panels = aligned<T>(tile * kItems * width);
  auto own = aligned<T>(blocks * kRankUsers), scores = aligned<T>(kRankUsers * kItems);
  auto above = aligned<Count>(blocks * kRankUsers * kLanes), tied = aligned<Count>(blocks * kRankUsers * kLanes);

  for (int64_t b = 0; b < blocks; ++b) {
    T* const block = users.get() + b * kRankUsers * width;
    const int64_t first = begin + b * kRankUsers;
    pack_users(problem, first, end, block);
    // The positives' own scores come from the same kernel as all others: a tie with itself is exact.
    for (int u = 0; u < kRankUsers && first + u < end; ++u) {
      pack_item(problem.item(problem.positive[first + u]), width, panels.get(), u);
    }
    run.score(block, panels.get(), width, scores.get());
    for (int u = 0; u < kRankUsers; ++u) {
      own[b * kRankUsers + u] = scores[u * kItems + u];
    }
  }
  for (int64_t start = 1; start < problem.num_items; start += tile * kItems) {  // id 0 is never ranked
    const int64_t stop = std::min(problem.num_items, start + tile * kItems);
    const int64_t num_panels = (stop - start + kItems - 1) / kItems;
    for (int64_t i = start; i < start + num_panels * kItems; ++i) {
      T* const panel = panels.get() + (i - start) / kItems * kItems * width;
      if (i < stop) {
        pack_item(problem.item(i), width, panel, static_cast<int>((i - start) % kItems));
      } else {
        for (int64_t k = 0; k < width; ++k) panel[k * kItems + (i - start) % kItems] = T{0};
      }
    }
    run.count(users.get(), own.get(), blocks, panels.get(), num_panels, width, above.get(), tied.get());
  }
  const int64_t empty = (kItems - (problem.num_items - 1) % kItems) % kItems;  // lanes of zeros score exactly 0
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row - begin;
    int64_t more = 0, same = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      more += above[at * kLanes + lane];
      same += tied[at * kLanes + lane];
    }
    problem.result[2 * row] = more - (T{0} > own[at] ? empty : 0);
    problem.result[2 * row + 1] = same - (T{0} == own[at] ? empty : 0);
    if (problem.seen) {
      const T* const block = users.get() + at / kRankUsers * kRankUsers * width;
      leave_out(problem, row, block, static_cast<int>(at % kRankUsers), own[at], panels.get(), scores.get());
    }
  }
}

template <typename T>
void rank_among_candidates(const Problem<T>& problem, int64_t begin, int64_t end) {
  const auto dot = kernel(T{}).dot;
  for (int64_t row = begin; row < end; ++row) {
    const T* const user = problem.users + row * problem.width;
    const int64_t positive = problem.positive[row];
    const T own = dot(user, problem.item(positive), problem.width);
    int64_t more = 0, same = 1;
    const int32_t* const candidates = problem.candidates + row * problem.num_candidates;
    for (int64_t j = 0; j < problem.num_candidates; ++j) {
      if (j + kAhead < problem.num_candidates) {  // the rows lie anywhere: fetching them is most of the time
        __builtin_prefetch(problem.item(candidates[j + kAhead]));
      }
      const int64_t id = candidates[j];
      const T score = dot(user, problem.item(id), problem.width);
      const bool counts = id != 0 && id != positive;
      more += counts && score > own;
      same += counts && score == own;
    }
    problem.result[2 * row] = more;
    problem.result[2 * row + 1] = same;
  }
}

template <typename T>
void rank(Problem<T> problem, int64_t rows) {
  const T most = largest(problem.items, problem.num_items * problem.width);
  problem.limit = std::numeric_limits<T>::max() / static_cast<T>(2 * std::max<int64_t>(problem.width, 1));
  at::parallel_for(0, rows, kRankUsers, [&](int64_t begin, int64_t end) {
    problem.candidates ? rank_among_candidates(problem, begin, end) : rank_among_all(problem, begin, end);
    for (int64_t row = begin; row < end; ++row) {
      const T user = largest(problem.users + row * problem.width, problem.width);
      if (!(user * most < problem.limit)) {  // a score may be infinite or NaN, and compares with nothing
        problem.result[2 * row] = problem.result[2 * row + 1] = -1;
      }
    }
  });
}

}  // namespace

at::Tensor rank_counts(const at::Tensor& users, const at::Tensor& items, const at::Tensor& positive,
                       const std::optional<at::Tensor>& candidates, const std::optional<at::Tensor>& seen_offsets,
                       const std::optional<at::Tensor>& seen) {
  TORCH_CHECK(users.dim() == 2 && items.dim() == 2 && users.size(1) == items.size(1),
              "rank_counts: users must be [B, K] and items [V, K]");
  TORCH_CHECK(users.scalar_type() == items.scalar_type() &&
                  (users.scalar_type() == at::kFloat || users.scalar_type() == at::kDouble),
              "rank_counts: users and items must both be float32 or both be float64");
  TORCH_CHECK(positive.dim() == 1 && positive.size(0) == users.size(0) && positive.scalar_type() == at::kLong,
              "rank_counts: positive must be int64 [B]");
  TORCH_CHECK(!candidates || (candidates->dim() == 2 && candidates->size(0) == users.size(0) &&
                              candidates->scalar_type() == at::kInt),
              "rank_counts: candidates must be int32 [B, n]");
  TORCH_CHECK(seen.has_value() == seen_offsets.has_value() && !(seen && candidates),
              "rank_counts: seen items come with their offsets, and without candidates");
  TORCH_CHECK(!seen || (seen->dim() == 1 && seen->scalar_type() == at::kInt && seen_offsets->dim() == 1 &&
                        seen_offsets->scalar_type() == at::kLong && seen_offsets->size(0) == users.size(0) + 1),
              "rank_counts: seen must be int32 [*] and its offsets int64 [B+1]");
  TORCH_CHECK(items.size(0) <= std::numeric_limits<int32_t>::max(), "rank_counts: more than 2^31 - 1 items");
  const int64_t rows = users.size(0), num_items = items.size(0);
  const at::Tensor u = users.contiguous(), e = items.contiguous(), p = positive.contiguous();
  const auto contiguous = [](const std::optional<at::Tensor>& t) {
    return t ? std::optional(t->contiguous()) : std::nullopt;
  };
  const std::optional<at::Tensor> c = contiguous(candidates), s = contiguous(seen), o = contiguous(seen_offsets);
  const int64_t* wanted = p.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row) {
    TORCH_CHECK(wanted[row] >= 1 && wanted[row] < num_items, "rank_counts: positive ", wanted[row], " of row ", row,
                " is outside 1..", num_items - 1);
  }
  if (c) {
    const int32_t* id = c->const_data_ptr<int32_t>();
    for (int64_t i = 0; i < c->numel(); ++i) {
      TORCH_CHECK(id[i] >= 0 && id[i] < num_items, "rank_counts: candidate ", id[i], " of row ", i / c->size(1),
                  " is outside 0..", num_items - 1);
    }
  }
  if (s) {
    const int64_t* offset = o->const_data_ptr<int64_t>();
    const int32_t* id = s->const_data_ptr<int32_t>();
    bool fits = offset[0] == 0 && offset[rows] == s->numel();
    for (int64_t row = 0; fits && row < rows; ++row) {
      fits = offset[row] <= offset[row + 1];
    }
    TORCH_CHECK(fits, "rank_counts: offsets do not rise from 0 to the number of seen items");
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = offset[row]; i < offset[row + 1]; ++i) {
        TORCH_CHECK(id[i] >= 0 && id[i] < num_items && (i == offset[row] || id[i - 1] < id[i]),
                    "rank_counts: seen items of row ", row, " are not ascending and distinct in 0..", num_items - 1);
      }
    }
  }
  at::Tensor result = at::empty({rows, 2}, users.options().dtype(at::kLong));
  if (rows == 0) {
    return result;
  }
  const auto run = [&]<typename T>(T) {
    rank<T>({u.const_data_ptr<T>(), e.const_data_ptr<T>(), wanted, c ? c->const_data_ptr<int32_t>() : nullptr,
             o ? o->const_data_ptr<int64_t>() : nullptr, s ? s->const_data_ptr<int32_t>() : nullptr, num_items,
             items.size(1), c ? c->size(1) : 0, T{0}, result.mutable_data_ptr<int64_t>()},
            rows);
  };
  users.scalar_type() == at::kFloat ? run(float{}) : run(double{});
  return result;
}

}  // namespace ameir_fast
