// Optimizer steps on the rows of an embedding matrix that a batch reads, in time that does not depend on how many
// others there are. Each thread takes the rows of its part of a hash: a row's occurrences meet in one thread, in their
// order, so results do not depend on the number of threads.
#include "train/update.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string_view>

#include "ops.h"

namespace ameir_fast {
namespace {

constexpr int64_t kRowsOfAThread = 1024;  // fewer are not worth waking one
constexpr int64_t kAhead = 32;            // places whose memory is asked for before it is needed: rows lie anywhere
constexpr int64_t kTabulated = 1024;      // gaps whose powers of beta are computed once

uint64_t mixed(int64_t row) { return static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15u; }

int64_t part_of(uint64_t hash, int64_t parts) {
  return static_cast<int64_t>(((hash >> 32) * static_cast<uint64_t>(parts)) >> 32);
}

int64_t parts_for(int64_t count) {
  return std::clamp<int64_t>(count / kRowsOfAThread, 1, at::get_num_threads());
}

template <typename Work>
void for_each_part(int64_t parts, Work work) {
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) work(part);
  });
}

// The rows of one part; `next` [count] is shared with the other parts, each writes the places of its own rows.
Chains chains_of(const int64_t* rows, int64_t count, int64_t part, int64_t parts, int64_t* next) {
  int64_t own = 0;
  for (int64_t i = 0; i < count; ++i) own += part_of(mixed(rows[i]), parts) == part;
  const uint64_t mask = std::bit_ceil(static_cast<uint64_t>(2 * own + 1)) - 1;
  std::vector<int64_t> slots(mask + 1, -1), last;
  Chains chains;
  chains.rows.reserve(own), chains.first.reserve(own), last.reserve(own);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t hash = mixed(rows[i]);
    if (part_of(hash, parts) != part) continue;
    next[i] = -1;
    for (uint64_t slot = (hash >> 20) & mask;; slot = (slot + 1) & mask) {
      const int64_t known = slots[slot];
      if (known < 0) {
        slots[slot] = static_cast<int64_t>(chains.rows.size());
        chains.rows.push_back(rows[i]), chains.first.push_back(i), last.push_back(i);
        break;
      }
      if (chains.rows[known] == rows[i]) {
        next[last[known]] = i;
        last[known] = i;
        break;
      }
    }
  }
  chains.next = next;
  return chains;
}

void check_matrix(const char* op, const char* name, const at::Tensor& matrix, const at::Tensor& embedding) {
  TORCH_CHECK(matrix.scalar_type() == at::kFloat, op, ": ", name, " must be float32, not ", matrix.scalar_type());
  TORCH_CHECK(matrix.dim() == 2 && matrix.sizes() == embedding.sizes(), op, ": ", name,
              " must be [F, K] as the embedding, not ", matrix.sizes());
  TORCH_CHECK(matrix.is_contiguous(), op, ": ", name, " must be contiguous");
}

// `rows` as contiguous memory, each within the matrix.
at::Tensor checked_rows(const char* op, const at::Tensor& rows, int64_t limit) {
  TORCH_CHECK(rows.dim() == 1 && rows.scalar_type() == at::kLong, op, ": rows must be int64 [n], not ",
              rows.scalar_type(), " ", rows.sizes());
  const at::Tensor dense = rows.contiguous();
  const int64_t* row = dense.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < dense.size(0); ++i) {
    TORCH_CHECK_INDEX(row[i] >= 0 && row[i] < limit, op, ": row ", row[i], " at place ", i, " is outside 0..",
                      limit - 1);
  }
  return dense;
}

Optimizer optimizer_of(std::string_view name) {
  if (name == "sgd") return Optimizer::sgd;
  if (name == "adagrad") return Optimizer::adagrad;
  TORCH_CHECK_VALUE(name == "adam", "unknown optimizer '", name, "'; known: sgd, adagrad, adam");
  return Optimizer::adam;
}

}  // namespace

