// The kernels of rank_counts: one table of functions for each instruction set that they are compiled for.
#pragma once

#include <cstdint>

namespace ameir_fast {

constexpr int kRankUsers = 6;  // users of a block: 12 accumulators, two item vectors, a broadcast; AVX2 has 16

// Items of a panel, in two vectors of 32 bytes, and the integer as wide as a lane.
template <typename T>
struct RankLanes;
template <>
struct RankLanes<float> {
  using Count = int32_t;
  static constexpr int kItems = 16, kLanes = 8;
};
template <>
struct RankLanes<double> {
  using Count = int64_t;
  static constexpr int kItems = 8, kLanes = 4;
};

// All arrays are 32-byte aligned. users [blocks][width][kRankUsers], panels [num_panels][width][kItems],
// own [blocks][kRankUsers], above and tied [blocks][kRankUsers][kLanes], scores [kRankUsers][kItems].
template <typename T>
struct RankKernel {
  using Count = typename RankLanes<T>::Count;
  // Adds how many of the panels' items score above each user's own score, and how many exactly as it.
  void (*count)(const T* users, const T* own, int64_t blocks, const T* panels, int64_t num_panels, int64_t width,
                Count* above, Count* tied);
  // Scores of one block against one panel.
  void (*score)(const T* users, const T* panel, int64_t width, T* scores);
  // Score of one user and one item, [width] each and of any alignment; equal items have equal scores here too.
  T (*dot)(const T* user, const T* item, int64_t width);
};

extern const RankKernel<float> rank_kernel_float;
extern const RankKernel<double> rank_kernel_double;
#ifdef AMEIR_FAST_AVX2
extern const RankKernel<float> rank_kernel_float_avx2;
extern const RankKernel<double> rank_kernel_double_avx2;
#endif

}  // namespace ameir_fast
