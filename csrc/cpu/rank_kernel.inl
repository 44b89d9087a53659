// Scores of blocks of users against panels of items, counted without being kept. Included once per instruction
// set by a file that is compiled with its flags and names its own namespace AMEIR_FAST_ISA; nothing here may be
// shared between them, hence no header with inline functions.
//
//   score(u, i) = sum over k of u_k * e_ik, in the order of k, for every user and item alike
//
// A lane belongs to one item, so the order of additions never depends on where in a panel an item lies: equal
// embeddings have equal scores to the last bit, and ties are exact. Per k and block 12 multiply-adds for two
// loads and six broadcasts.
#include "cpu/rank_kernels.h"

namespace ameir_fast {
namespace AMEIR_FAST_ISA {

template <typename T>
struct Vectors {
  typedef T Vector __attribute__((vector_size(32)));
  typedef T Unaligned __attribute__((vector_size(32), aligned(alignof(T)), may_alias));
  typedef typename RankLanes<T>::Count Mask __attribute__((vector_size(32)));
};

template <typename T>
__attribute__((always_inline)) inline void multiply(const T* users, const T* panel, int64_t width,
                                                    typename Vectors<T>::Vector (&sum)[kRankUsers][2]) {
  using Vector = typename Vectors<T>::Vector;
  const Vector* item = reinterpret_cast<const Vector*>(panel);
  for (auto& row : sum) {
    row[0] = row[1] = Vector{};
  }
  for (int64_t k = 0; k < width; ++k, users += kRankUsers, item += 2) {
    const Vector left = item[0], right = item[1];
#pragma GCC unroll 6
    for (int u = 0; u < kRankUsers; ++u) {
      sum[u][0] += users[u] * left;
      sum[u][1] += users[u] * right;
    }
  }
}

template <typename T>
void score(const T* users, const T* panel, int64_t width, T* scores) {
  typename Vectors<T>::Vector sum[kRankUsers][2];
  multiply<T>(users, panel, width, sum);
  auto* out = reinterpret_cast<typename Vectors<T>::Vector*>(scores);
  for (int u = 0; u < kRankUsers; ++u) {
    out[2 * u] = sum[u][0];
    out[2 * u + 1] = sum[u][1];
  }
}

template <typename T>
void count(const T* users, const T* own, int64_t blocks, const T* panels, int64_t num_panels, int64_t width,
           typename RankLanes<T>::Count* above, typename RankLanes<T>::Count* tied) {
  using Vector = typename Vectors<T>::Vector;
  using Mask = typename Vectors<T>::Mask;
  Mask* more = reinterpret_cast<Mask*>(above);
  Mask* same = reinterpret_cast<Mask*>(tied);
  for (int64_t b = 0; b < blocks; ++b, users += kRankUsers * width, own += kRankUsers) {
    for (int64_t p = 0; p < num_panels; ++p) {
      Vector sum[kRankUsers][2];
      multiply<T>(users, panels + p * width * RankLanes<T>::kItems, width, sum);
#pragma GCC unroll 6
      for (int u = 0; u < kRankUsers; ++u) {  // a comparison is -1 in the lanes where it holds
        const Vector mine = own[u] - Vector{};
        more[b * kRankUsers + u] -= (sum[u][0] > mine) + (sum[u][1] > mine);
        same[b * kRankUsers + u] -= (sum[u][0] == mine) + (sum[u][1] == mine);
      }
    }
  }
}

template <typename T>
T dot(const T* user, const T* item, int64_t width) {
  using Vector = typename Vectors<T>::Vector;
  using Unaligned = typename Vectors<T>::Unaligned;
  constexpr int kLanes = RankLanes<T>::kLanes;
  Vector sum = Vector{};
  int64_t k = 0;
  for (; k + kLanes <= width; k += kLanes) {
    sum += *reinterpret_cast<const Unaligned*>(user + k) * *reinterpret_cast<const Unaligned*>(item + k);
  }
  T total = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    total += sum[lane];
  }
  for (; k < width; ++k) {
    total += user[k] * item[k];
  }
  return total;
}

}  // namespace AMEIR_FAST_ISA
}  // namespace ameir_fast
