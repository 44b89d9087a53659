// embedding_interactions and squeeze_excite: samples go by tiles, whose inputs (fields, their products) exist in a
// thread's scratch memory only; a backward pass makes them again.
//
// Sums over samples are those of fixed chunks of tiles, added in order: how many threads there are changes no number.
// Work of embedding_interactions: 2 B K0 out flops forward, twice that backward. Memory: the batch's ids and
// embeddings, and in the backward pass the gradients of its fields [B, N, K].
#include "train/fields.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "ops.h"
#include "train/common.h"

namespace ameir_fast {
namespace {

using namespace train;
using at::Tensor;
using Maybe = MaybeTensor;
using Numbers = at::IntArrayRef;

constexpr int64_t kMostChunks = 8;
constexpr int64_t kManySums = 64 * 1024;  // beyond so many numbers, fewer chunks: their sums go through memory
constexpr int64_t kGrain = 32 * 1024;     // numbers worth a thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Tensor check_ids(const Tensor& t, const char* name, int64_t dim) {
  TORCH_CHECK(t.scalar_type() == at::kLong, name, ": dtype ", t.scalar_type(), ", expected int64");
  TORCH_CHECK(t.device().is_cpu(), name, ": on ", t.device(), ", expected the CPU");
  TORCH_CHECK(t.dim() == dim, name, ": ", t.dim(), " dimensions, expected ", dim);
  return t.contiguous();
}

// Where the first id lies that is no row of the embedding, or count.
int64_t first_outside(const int64_t* ids, int64_t count, int64_t size) {
  bool all = true;
  for (int64_t i = 0; i < count; ++i) all &= static_cast<uint64_t>(ids[i]) < static_cast<uint64_t>(size);
  if (all) return count;
  return std::find_if(ids, ids + count, [&](int64_t id) { return id < 0 || id >= size; }) - ids;
}

// The arguments that both operations start with, checked.
struct Lookup {
  Tensor embedding, rows, bag_rows, bag_offsets;
  std::vector<int64_t> bag_of;
  Fields fields = {};
  int64_t samples, size;

  Lookup(const Tensor& embedding_, const Tensor& rows_, const Maybe& bag_rows_, const Maybe& bag_offsets_,
         Numbers multi, Numbers factors, Numbers orders) {
    check_float(embedding_, "embedding", 2);
    embedding = with_whole_rows(embedding_);
    rows = check_ids(rows_, "rows", 2);
    samples = rows.size(0), size = embedding.size(0);
    fields.embedding = embedding.const_data_ptr<float>();
    fields.stride = embedding.stride(0), fields.k = embedding.size(1);
    TORCH_CHECK(fields.k > 0, "embedding: no columns");
    fields.rows = rows.const_data_ptr<int64_t>(), fields.fields = rows.size(1);
    const int64_t wrong = first_outside(fields.rows, rows.numel(), size);
    TORCH_CHECK_INDEX(wrong == rows.numel(), "rows: id ", fields.rows[wrong], " of sample ", wrong / fields.fields,
                      ", field ", wrong % fields.fields, " is outside [0, ", size, ")");
    if (!multi.empty()) add_bags(bag_rows_, bag_offsets_, multi);
    int64_t total = 0;
    for (int64_t order : orders) {
      TORCH_CHECK(order > 0, "orders: ", order, " is not positive");
      total += order;
      fields.most_factors = std::max(fields.most_factors, order);
    }
    TORCH_CHECK(total == static_cast<int64_t>(factors.size()), "interaction_fields: ", factors.size(),
                " fields for orders that sum to ", total);
    for (int64_t f : factors) check_field(f, "interaction_fields");
    fields.factors = factors.data(), fields.orders = orders.data();
    fields.interactions = static_cast<int64_t>(orders.size());
  }

  // [samples, fields, k], to be scattered.
  Tensor empty_gradient() const { return at::empty({samples, fields.fields, fields.k}, embedding.options()); }

  Tensor scatter(const Tensor& gradient) const {
    Tensor result = at::empty({size, fields.k}, embedding.options());
    const float* from = gradient.const_data_ptr<float>();
    float* to = result.data_ptr<float>();
    at::parallel_for(0, size, std::max<int64_t>(1, kGrain / fields.k), [&](int64_t begin, int64_t end) {
      field_kernels().scatter(fields, samples, from, begin, end, to);
    });
    return result;
  }

