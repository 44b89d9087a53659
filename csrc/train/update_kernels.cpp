// Rows of an embedding matrix, one after the other; loops over a row's K numbers are the compiler's to vectorise, with
// the usual widths known to it. A row's result depends on that row alone.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "train/update.h"

namespace ameir_fast::AMEIR_FAST_ISA {
namespace {

constexpr int64_t kAhead = 16;  // rows whose memory is asked for before it is needed: they lie anywhere

// Calls work(K) with a constant for the usual widths.
template <typename Work>
void with_width(int64_t width, Work work) {
  switch (width) {
    case 4: return work(std::integral_constant<int64_t, 4>());
    case 8: return work(std::integral_constant<int64_t, 8>());
    case 16: return work(std::integral_constant<int64_t, 16>());
    case 32: return work(std::integral_constant<int64_t, 32>());
    case 64: return work(std::integral_constant<int64_t, 64>());
    default: return work(width);
  }
}

void ask_for(const float* row, int64_t width) {
  for (int64_t at = 0; at < width; at += 16) __builtin_prefetch(row + at, 1);
}

template <Optimizer optimizer, typename Width>
void update_row(const RowUpdate& u, int64_t row, const float* __restrict g, Width width) {
  float* __restrict w = u.embedding + row * width;
  if constexpr (optimizer == Optimizer::sgd) {
    for (int64_t k = 0; k < width; ++k) w[k] -= u.learning_rate * g[k];
  } else if constexpr (optimizer == Optimizer::adagrad) {
    float* __restrict squares = u.first + row * width;
    for (int64_t k = 0; k < width; ++k) {
      squares[k] += g[k] * g[k];
      w[k] -= u.learning_rate * (g[k] / (std::sqrt(squares[k]) + u.eps));
    }
  } else {
    float* __restrict m = u.first + row * width;
    float* __restrict v = u.second + row * width;
    for (int64_t k = 0; k < width; ++k) {
      m[k] = u.beta1 * m[k] + u.rest1 * g[k];
      v[k] = u.beta2 * v[k] + u.rest2 * (g[k] * g[k]);
      w[k] -= u.learning_rate * (m[k] / u.correction1 / (std::sqrt(v[k] / u.correction2) + u.eps));
    }
  }
}

template <Optimizer optimizer, typename Width>
void update_rows(const RowUpdate& u, const Chains& chains, Width width) {
  std::vector<float> total(width);
  const int64_t count = static_cast<int64_t>(chains.rows.size());
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const int64_t at = chains.rows[i + kAhead] * width;
      ask_for(u.embedding + at, width);
      if (optimizer != Optimizer::sgd) ask_for(u.first + at, width);
      if (optimizer == Optimizer::adam) ask_for(u.second + at, width);
    }
    const float* g = u.gradient + chains.first[i] * width;
    int64_t place = chains.next[chains.first[i]];
    if (place >= 0) {
      float* __restrict sum = total.data();
      std::copy(g, g + width, sum);
      for (; place >= 0; place = chains.next[place]) {
        const float* __restrict more = u.gradient + place * width;
        for (int64_t k = 0; k < width; ++k) sum[k] += more[k];
      }
      g = sum;
    }
    update_row<optimizer>(u, chains.rows[i], g, width);
  }
}

void update(const RowUpdate& u, const Chains& chains) {
  with_width(u.width, [&](auto width) {
    switch (u.optimizer) {
      case Optimizer::sgd: return update_rows<Optimizer::sgd>(u, chains, width);
      case Optimizer::adagrad: return update_rows<Optimizer::adagrad>(u, chains, width);
      case Optimizer::adam: return update_rows<Optimizer::adam>(u, chains, width);
    }
  });
}