void embedding_update(const at::Tensor& embedding, const std::optional<at::Tensor>& first,
                      const std::optional<at::Tensor>& second, const at::Tensor& rows, const at::Tensor& gradient,
                      c10::string_view optimizer, double learning_rate, int64_t step, double beta1, double beta2,
                      double eps) {
  const char* op = "embedding_update";
  RowUpdate update{};
  update.optimizer = optimizer_of({optimizer.data(), optimizer.size()});
  check_matrix(op, "embedding", embedding, embedding);
  const int needed = static_cast<int>(update.optimizer), given = first.has_value() + second.has_value();
  TORCH_CHECK_VALUE(given == needed && (needed != 1 || first), optimizer, " needs ", needed, " state tensors, got ",
                    given);
  if (first) check_matrix(op, "first", *first, embedding);
  if (second) check_matrix(op, "second", *second, embedding);
  const at::Tensor places = checked_rows(op, rows, embedding.size(0));
  const int64_t count = places.size(0);
  update.width = embedding.size(1);
  TORCH_CHECK(gradient.scalar_type() == at::kFloat && gradient.dim() == 2 && gradient.size(0) == count &&
                  gradient.size(1) == update.width,
              op, ": gradient must be float32 [", count, ", ", update.width, "], not ", gradient.scalar_type(), " ",
              gradient.sizes());
  TORCH_CHECK(update.optimizer != Optimizer::adam || step >= 1, op, ": steps count from 1, got ", step);
  const at::Tensor dense = gradient.contiguous();
  update.embedding = embedding.mutable_data_ptr<float>();
  update.first = first ? first->mutable_data_ptr<float>() : nullptr;
  update.second = second ? second->mutable_data_ptr<float>() : nullptr;
  update.gradient = dense.const_data_ptr<float>();
  update.learning_rate = static_cast<float>(learning_rate), update.eps = static_cast<float>(eps);
  update.beta1 = static_cast<float>(beta1), update.beta2 = static_cast<float>(beta2);
  update.rest1 = static_cast<float>(1 - beta1), update.rest2 = static_cast<float>(1 - beta2);
  update.correction1 = static_cast<float>(1 - std::pow(beta1, step));
  update.correction2 = static_cast<float>(1 - std::pow(beta2, step));

  const at::Tensor next = at::empty({count}, places.options());
  const int64_t* row = places.const_data_ptr<int64_t>();
  int64_t* links = next.mutable_data_ptr<int64_t>();
  const RowKernels& kernels = row_kernels();
  const int64_t parts = parts_for(count);
  for_each_part(parts, [&](int64_t part) { kernels.update(update, chains_of(row, count, part, parts, links)); });
}

void embedding_catch_up(const at::Tensor& embedding, const at::Tensor& first, const at::Tensor& second,
                        const at::Tensor& last_step, const std::optional<at::Tensor>& rows, const at::Tensor& sums,
                        int64_t base, int64_t step, int64_t exact, int64_t window, double beta1, double beta2,
                        double eps) {
  const char* op = "embedding_catch_up";
  check_matrix(op, "embedding", embedding, embedding);
  check_matrix(op, "first", first, embedding);
  check_matrix(op, "second", second, embedding);
  const int64_t limit = embedding.size(0);
  TORCH_CHECK(last_step.dim() == 1 && last_step.size(0) == limit && last_step.scalar_type() == at::kInt &&
                  last_step.is_contiguous(),
              op, ": last_step must be contiguous int32 [", limit, "]");
  TORCH_CHECK(sums.dim() == 2 && sums.size(1) == kSumsColumns && sums.scalar_type() == at::kDouble &&
                  sums.is_contiguous(),
              op, ": sums must be contiguous float64 [steps, ", static_cast<int>(kSumsColumns), "]");
  TORCH_CHECK(0 <= base && base <= step && step - base < sums.size(0), op, ": steps ", base, " to ", step,
              " are not in the ", sums.size(0), " rows of sums");
  CatchUp c{};
  c.width = embedding.size(1);
  c.embedding = embedding.mutable_data_ptr<float>();
  c.first = first.mutable_data_ptr<float>(), c.second = second.mutable_data_ptr<float>();
  c.last_step = last_step.mutable_data_ptr<int32_t>();
  c.sums = sums.const_data_ptr<double>();
  c.base = base, c.step = step, c.exact = exact, c.window = window;
  c.beta1 = beta1, c.beta2 = beta2, c.eps = eps;
  const int64_t tabulated = std::min(step - base, kTabulated) + 1;
  c.decay1.resize(tabulated), c.decay2.resize(tabulated);
  double power1 = 1, power2 = 1;
  for (int64_t gap = 0; gap < tabulated; ++gap, power1 *= beta1, power2 *= beta2) {
    c.decay1[gap] = static_cast<float>(power1), c.decay2[gap] = static_cast<float>(power2);
  }
  const auto check_since = [&](int64_t row) {
    TORCH_CHECK(c.last_step[row] >= base, op, ": row ", row, " is from step ", c.last_step[row], ", before ", base);
  };

  const RowKernels& kernels = row_kernels();
  if (!rows) {
    for (int64_t row = 0; row < limit; ++row) check_since(row);
    at::parallel_for(0, limit, kRowsOfAThread, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> own;
      for (int64_t row = begin; row < end; ++row) {
        if (c.last_step[row] < step) own.push_back(row);
      }
      kernels.catch_up(c, own.data(), static_cast<int64_t>(own.size()));
    });
    return;
  }
  const at::Tensor places = checked_rows(op, *rows, limit);
  const int64_t* row = places.const_data_ptr<int64_t>();
  const int64_t count = places.size(0), parts = parts_for(count);
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(c.last_step + row[i + kAhead], 1);
    check_since(row[i]);
  }
  for_each_part(parts, [&](int64_t part) {
    if (parts == 1) return kernels.catch_up(c, row, count);
    std::vector<int64_t> own;
    own.reserve(count / parts + count / 8);
    for (int64_t i = 0; i < count; ++i) {
      if (part_of(mixed(row[i]), parts) == part) own.push_back(row[i]);
    }
    kernels.catch_up(c, own.data(), static_cast<int64_t>(own.size()));
  });
}

}  // namespace ameir_fast
