// sliced_mlp: activations and their derivatives are one pass over memory each (Dice needs the batch's statistics
// first), matrix products are torch's, on the slices as they lie.
#include "train/mlp.h"

#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>

#include <cmath>
#include <string>
#include <vector>

#include "ops.h"
#include "train/common.h"

namespace ameir_fast {
namespace {

using namespace train;
using at::Tensor;

constexpr int64_t kRows = 128;         // of a chunk: sums over rows are sums of chunks, whatever the threads
constexpr int64_t kGrain = 16 * 1024;  // numbers worth a thread
constexpr double kDiceEps = 1e-8;

// run(chunk, first row, rows) for every chunk.
template <typename Run>
void for_chunks(const Tensor& x, Run run) {
  const int64_t rows = x.size(0), chunks = (rows + kRows - 1) / kRows;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, kRows * x.size(1)));
  at::parallel_for(0, chunks, grain, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) run(c, c * kRows, std::min(kRows, rows - c * kRows));
  });
}

int64_t chunks_of(const Tensor& x) { return (x.size(0) + kRows - 1) / kRows; }

// A Dice layer at its input: what it was given, and the statistics that it uses.
class DiceLayer {
 public:
  DiceLayer(const Tensor& x, const Tensor& given) : n_(x.size(1)), fixed_(given.dim() == 2) {
    if (fixed_) {
      check_shape(given, "dice", {3, n_});
    } else {
      check_shape(given, "dice", {n_});
    }
    values_ = at::empty({4, n_}, x.options());  // alpha, mean, variance, scale
    values_.narrow(0, 0, fixed_ ? 3 : 1).copy_(given);
    float *mean = row(1), *variance = row(2), *scale = row(3);
    if (!fixed_) measure(x, mean, variance);
    for (int64_t i = 0; i < n_; ++i) scale[i] = static_cast<float>(1 / std::sqrt(variance[i] + kDiceEps));
  }

  void copy_statistics(float* to) const { std::copy(row(1), row(3), to); }

  Tensor forward(const Tensor& x, Tensor to) const {
    const MlpKernels& kernels = mlp_kernels();
    const float* from = x.const_data_ptr<float>();
    float* out = to.data_ptr<float>();
    for_chunks(x, [&](int64_t, int64_t start, int64_t rows) {
      kernels.dice(dice(), from + start * n_, rows, out + start * n_);
    });
    return to;
  }

  // The gradients of x and of what was given.
  std::pair<Tensor, Tensor> backward(const Tensor& x, const Tensor& grad) const {
    const MlpKernels& kernels = mlp_kernels();
    const float *from = x.const_data_ptr<float>(), *g = grad.const_data_ptr<float>();
    const int64_t chunks = chunks_of(x);
    const Tensor parts = at::empty({chunks, 3 * n_}, x.options());
    float* sums = parts.data_ptr<float>();
    for_chunks(x, [&](int64_t c, int64_t start, int64_t rows) {
      kernels.dice_sums(dice(), from + start * n_, g + start * n_, rows, sums + c * 3 * n_);
    });
    const Tensor d_given = at::empty(fixed_ ? std::vector<int64_t>{3, n_} : std::vector<int64_t>{n_}, x.options());
    const Tensor corrections = at::empty({2, n_}, x.options());  // what the mean and the variance pass on
    float *to = d_given.data_ptr<float>(), *shift = corrections.data_ptr<float>(), *tilt = shift + n_;
    for (int64_t i = 0; i < n_; ++i) {
      double total[3] = {};
      for (int64_t c = 0; c < chunks; ++c) {
        for (int64_t j = 0; j < 3; ++j) total[j] += sums[(c * 3 + j) * n_ + i];
      }
      to[i] = static_cast<float>(total[0]);
      const double scale = row(3)[i], rows = static_cast<double>(x.size(0));
      if (fixed_) {
        to[n_ + i] = static_cast<float>(-total[1] * scale);
        to[2 * n_ + i] = static_cast<float>(-0.5 * total[2] * scale * scale);
      }
      shift[i] = fixed_ ? 0.0f : static_cast<float>(total[1] / rows);
      tilt[i] = fixed_ ? 0.0f : static_cast<float>(total[2] / rows);
    }
    Tensor dx = at::empty_like(x);
    float* out = dx.data_ptr<float>();
    for_chunks(x, [&](int64_t, int64_t start, int64_t rows) {
      kernels.dice_backward(dice(), from + start * n_, g + start * n_, rows, shift, tilt, out + start * n_);
    });
    return {dx, d_given};
  }