 private:
  void check_field(int64_t f, const char* name) const {
    TORCH_CHECK(f >= 0 && f < fields.fields, name, ": ", f, " is none of ", fields.fields, " fields");
  }

  void add_bags(const Maybe& bag_rows_, const Maybe& bag_offsets_, Numbers multi) {
    TORCH_CHECK(bag_rows_ && bag_offsets_, "multi_fields: bag_rows and bag_offsets are missing");
    bag_rows = check_ids(*bag_rows_, "bag_rows", 1), bag_offsets = check_ids(*bag_offsets_, "bag_offsets", 1);
    fields.bags = static_cast<int64_t>(multi.size());
    bag_of.assign(fields.fields, -1);
    for (int64_t i = 0; i < fields.bags; ++i) {
      check_field(multi[i], "multi_fields");
      TORCH_CHECK(bag_of[multi[i]] < 0, "multi_fields: ", multi[i], " is there twice");
      bag_of[multi[i]] = i;
    }
    const int64_t count = samples * fields.bags, ids = bag_rows.size(0);
    TORCH_CHECK(bag_offsets.size(0) == count + 1, "bag_offsets: ", bag_offsets.size(0), " numbers, expected ",
                count + 1);
    fields.bag_of = bag_of.data();
    fields.bag_rows = bag_rows.const_data_ptr<int64_t>(), fields.bag_offsets = bag_offsets.const_data_ptr<int64_t>();
    const int64_t* ends = fields.bag_offsets;
    TORCH_CHECK(ends[0] == 0, "bag_offsets: the first is ", ends[0], ", not 0");
    for (int64_t i = 0; i < count; ++i) {
      TORCH_CHECK(ends[i] <= ends[i + 1], "bag_offsets: ", ends[i + 1], " after ", ends[i], " at ", i + 1);
    }
    TORCH_CHECK(ends[count] <= ids, "bag_offsets: the last is ", ends[count], " for ", ids, " ids");
    const int64_t wrong = first_outside(fields.bag_rows, ends[count], size);
    if (wrong < ends[count]) {
      const int64_t bag = std::upper_bound(ends, ends + count + 1, wrong) - ends - 1;
      TORCH_CHECK_INDEX(false, "bag_rows: id ", fields.bag_rows[wrong], " of sample ", bag / fields.bags, ", field ",
                        multi[bag % fields.bags], " is outside [0, ", size, ")");
    }
  }
};

// A matrix packed as the right factor of products, transposed or as it is.
Tensor packed(const Tensor& matrix, bool transposed) {
  Matrix b = {matrix.const_data_ptr<float>(), matrix.size(0), matrix.size(1), matrix.stride(0), matrix.stride(1)};
  if (transposed) std::swap(b.rows, b.columns), std::swap(b.row, b.column);
  Tensor result = at::empty({b.rows * padded(b.columns)}, matrix.options());
  const FieldKernels& kernels = field_kernels();
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, b.rows * kernels.panel));
  at::parallel_for(0, ceil_div(b.columns, kernels.panel), grain, [&](int64_t first, int64_t last) {
    kernels.pack(b, first, last, result.data_ptr<float>());
  });
  return result;
}

// run(kernels, begin, end, scratch) for every tile of samples.
template <typename Run>
void for_tiles(int64_t samples, int64_t memory, Run run) {
  const FieldKernels& kernels = field_kernels();
  at::parallel_for(0, ceil_div(samples, kTile), 1, [&](int64_t first, int64_t last) {
    float* space = scratch(memory);
    for (int64_t t = first; t < last; ++t) run(kernels, t * kTile, std::min(samples, (t + 1) * kTile), space);
  });
}

