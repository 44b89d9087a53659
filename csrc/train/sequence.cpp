// sequence_block and sequence_pool: arguments to kernels, samples to groups, groups to threads.
#include "train/sequence.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <string>

#include "ops.h"
#include "train/common.h"

namespace ameir_fast {
namespace {

using namespace train;

void check_floats(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat, name, " is ", tensor.scalar_type(), ", not float32");
  TORCH_CHECK(tensor.sizes() == shape, name, " is ", tensor.sizes(), ", not ", shape);
}

template <typename Weight>
void pack(Linear& map, int64_t outputs, int64_t inputs, const float* bias, Weight weight) {
  map.inputs = inputs;
  map.outputs = outputs;
  int64_t padded = 0;
  while (padded < outputs) padded += outputs - padded > plan::kNarrow ? plan::kWide : plan::kNarrow;
  map.weight.assign(padded * inputs, 0.0f);
  map.bias.assign(padded, 0.0f);
  float* to = map.weight.data();
  for (int64_t o = 0; o < outputs;) {
    const int64_t panel = outputs - o > plan::kNarrow ? plan::kWide : plan::kNarrow;
    for (int64_t i = 0; i < inputs; ++i, to += panel) {
      for (int64_t j = 0; j < std::min(panel, outputs - o); ++j) to[j] = weight(o + j, i);
    }
    o += panel;
  }
  for (int64_t o = 0; bias && o < outputs; ++o) map.bias[o] = bias[o];
}

// W with its bias, and its transpose without.
template <typename Weight>
void pack_both(Linear& map, Linear& back, int64_t outputs, int64_t inputs, const float* bias, Weight weight) {
  pack(map, outputs, inputs, bias, weight);
  pack(back, inputs, outputs, nullptr, [&](int64_t o, int64_t i) { return weight(i, o); });
}

void pack_unit(Unit& unit, int64_t hidden, int64_t d, const std::vector<const float*>& weights) {
  unit.hidden = hidden;
  for (Floats* part : {&unit.own, &unit.product, &unit.target}) part->resize(hidden * d);
  for (int64_t o = 0; o < hidden; ++o) {
    const float* w = weights[0] + o * 4 * d;
    for (int64_t i = 0; i < d; ++i) {
      unit.own[o * d + i] = w[i] + w[2 * d + i];
      unit.target[o * d + i] = w[d + i] - w[2 * d + i];
      unit.product[o * d + i] = w[3 * d + i];
    }
  }
  unit.bias = weights[1];
  unit.slope = *weights[2];
  unit.out = weights[3];
  unit.out_bias = *weights[4];
}

// The arguments of an operation, and the contiguous tensors that the kernels read.
class Call {
 public:
  Sequences s;