 private:
  float* row(int64_t i) const { return values_.data_ptr<float>() + i * n_; }
  Dice dice() const { return {n_, row(0), row(1), row(3)}; }

  // One pass over memory: each chunk's mean and squares while it is in the cache.
  void measure(const Tensor& x, float* mean, float* variance) const {
    const int64_t rows = x.size(0), chunks = chunks_of(x);
    const MlpKernels& kernels = mlp_kernels();
    const float* from = x.const_data_ptr<float>();
    const Tensor parts = at::empty({chunks, 2 * n_}, x.options());
    float* sums = parts.data_ptr<float>();
    for_chunks(x, [&](int64_t c, int64_t start, int64_t count) {
      kernels.moments(from + start * n_, count, n_, sums + c * 2 * n_);
    });
    auto size = [&](int64_t c) { return static_cast<double>(std::min(kRows, rows - c * kRows)); };
    for (int64_t i = 0; i < n_; ++i) {
      double sum = 0, squares = 0;
      for (int64_t c = 0; c < chunks; ++c) sum += size(c) * sums[c * 2 * n_ + i];
      const double center = rows ? sum / static_cast<double>(rows) : 0;
      for (int64_t c = 0; c < chunks; ++c) {
        const double distance = sums[c * 2 * n_ + i] - center;
        squares += sums[(c * 2 + 1) * n_ + i] + size(c) * distance * distance;
      }
      mean[i] = static_cast<float>(center);
      variance[i] = rows ? static_cast<float>(squares / static_cast<double>(rows)) : 1.0f;
    }
  }

  int64_t n_;
  bool fixed_;
  Tensor values_;
};

Tensor activated(plan::Act act, const Tensor& x, Tensor to) {
  const float* from = x.const_data_ptr<float>();
  float* out = to.data_ptr<float>();
  at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    mlp_kernels().activate(act, from + begin, end - begin, out + begin);
  });
  return to;
}

Tensor activated_back(plan::Act act, const Tensor& x, const Tensor& grad) {
  Tensor to = at::empty_like(x);
  const float *from = x.const_data_ptr<float>(), *g = grad.const_data_ptr<float>();
  float* out = to.data_ptr<float>();
  at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    mlp_kernels().activate_backward(act, from + begin, g + begin, end - begin, out + begin);
  });
  return to;
}

// The layers' arguments, checked, and what a forward pass leaves for a backward one.
class Mlp {
 public:
  Mlp(const Tensor& x, at::TensorList weights, at::TensorList biases, c10::List<std::string> activations,
      at::TensorList dice)
      : weights_(weights), biases_(biases), dice_(dice) {
    check_float(x, "x", 2);
    x_ = x.contiguous();
    for (const std::string& name : activations) names_.push_back(name);
    TORCH_CHECK(names_.size() == weights.size() + 1, "activations: ", names_.size(), " for ", weights.size(),
                " weights");
    TORCH_CHECK(biases.size() == weights.size(), "biases: ", biases.size(), " for ", weights.size(), " weights");
    int64_t inputs = x.size(1);
    for (size_t i = 0; i < weights.size(); ++i) {
      check_float(weights[i], "weights", 2);
      check_shape(weights[i], "weights", {weights[i].size(0), inputs});
      inputs = weights[i].size(0);
      check_shape(biases[i], "biases", {inputs});
    }
    size_t units = 0;
    for (const std::string& name : names_) {
      if (name == "dice") {
        ++units;
      } else {
        act_of(name);
      }
    }
    TORCH_CHECK(dice.size() == units, "dice: ", dice.size(), " tensors for ", units, " layers");
    for (const Tensor& given : dice) check_float(given, "dice", given.dim() == 2 ? 2 : 1);
  }

