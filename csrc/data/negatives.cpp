// The item at a place among the allowed ones is computed, not searched for by trial. Lay the items out on a line,
// item i from start(i) to start(i + 1), the integer weights apart (uniform: one place each, start(i) = i - 1, ids
// start at 1). With own items a_0 < a_1 < ... taken out, start(a_j) - (weight of a_0 .. a_{j-1}) places lie below
// a_j, so place r among the allowed ones passes j own items for the smallest j with that above r; adding their
// weight gives a place on the whole line, where the item is found. hostops.py holds the same computation in NumPy;
// both give the same numbers.
#include "data/negatives.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace ameir_fast {
namespace {

constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio, the increment of SplitMix64

// Finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection whose output bits all depend on all
// input bits.
uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// floor(random * bound / 2^64) for bound < 2^32: uniform up to a bias of bound / 2^64 (Lemire 2019, without
// rejection).
int64_t below(uint64_t random, uint64_t bound) {
  return static_cast<int64_t>(((random >> 32) * bound + (((random & 0xFFFFFFFFu) * bound) >> 32)) >> 32);
}

}  // namespace

void sample_negatives(const int64_t* users, const int32_t* positives, const int64_t* rows, int64_t num_batch,
                      const int64_t* user_offsets, int64_t num_users, const int32_t* user_items,
                      int64_t num_user_items, int64_t num_items, const int64_t* starts, int64_t count, uint64_t seed,
                      bool may_be_none, int32_t* out) {
  const uint64_t stream = mix(seed + kGamma);
  const auto start = [&](int64_t item) { return starts ? starts[item] : item - 1; };
  const int64_t total = start(num_items);
  std::vector<int64_t> passed_weight;  // of the own items below each own item, and of all
  for (int64_t b = 0; b < num_batch; ++b) {
    const int64_t user = users[b], positive = positives[b];
    if (user < 0 || user >= num_users) {
      throw std::invalid_argument("user " + std::to_string(user) + " of row " + std::to_string(b) +
                                  " is outside 0.." + std::to_string(num_users - 1));
    }
    if (positive < 0 || positive >= num_items) {
      throw std::invalid_argument("positive item " + std::to_string(positive) + " of row " +
                                  std::to_string(b) + " is outside 0.." + std::to_string(num_items - 1));
    }
    int64_t begin = user_offsets[user];
    const int64_t end = user_offsets[user + 1];
    bool valid = begin >= 0 && begin <= end && end <= num_user_items;
    if (valid && begin < end) {
      valid = user_items[begin] >= 0 && user_items[end - 1] < num_items;
      int descents = 0;
      for (int64_t j = begin + 1; j < end; ++j) {
        descents += user_items[j - 1] >= user_items[j];
      }
      valid = valid && descents == 0;
      begin += user_items[begin] == 0;  // id 0 is never drawn anyway
    }
    if (!valid) {
      throw std::invalid_argument("user " + std::to_string(user) +
                                  ": its own items are not ascending and distinct in 0.." +
                                  std::to_string(num_items - 1));
    }
    const int32_t* own = user_items + begin;
    const int64_t num_own = end - begin;
    const int64_t below_positive = std::lower_bound(own, own + num_own, positive) - own;
    const bool extra = positive > 0 && !(below_positive < num_own && own[below_positive] == positive);
    passed_weight.resize(num_own + 1);
    passed_weight[0] = 0;
    for (int64_t j = 0; j < num_own; ++j) {
      passed_weight[j + 1] = passed_weight[j] + start(own[j] + 1) - start(own[j]);
    }
    const int64_t positive_weight = extra ? start(positive + 1) - start(positive) : 0;
    const int64_t positive_place = positive > 0 ? start(positive) - passed_weight[below_positive] : 0;
    const int64_t allowed = total - passed_weight[num_own] - positive_weight;
    if (allowed <= 0 && !may_be_none) {
      throw std::invalid_argument("user " + std::to_string(user) + ": its own items leave none of " +
                                  std::to_string(num_items - 1) + " items to draw from");
    }
    const uint64_t row_stream = mix(stream + static_cast<uint64_t>(rows ? rows[b] : b) * kGamma);
    for (int64_t slot = 0; slot < count; ++slot) {
      if (allowed <= 0) {
        out[b * count + slot] = 0;
        continue;
      }
      const uint64_t random = mix(row_stream + static_cast<uint64_t>(slot + 1) * kGamma);
      int64_t place = below(random, static_cast<uint64_t>(allowed));
      place += place >= positive_place ? positive_weight : 0;
      // Bisections without branches: their outcomes are random, and so several draws are under way at once.
      int64_t passed = 0;
      for (int64_t size = num_own; size > 0;) {
        const int64_t half = size - size / 2, last = passed + half - 1;
        passed += half & -static_cast<int64_t>(start(own[last]) - passed_weight[last] <= place);
        size -= half;
      }
      place += passed_weight[passed];
      if (!starts) {
        out[b * count + slot] = static_cast<int32_t>(place + 1);
        continue;
      }
      int64_t item = 0;  // the last one that starts at or before the place: items of weight 0 are passed
      for (int64_t size = num_items - 1; size > 0;) {
        const int64_t half = size - size / 2;
        item += half & -static_cast<int64_t>(starts[item + half] <= place);
        size -= half;
      }
      out[b * count + slot] = static_cast<int32_t>(item);
    }
  }
}

}  // namespace ameir_fast