  Call(const char* op, Layer layer, const at::Tensor& x, const at::Tensor& offsets, at::TensorList norm,
       at::TensorList weights, const std::optional<at::Tensor>& target)
      : op_(op) {
    TORCH_CHECK(x.dim() == 2, op, ": x must be [elements, D], not of ", x.dim(), " dimensions");
    TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) > 0 && offsets.scalar_type() == at::kLong, op,
                ": offsets must be int64 [B + 1]");
    s.layer = layer;
    s.width = x.size(1);
    s.elements = x.size(0);
    s.samples = offsets.size(0) - 1;
    s.x = keep(x, "x", {s.elements, s.width});
    held_.push_back(offsets.contiguous());
    s.offsets = held_.back().const_data_ptr<int64_t>();
    TORCH_CHECK(s.offsets[0] == 0 && s.offsets[s.samples] == s.elements, op, ": offsets do not rise from 0 to ", s.elements);
    for (int64_t b = 0; b < s.samples; ++b) {
      TORCH_CHECK(s.offsets[b] <= s.offsets[b + 1], op, ": offsets fall at row ", b);
    }
    TORCH_CHECK(norm.empty() || norm.size() == 2, op, ": norm must be [] or [weight, bias]");
    if (!norm.empty()) {
      s.gain = keep(norm[0], "the norm's weight", {s.width});
      s.shift = keep(norm[1], "the norm's bias", {s.width});
    }
    s.has_target = target.has_value();
    if (target) s.target = keep(*target, "target", {s.samples, s.width});
    weights_ = weights;
  }

  // The next weight, of that shape.
  const float* weight(at::IntArrayRef shape) {
    const size_t place = s.weights.size();
    TORCH_CHECK(place < weights_.size(), op_, ": there are ", weights_.size(), " weights, which is too few");
    s.weights.push_back(keep(weights_[place], "weight " + std::to_string(place), shape));
    s.sizes.push_back(weights_[place].numel());
    return s.weights.back();
  }

  void unit() {
    TORCH_CHECK(s.has_target, op_, ": attention needs a target");
    TORCH_CHECK(!weights_.empty() && weights_[0].dim() == 2, op_, ": the unit's first weight must be [hidden, 4 D]");
    const int64_t hidden = weights_[0].size(0);
    weight({hidden, 4 * s.width});
    weight({hidden});
    weight({1});
    weight({1, hidden});
    weight({1});
    pack_unit(s.unit, hidden, s.width, s.weights);
  }

  // All weights are taken: an order of samples by length, the longest first.
  void finish() {
    TORCH_CHECK(s.weights.size() == weights_.size(), op_, ": there are ", weights_.size(), " weights, not ", s.weights.size());
    int64_t longest = 0;
    for (int64_t b = 0; b < s.samples; ++b) longest = std::max(longest, s.offsets[b + 1] - s.offsets[b]);
    std::vector<int64_t> start(longest + 2);
    for (int64_t b = 0; b < s.samples; ++b) ++start[longest - (s.offsets[b + 1] - s.offsets[b]) + 1];
    for (int64_t length = 0; length <= longest; ++length) start[length + 1] += start[length];
    s.order.resize(s.samples);
    for (int64_t b = 0; b < s.samples; ++b) s.order[start[longest - (s.offsets[b + 1] - s.offsets[b])]++] = b;
  }

  void forward(at::Tensor& out) {
    const SequenceKernels& kernels = sequence_kernels();
    const int64_t groups = (s.samples + kernels.lanes - 1) / kernels.lanes;
    float* to = out.mutable_data_ptr<float>();
    const int64_t parts = std::min<int64_t>(groups, at::get_num_threads());  // nothing is summed up
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t group = part; group < groups; group += parts) kernels.forward(s, group, to);
      }
    });
  }

  // Gradients of x, norm, weights and target, in the order of the arguments.
  std::vector<at::Tensor> backward(const at::Tensor& grad, at::IntArrayRef shape) {
    const SequenceKernels& kernels = sequence_kernels();
    const int64_t groups = (s.samples + kernels.lanes - 1) / kernels.lanes, parameters = s.parameters();
    const float* from = keep(grad, "grad", shape);
    at::Tensor grad_x = at::empty({s.elements, s.width}, grad.options());
    at::Tensor grad_target = s.has_target ? at::empty({s.samples, s.width}, grad.options()) : at::Tensor();
    const int64_t parts = std::max<int64_t>(1, std::min(this->parts(groups), kMostNumbers / std::max<int64_t>(1, parameters)));
    at::Tensor partial = at::zeros({parts, parameters}, grad.options());
    float *x = grad_x.mutable_data_ptr<float>(), *sums = partial.mutable_data_ptr<float>();
    float* target = s.has_target ? grad_target.mutable_data_ptr<float>() : nullptr;
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t group = part; group < groups; group += parts) {
          kernels.backward(s, group, from, x, target, sums + part * parameters);
        }
      }
    });
    const at::Tensor all = partial.sum(0);
    std::vector<at::Tensor> found = {grad_x};
    int64_t start = 0;
    auto take = [&](at::IntArrayRef sizes) {
      const int64_t count = c10::multiply_integers(sizes);
      found.push_back(all.narrow(0, start, count).reshape(sizes).clone());
      start += count;
    };
    for (int i = 0; s.gain && i < 2; ++i) take({s.width});
    for (const at::Tensor& one : weights_) take(one.sizes());
    if (s.has_target) found.push_back(grad_target);
    return found;
  }

 private:
  // Groups go to parts in turn, so that each has long and short ones. Their number depends on the batch alone, and with
  // it the order of sums: results do not depend on the number of threads.
  static constexpr int64_t kMostParts = 16, kMostNumbers = int64_t{1} << 22;
  static int64_t parts(int64_t groups) { return std::min(groups, kMostParts); }

  const float* keep(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape) {
    check_floats(tensor, op_ + (": " + name), shape);
    held_.push_back(tensor.contiguous());
    return held_.back().const_data_ptr<float>();
  }

  std::string op_;
  std::vector<at::Tensor> held_;
  at::TensorList weights_;
};

