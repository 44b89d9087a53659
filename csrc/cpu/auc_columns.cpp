// Exact AUC of many score columns against one label, tied scores averaged.
//
//   AUC = (#{(p, q): s_p > s_q} + #{(p, q): s_p = s_q} / 2) / (P * N)    over positives p, negatives q
//
// Per column: split the scores into positives and negatives as integers of the same order, radix-sort both
// (no payload travels with a key, which halves the memory traffic of sorting pairs), and count in one merge.
// The count is kept doubled in an int64, so the result has a single rounding, in the final division.
// Traffic per score: one read, then (passes + 1) reads and `passes` writes of the key, in cache up to about
// 100k samples.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "ops.h"

namespace ameir_fast {
namespace {

constexpr int kDigitBits = 11;  // a float needs three passes, and their counters, 24 KiB, stay in L1
constexpr int64_t kRadix = int64_t{1} << kDigitBits;
constexpr int64_t kSmall = 512;  // below, clearing and summing the counters costs more than a comparison sort

// Unsigned integer with the order of the float. -0.0 + 0.0 is +0.0, so both zeros get one key.
uint32_t ordered(float x) {
  const auto bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

uint64_t ordered(double x) {
  const auto bits = std::bit_cast<uint64_t>(x + 0.0);
  return bits ^ (static_cast<uint64_t>(static_cast<int64_t>(bits) >> 63) | 0x8000000000000000u);
}

// Sorts keys[0, n) ascending; spare has room for n keys. Returns where the result is: keys or spare.
template <typename Key>
Key* radix_sort(Key* keys, Key* spare, int64_t n) {
  if (n < kSmall) {
    std::sort(keys, keys + n);
    return keys;
  }
  constexpr int kPasses = (static_cast<int>(sizeof(Key)) * 8 + kDigitBits - 1) / kDigitBits;
  std::array<std::array<uint32_t, kRadix>, kPasses> counts{};
  for (int64_t i = 0; i < n; ++i) {
    for (int pass = 0; pass < kPasses; ++pass) {
      ++counts[pass][(keys[i] >> (pass * kDigitBits)) & (kRadix - 1)];
    }
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    const int shift = pass * kDigitBits;
    auto& count = counts[pass];
    if (count[(keys[0] >> shift) & (kRadix - 1)] == static_cast<uint32_t>(n)) {
      continue;  // every key has this digit
    }
    uint32_t position = 0;
    for (auto& c : count) {
      position += std::exchange(c, position);
    }
    for (int64_t i = 0; i < n; ++i) {
      spare[count[(keys[i] >> shift) & (kRadix - 1)]++] = keys[i];
    }
    std::swap(keys, spare);
  }
  return keys;
}

// Twice the number of pairs (positive above negative), a tie counting one. Both arrays ascend.
template <typename Key>
int64_t doubled_wins(const Key* positive, int64_t num_positive, const Key* negative, int64_t num_negative) {
  int64_t i = 0, j = 0, doubled = 0;
  while (i < num_positive && j < num_negative) {
    const Key p = positive[i], q = negative[j];
    if (p == q) {
      const int64_t first_i = i, first_j = j;
      while (i < num_positive && positive[i] == p) ++i;
      while (j < num_negative && negative[j] == p) ++j;
      doubled += (i - first_i) * (first_j + j);
    } else {  // which of the two is unpredictable: arithmetic instead of a branch
      const int64_t below = q < p;
      doubled += (1 - below) * 2 * j;
      j += below;
      i += 1 - below;
    }
  }
  return doubled + (num_positive - i) * 2 * num_negative;
}

template <typename Score>
void auc_of_columns(const Score* scores, const uint8_t* positive, int64_t columns, int64_t samples,
                    int64_t num_positive, double* result) {
  using Key = decltype(ordered(Score{}));
  const int64_t num_negative = samples - num_positive;
  at::parallel_for(0, columns, 1, [&](int64_t begin, int64_t end) {
    std::vector<Key> keys(samples), spare(samples);
    for (int64_t column = begin; column < end; ++column) {
      const Score* score = scores + column * samples;
      Key* const negatives = keys.data();
      Key* const positives = keys.data() + num_negative;
      int64_t filled_positive = 0;
      bool ordinary = true;
      for (int64_t s = 0; s < samples; ++s) {
        const int64_t is_positive = positive[s];
        Key* const slot = is_positive ? positives + filled_positive : negatives + (s - filled_positive);
        *slot = ordered(score[s]);
        filled_positive += is_positive;
        ordinary &= score[s] == score[s];
      }
      if (!ordinary) {
        result[column] = std::numeric_limits<double>::quiet_NaN();
        continue;
      }
      const Key* sorted_negative = radix_sort(negatives, spare.data(), num_negative);
      // The positives' spare room is the tail of spare: the negatives may lie sorted in its head.
      const Key* sorted_positive = radix_sort(positives, spare.data() + num_negative, num_positive);
      const int64_t doubled = doubled_wins(sorted_positive, num_positive, sorted_negative, num_negative);
      result[column] = static_cast<double>(doubled) /
                       (2.0 * static_cast<double>(num_positive) * static_cast<double>(num_negative));
    }
  });
}

}  // namespace

at::Tensor auc_columns(const at::Tensor& scores, const at::Tensor& label) {
  TORCH_CHECK(scores.dim() == 2, "auc_columns: scores must be [n, S], not of ", scores.dim(), " dimensions");
  TORCH_CHECK(scores.scalar_type() == at::kFloat || scores.scalar_type() == at::kDouble,
              "auc_columns: scores must be float32 or float64, not ", scores.scalar_type());
  TORCH_CHECK(label.dim() == 1 && label.size(0) == scores.size(1) && label.scalar_type() == at::kFloat,
              "auc_columns: label must be float32 [", scores.size(1), "]");
  TORCH_CHECK(scores.size(1) <= std::numeric_limits<int32_t>::max(),  // the doubled count must fit an int64
              "auc_columns: more than 2^31 - 1 samples");
  const at::Tensor columns = scores.contiguous(), labels = label.contiguous();
  const int64_t samples = scores.size(1);
  std::vector<uint8_t> positive(samples);
  int64_t num_positive = 0;
  const float* value = labels.const_data_ptr<float>();
  for (int64_t s = 0; s < samples; ++s) {
    positive[s] = value[s] == 1.0f;
    num_positive += positive[s];
  }
  at::Tensor result = at::empty({scores.size(0)}, scores.options().dtype(at::kDouble));
  if (num_positive == 0 || num_positive == samples) {
    return result.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  if (scores.scalar_type() == at::kFloat) {
    auc_of_columns(columns.const_data_ptr<float>(), positive.data(), scores.size(0), samples, num_positive,
                   result.mutable_data_ptr<double>());
  } else {
    auc_of_columns(columns.const_data_ptr<double>(), positive.data(), scores.size(0), samples, num_positive,
                   result.mutable_data_ptr<double>());
  }
  return result;
}

}  // namespace ameir_fast