// Tensors of some shapes that are sums over samples: run(kernels, begin, end, add, scratch, sums) for every tile, where
// `sums` holds all their numbers for the tile's chunk, and the tile is the chunk's first one unless `add`.
template <typename Run>
std::vector<Tensor> sum_tiles(int64_t samples, const std::vector<std::vector<int64_t>>& shapes, int64_t memory,
                              const at::TensorOptions& options, Run run) {
  std::vector<Tensor> result;
  int64_t count = 0;
  for (const std::vector<int64_t>& shape : shapes) {
    result.push_back(samples ? at::empty(shape, options) : at::zeros(shape, options));
    count += result.back().numel();
  }
  if (samples == 0) return result;
  const FieldKernels& kernels = field_kernels();
  const int64_t tiles = ceil_div(samples, kTile);
  const int64_t chunks = std::min(tiles, count > kManySums ? kMostChunks / 2 : kMostChunks);
  const Tensor sums = at::empty({chunks, count}, options);
  float* all = sums.data_ptr<float>();
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    float* space = scratch(memory);
    for (int64_t c = first; c < last; ++c) {
      const int64_t start = c * tiles / chunks;
      for (int64_t t = start; t < (c + 1) * tiles / chunks; ++t) {
        run(kernels, t * kTile, std::min(samples, (t + 1) * kTile), t > start, space, all + c * count);
      }
    }
  });
  for (Tensor& one : result) {
    float* to = one.data_ptr<float>();
    at::parallel_for(0, one.numel(), kGrain, [&](int64_t begin, int64_t end) {
      std::copy(all + begin, all + end, to + begin);
      for (int64_t c = 1; c < chunks; ++c) {
        for (int64_t i = begin; i < end; ++i) to[i] += all[c * count + i];
      }
    });
    all += one.numel();
  }
  return result;
}

// ---- embedding_interactions ------------------------------------------------------------------------------

struct FirstLayer {
  Lookup lookup;
  Tensor dense, forward, backward, bias;
  Interactions at = {};

  FirstLayer(Lookup&& lookup_, const Maybe& dense_, const Tensor& weight, const Tensor& bias_,
             std::string_view activation, bool back)
      : lookup(std::move(lookup_)) {
    at.fields = lookup.fields;
    if (dense_) {
      check_float(*dense_, "dense", 2);
      TORCH_CHECK(dense_->size(0) == lookup.samples, "dense: ", dense_->size(0), " rows for ", lookup.samples,
                  " samples");
      dense = with_whole_rows(*dense_);
    }
    at.dense = dense_ ? dense.const_data_ptr<float>() : nullptr;
    at.dense_width = dense_ ? dense.size(1) : 0, at.dense_stride = dense_ ? dense.stride(0) : 0;
    at.inputs = at.dense_width + at.fields.columns();
    check_float(weight, "weight", 2);
    at.outputs = weight.size(0);
    check_shape(weight, "weight", {at.outputs, at.inputs});
    check_shape(bias_, "bias", {at.outputs});
    at.act = act_of(activation);
    if (!back || at.act != Act::identity) {
      forward = packed(weight, true);
      bias = at::zeros({padded(at.outputs)}, bias_.options());
      bias.narrow(0, 0, at.outputs).copy_(bias_);
      at.forward = forward.const_data_ptr<float>(), at.bias = bias.const_data_ptr<float>();
    }
    if (back) {
      backward = packed(weight, false);
      at.backward = backward.const_data_ptr<float>();
    }
  }
};

// ---- squeeze_excite --------------------------------------------------------------------------------------

struct Shortcut {
  Lookup lookup;
  Tensor project;
  std::vector<Tensor> weights;
  Excite at = {};

  Shortcut(Lookup&& lookup_, const Tensor& project_, const Tensor& squeeze, const Tensor& excite, bool back)
      : lookup(std::move(lookup_)) {
    at.fields = lookup.fields;
    at.columns = at.fields.fields + at.fields.interactions;
    check_shape(project_, "project", {1, at.fields.k});
    check_float(squeeze, "squeeze", 2);
    at.hidden = squeeze.size(0);
    check_shape(squeeze, "squeeze", {at.hidden, at.columns});
    check_shape(excite, "excite", {at.columns, at.hidden});
    project = project_.contiguous();
    at.project = project.const_data_ptr<float>();
    at.squeeze_t = pack(squeeze, true), at.excite_t = pack(excite, true);
    if (back) at.squeeze = pack(squeeze, false), at.excite = pack(excite, false);
  }

 private:
  const float* pack(const Tensor& matrix, bool transposed) {
    weights.push_back(packed(matrix, transposed));
    return weights.back().const_data_ptr<float>();
  }
};

}  // namespace

Tensor embedding_interactions(const Tensor& embedding, const Tensor& rows, const Maybe& bag_rows,
                              const Maybe& bag_offsets, Numbers multi_fields, Numbers interaction_fields,
                              Numbers orders, const Maybe& dense, const Tensor& weight, const Tensor& bias,
                              std::string_view activation) {
  const FirstLayer layer({embedding, rows, bag_rows, bag_offsets, multi_fields, interaction_fields, orders}, dense,
                         weight, bias, activation, false);
  Tensor out = at::empty({layer.lookup.samples, layer.at.outputs}, weight.options());
  float* to = out.data_ptr<float>();
  for_tiles(layer.lookup.samples, layer.at.scratch(),
            [&](const FieldKernels& kernels, int64_t begin, int64_t end, float* space) {
              kernels.interactions(layer.at, begin, end, space, to);
            });
  return out;
}