// Every step on its own, where the expansion would not be exact.
template <typename Width>
void follow(const CatchUp& c, int64_t since, float* __restrict w, const float* __restrict m, const float* __restrict v,
            float* __restrict root, float* __restrict sum, Width width) {
  for (int64_t k = 0; k < width; ++k) {
    root[k] = std::sqrt(v[k]);
    sum[k] = 0;
  }
  const float eps = static_cast<float>(c.eps);
  double moment = 1, scale = 1;
  const double shrink = std::sqrt(c.beta2);
  double power1 = std::pow(c.beta1, since), power2 = std::pow(c.beta2, since);
  const int64_t end = std::min(c.step, since + c.window);
  for (int64_t step = since + 1; step <= end; ++step) {
    moment *= c.beta1, scale *= shrink, power1 *= c.beta1, power2 *= c.beta2;
    const double rate = c.sums[(step - c.base) * kSumsColumns + kLearningRate];
    const float factor = static_cast<float>(rate * moment / (1 - power1));
    const float g = static_cast<float>(scale / std::sqrt(1 - power2));
    for (int64_t k = 0; k < width; ++k) sum[k] += factor / (root[k] * g + eps);
  }
  for (int64_t k = 0; k < width; ++k) w[k] -= m[k] * sum[k];
}

template <typename Width>
void expand(const CatchUp& c, int64_t since, float* __restrict w, const float* __restrict m, const float* __restrict v,
            Width width) {
  const double* sums = c.sums + (since - c.base) * kSumsColumns;
  const float eps = static_cast<float>(c.eps), floor = static_cast<float>(c.eps * sums[kCentre]);
  float order[kOrders];
  for (int p = 0; p < kOrders; ++p) order[p] = static_cast<float>(sums[kOrder0 + p]);
  for (int64_t k = 0; k < width; ++k) {
    const float over = 1.0f / (std::sqrt(v[k]) + floor), z = eps * over;
    w[k] -= m[k] * over * (order[0] - z * (order[1] - z * (order[2] - z * (order[3] - z * order[4]))));
  }
}

template <typename Width>
void catch_up_row(const CatchUp& c, int64_t row, float* scratch, Width width) {
  const int64_t since = c.last_step[row], gap = c.step - since;
  if (gap <= 0) return;
  c.last_step[row] = static_cast<int32_t>(c.step);
  float* __restrict m = c.first + row * width;
  float* __restrict v = c.second + row * width;
  float seen = 0;
  for (int64_t k = 0; k < width; ++k) seen += std::fabs(m[k]) + v[k];
  if (seen == 0) return;  // of most rows at first
  float* w = c.embedding + row * width;
  if (since < c.exact) {
    follow(c, since, w, m, v, scratch, scratch + width, width);
  } else {
    expand(c, since, w, m, v, width);
  }
  const bool is_short = gap < static_cast<int64_t>(c.decay1.size());
  const float decay1 = is_short ? c.decay1[gap] : static_cast<float>(std::pow(c.beta1, gap));
  const float decay2 = is_short ? c.decay2[gap] : static_cast<float>(std::pow(c.beta2, gap));
  for (int64_t k = 0; k < width; ++k) {
    m[k] *= decay1;
    v[k] *= decay2;
  }
}

void catch_up(const CatchUp& c, const int64_t* rows, int64_t count) {
  with_width(c.width, [&](auto width) {
    std::vector<float> scratch(2 * width);
    for (int64_t i = 0; i < count; ++i) {
      if (i + 2 * kAhead < count) __builtin_prefetch(c.last_step + rows[i + 2 * kAhead], 1);
      if (i + kAhead < count && c.last_step[rows[i + kAhead]] < c.step) {
        const int64_t at = rows[i + kAhead] * width;
        ask_for(c.embedding + at, width);
        ask_for(c.first + at, width);
        ask_for(c.second + at, width);
      }
      catch_up_row(c, rows[i], scratch.data(), width);
    }
  });
}

}  // namespace

extern const RowKernels row_kernels;  // seen from other files
const RowKernels row_kernels = {update, catch_up};

}  // namespace ameir_fast::AMEIR_FAST_ISA