// A block's layer by its name, with its weights taken and packed.
void prepare_block(Call& call, const std::string& name, const std::string& activation) {
  Sequences& s = call.s;
  s.act = act_of(activation), s.acts = {s.act};
  const int64_t d = s.width;
  switch (s.layer) {
    case Layer::conv: {
      const float* w = call.weight({d, d, s.taps});
      pack(s.first, d, s.taps * d, call.weight({d}),
           [&](int64_t o, int64_t at) { return w[(o * d + at % d) * s.taps + at / d]; });
      // Of the transposed convolution the taps' outputs are the inputs.
      pack(s.first_back, d, s.taps * d, nullptr, [&](int64_t i, int64_t at) { return w[(at % d * d + i) * s.taps + at / d]; });
      break;
    }
    case Layer::bi_gru: {
      TORCH_CHECK(d % 2 == 0, "sequence_block: bi_gru needs an even width, not ", d);
      const int64_t h = d / 2;
      Floats bias(6 * h);
      for (int64_t way = 0; way < 2; ++way) {
        call.weight({3 * h, d});
        call.weight({3 * h, h});
        std::copy_n(call.weight({3 * h}), 3 * h, bias.data() + way * 3 * h);
        call.weight({3 * h});
      }
      pack_both(s.first, s.first_back, 6 * h, d, bias.data(),
                [&](int64_t o, int64_t i) { return s.weights[o < 3 * h ? 0 : 4][o % (3 * h) * d + i]; });
      break;
    }
    case Layer::self_attn: {
      TORCH_CHECK(d % s.heads == 0, "sequence_block: ", name, " needs a width divisible by ", s.heads, ", not ", d);
      const float *w = call.weight({3 * d, d}), *bias = call.weight({3 * d});
      pack_both(s.first, s.first_back, 3 * d, d, bias, [&](int64_t o, int64_t i) { return w[o * d + i]; });
      const float *out = call.weight({d, d}), *out_bias = call.weight({d});
      pack_both(s.second, s.second_back, d, d, out_bias, [&](int64_t o, int64_t i) { return out[o * d + i]; });
      break;
    }
    case Layer::target_attn: call.unit(); break;
    default: break;
  }
  call.finish();
}

struct Named {
  Layer layer;
  int64_t taps = 1, dilation = 1, heads = 1;
};

Named layer_of(const std::string& name) {
  static const std::map<std::string, Named> layers = {
      {"conv1", {Layer::conv, 1, 1}},      {"conv3", {Layer::conv, 3, 1}},     {"dconv3", {Layer::conv, 3, 2}},
      {"dconv5", {Layer::conv, 5, 2}},     {"dconv7", {Layer::conv, 7, 2}},    {"avg_pool3", {Layer::avg_pool}},
      {"max_pool3", {Layer::max_pool}},    {"bi_gru", {Layer::bi_gru}},        {"self_attn2", {Layer::self_attn, 1, 1, 2}},
      {"self_attn4", {Layer::self_attn, 1, 1, 4}}, {"target_attn", {Layer::target_attn}}};
  const auto found = layers.find(name);
  TORCH_CHECK_VALUE(found != layers.end(), "sequence_block: unknown layer '", name, "'");
  return found->second;
}