  // `keep`: layers' inputs and sums stay for backward().
  Tensor forward(bool keep) {
    Tensor h = x_;
    for (size_t layer = 0; layer < names_.size(); ++layer) {
      Tensor s = h;
      if (layer) {
        if (keep) inputs_.push_back(h);
        s = at::addmm(biases_[layer - 1], h, weights_[layer - 1].t());
      }
      if (keep) sums_.push_back(s);
      const bool last = layer + 1 == names_.size();
      if (names_[layer] == "dice") {
        layers_.emplace_back(s, dice_[layers_.size()]);
        if (!keep || !last) h = layers_.back().forward(s, target(s, layer, keep));
      } else if (names_[layer] == "identity" && (layer || !last)) {
        h = s;
      } else if (!keep || !last) {  // of a backward pass nobody asks for the output
        h = activated(act_of(names_[layer]), s, target(s, layer, keep));
      }
    }
    return h;
  }

  Tensor statistics() const {
    int64_t total = 0;
    size_t place = 0;
    for (size_t layer = 0; layer < names_.size(); ++layer) {
      if (names_[layer] == "dice") total += 2 * units(layer);
    }
    Tensor result = at::empty({total}, x_.options());
    float* to = result.data_ptr<float>();
    for (size_t layer = 0; layer < names_.size(); ++layer) {
      if (names_[layer] != "dice") continue;
      layers_[place++].copy_statistics(to);
      to += 2 * units(layer);
    }
    return result;
  }

  // The gradients of x, weights, biases and dice.
  std::vector<Tensor> backward(const Tensor& grad) {
    check_shape(grad, "grad", {x_.size(0), units(names_.size() - 1)});
    const size_t count = weights_.size();
    std::vector<Tensor> result(1 + 2 * count + dice_.size());
    size_t unit = dice_.size();
    Tensor g = grad.contiguous();
    for (size_t layer = names_.size(); layer-- > 0;) {
      if (names_[layer] == "dice") {
        --unit;
        std::tie(g, result[1 + 2 * count + unit]) = layers_[unit].backward(sums_[layer], g);
      } else if (names_[layer] != "identity") {
        g = activated_back(act_of(names_[layer]), sums_[layer], g);
      }
      if (layer == 0) break;
      result[layer] = at::mm(g.t(), inputs_[layer - 1]);
      result[count + layer] = g.sum(0);
      g = at::mm(g, weights_[layer - 1]);
    }
    result[0] = g.is_same(grad) ? g.clone() : g;
    return result;
  }

 private:
  int64_t units(size_t layer) const { return layer ? weights_[layer - 1].size(0) : x_.size(1); }

  // Where a layer's output goes: over its sums, if they are ours and nobody needs them again.
  static Tensor target(const Tensor& s, size_t layer, bool keep) { return layer && !keep ? s : at::empty_like(s); }

  at::TensorList weights_, biases_, dice_;
  Tensor x_;
  std::vector<std::string> names_;
  std::vector<Tensor> inputs_, sums_;
  std::vector<DiceLayer> layers_;
};

}  // namespace

std::tuple<Tensor, Tensor> sliced_mlp(const Tensor& x, at::TensorList weights, at::TensorList biases,
                                      c10::List<std::string> activations, at::TensorList dice) {
  Mlp mlp(x, weights, biases, std::move(activations), dice);
  Tensor out = mlp.forward(false);
  return {std::move(out), mlp.statistics()};
}

std::vector<Tensor> sliced_mlp_backward(const Tensor& grad, const Tensor& x, at::TensorList weights,
                                        at::TensorList biases, c10::List<std::string> activations,
                                        at::TensorList dice) {
  Mlp mlp(x, weights, biases, std::move(activations), dice);
  mlp.forward(true);
  return mlp.backward(grad);
}

}  // namespace ameir_fast