std::vector<Tensor> embedding_interactions_backward(const Tensor& grad_, const Tensor& embedding, const Tensor& rows,
                                                    const Maybe& bag_rows, const Maybe& bag_offsets,
                                                    Numbers multi_fields, Numbers interaction_fields, Numbers orders,
                                                    const Maybe& dense, const Tensor& weight, const Tensor& bias,
                                                    std::string_view activation) {
  const FirstLayer layer({embedding, rows, bag_rows, bag_offsets, multi_fields, interaction_fields, orders}, dense,
                         weight, bias, activation, true);
  const int64_t samples = layer.lookup.samples, inputs = layer.at.inputs, outputs = layer.at.outputs;
  check_shape(grad_, "grad", {samples, outputs});
  const Tensor grad = grad_.contiguous();
  const float* from = grad.const_data_ptr<float>();
  Tensor fields = layer.lookup.empty_gradient();
  Tensor d_dense = at::empty({samples, layer.at.dense_width}, weight.options());
  float *d_fields = fields.data_ptr<float>(), *to_dense = d_dense.data_ptr<float>();
  std::vector<Tensor> sums = sum_tiles(
      samples, {{outputs, inputs}, {outputs}}, layer.at.scratch(), weight.options(),
      [&](const FieldKernels& kernels, int64_t begin, int64_t end, bool add, float* space, float* sum) {
        kernels.interactions_backward(layer.at, begin, end, from, add, space,
                                      {d_fields, to_dense, sum, sum + outputs * inputs});
      });
  std::vector<Tensor> result = {layer.lookup.scatter(fields)};
  if (dense) result.push_back(d_dense);
  result.insert(result.end(), sums.begin(), sums.end());
  return result;
}

Tensor squeeze_excite(const Tensor& embedding, const Tensor& rows, const Maybe& bag_rows, const Maybe& bag_offsets,
                      Numbers multi_fields, Numbers interaction_fields, Numbers orders, const Tensor& project,
                      const Tensor& squeeze, const Tensor& excite) {
  const Shortcut shortcut({embedding, rows, bag_rows, bag_offsets, multi_fields, interaction_fields, orders}, project,
                          squeeze, excite, false);
  Tensor out = at::empty({shortcut.lookup.samples, shortcut.at.fields.k}, project.options());
  float* to = out.data_ptr<float>();
  for_tiles(shortcut.lookup.samples, shortcut.at.scratch(),
            [&](const FieldKernels& kernels, int64_t begin, int64_t end, float* space) {
              kernels.excite(shortcut.at, begin, end, space, to);
            });
  return out;
}

std::vector<Tensor> squeeze_excite_backward(const Tensor& grad_, const Tensor& embedding, const Tensor& rows,
                                            const Maybe& bag_rows, const Maybe& bag_offsets, Numbers multi_fields,
                                            Numbers interaction_fields, Numbers orders, const Tensor& project,
                                            const Tensor& squeeze, const Tensor& excite) {
  const Shortcut shortcut({embedding, rows, bag_rows, bag_offsets, multi_fields, interaction_fields, orders}, project,
                          squeeze, excite, true);
  const int64_t samples = shortcut.lookup.samples, k = shortcut.at.fields.k;
  const int64_t size = shortcut.at.columns * shortcut.at.hidden;
  check_shape(grad_, "grad", {samples, k});
  const Tensor grad = grad_.contiguous();
  const float* from = grad.const_data_ptr<float>();
  Tensor fields = shortcut.lookup.empty_gradient();
  float* d_fields = fields.data_ptr<float>();
  std::vector<Tensor> result = sum_tiles(
      samples, {{1, k}, squeeze.sizes().vec(), excite.sizes().vec()}, shortcut.at.scratch(), project.options(),
      [&](const FieldKernels& kernels, int64_t begin, int64_t end, bool add, float* space, float* sum) {
        kernels.excite_backward(shortcut.at, begin, end, from, add, space, {d_fields, sum, sum + k, sum + k + size});
      });
  result.insert(result.begin(), shortcut.lookup.scatter(fields));
  return result;
}

}  // namespace ameir_fast