Call block_call(const at::Tensor& x, const at::Tensor& offsets, at::TensorList norm, at::TensorList weights,
                const std::optional<at::Tensor>& target, const std::string& layer, const std::string& activation) {
  const Named named = layer_of(layer);
  // A target is read by target_attn alone.
  Call call("sequence_block", named.layer, x, offsets, norm, weights,
            named.layer == Layer::target_attn ? target : std::nullopt);
  call.s.taps = named.taps, call.s.dilation = named.dilation, call.s.heads = named.heads;
  prepare_block(call, layer, activation);
  return call;
}

Call pool_call(const at::Tensor& x, const at::Tensor& offsets, const std::optional<at::Tensor>& target,
               at::TensorList attention) {
  Call call("sequence_pool", Layer::pool, x, offsets, {}, attention, target);
  if (target) call.unit();
  call.finish();
  return call;
}

}  // namespace

at::Tensor sequence_block(const at::Tensor& x, const at::Tensor& offsets, at::TensorList norm, at::TensorList weights,
                          const std::optional<at::Tensor>& target, std::string layer, std::string activation,
                          int64_t max_length) {
  if (layer == "zero") return x.clone(at::MemoryFormat::Contiguous);
  Call call = block_call(x, offsets, norm, weights, target, layer, activation);
  at::Tensor out = at::empty({call.s.elements, call.s.width}, x.options());
  call.forward(out);
  return out;
}

at::Tensor sequence_activations(const at::Tensor& x, const at::Tensor& offsets, at::TensorList norm,
                                at::TensorList weights, const MaybeTensor& target, std::string layer,
                                c10::List<std::string> activations, int64_t max_length) {
  TORCH_CHECK_VALUE(layer != "zero", "sequence_activations: layer 'zero' has no activation");
  TORCH_CHECK_VALUE(!activations.empty(), "sequence_activations: no activations");
  Call call = block_call(x, offsets, norm, weights, target, layer, activations.get(0));
  call.s.acts.clear();
  for (const std::string& name : activations.vec()) call.s.acts.push_back(act_of(name));
  at::Tensor out = at::empty({static_cast<int64_t>(activations.size()), call.s.elements, call.s.width}, x.options());
  call.forward(out);
  return out;
}

std::vector<at::Tensor> sequence_block_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                                at::TensorList norm, at::TensorList weights,
                                                const std::optional<at::Tensor>& target, std::string layer,
                                                std::string activation, int64_t max_length) {
  std::vector<at::Tensor> found;
  if (layer == "zero") {
    found.push_back(grad.clone(at::MemoryFormat::Contiguous));
    for (at::TensorList list : {norm, weights}) {
      for (const at::Tensor& one : list) found.push_back(at::zeros(one.sizes(), one.options()));
    }
  } else {
    Call call = block_call(x, offsets, norm, weights, target, layer, activation);
    found = call.backward(grad, x.sizes());
    if (call.s.has_target) return found;
  }
  if (target) found.push_back(at::zeros(target->sizes(), target->options()));
  return found;
}

at::Tensor sequence_pool(const at::Tensor& x, const at::Tensor& offsets, const std::optional<at::Tensor>& target,
                         at::TensorList attention, int64_t max_length) {
  Call call = pool_call(x, offsets, target, attention);
  at::Tensor out = at::empty({call.s.samples, call.s.outputs()}, x.options());
  call.forward(out);
  return out;
}

std::vector<at::Tensor> sequence_pool_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                               const std::optional<at::Tensor>& target, at::TensorList attention,
                                               int64_t max_length) {
  Call call = pool_call(x, offsets, target, attention);
  std::vector<at::Tensor> found = call.backward(grad, {call.s.samples, call.s.outputs()});
  if (target) {  // which comes before the unit's weights here
    std::rotate(found.begin() + 1, found.end() - 1, found.end());
  }
  return found;
}

}  // namespace ameir_fast
