// _plan: compiles and runs plans. plan.py is the public face; it checks types and shapes, so addresses are taken as they
// come.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plan/plan.h"

namespace py = pybind11;

namespace ameir_fast::plan {
namespace {

using Array = py::array_t<float, py::array::c_style>;
using Arrays = std::vector<Array>;

Floats copy(const Array& array) { return {array.data(), array.data() + array.size()}; }

Linear dense(const Array& weight, const float* bias) {
  return pack(weight.data(), weight.shape(0), weight.shape(1), weight.shape(1), 1, bias);
}

Act act_of(const std::string& name) {
  if (name == "relu") return Act::relu;
  if (name == "swish") return Act::swish;
  if (name == "gelu") return Act::gelu;
  if (name == "dice") return Act::dice;
  if (name == "identity") return Act::identity;
  throw std::invalid_argument("unknown activation " + name);
}

// weights: W [hidden][4 D] over [x, t, x - t, x * t], bias, PReLU's slope, the output's weight and bias.
Unit make_unit(const Arrays& weights) {
  Unit unit;
  const int64_t hidden = weights.at(0).shape(0), d = weights.at(0).shape(1) / 4;
  unit.hidden = hidden;
  for (int64_t o = 0; o < hidden; ++o) {
    const float* w = weights[0].data() + o * 4 * d;
    for (int64_t i = 0; i < d; ++i) {
      unit.own.push_back(w[i] + w[2 * d + i]);
      unit.target.push_back(w[d + i] - w[2 * d + i]);
      unit.product.push_back(w[3 * d + i]);
    }
  }
  unit.bias = copy(weights.at(1));
  unit.slope = weights.at(2).data()[0];
  unit.out = copy(weights.at(3));
  unit.out.resize(hidden + kWide, 0.0f);
  unit.out_bias = weights.at(4).data()[0];
  return unit;
}

Block make_block(const std::string& layer, const std::string& act, const Arrays& norm, const Arrays& weights,
                 int64_t dilation, int64_t heads) {
  Block block;
  block.act = act_of(act);
  block.norm = !norm.empty();
  if (block.norm) {
    block.gain = copy(norm.at(0));
    block.shift = copy(norm.at(1));
  }
  if (layer == "conv") {
    const Array& w = weights.at(0);
    const int64_t d = w.shape(0), taps = w.shape(2);
    block.layer = Layer::conv;
    block.taps = taps;
    block.dilation = dilation;
    std::vector<float> turned(d * taps * d);  // [out][tap][in]
    for (int64_t o = 0; o < d; ++o) {
      for (int64_t i = 0; i < d; ++i) {
        for (int64_t tap = 0; tap < taps; ++tap) turned[(o * taps + tap) * d + i] = w.data()[(o * d + i) * taps + tap];
      }
    }
    block.first = pack(turned.data(), d, taps * d, taps * d, 1, weights.at(1).data());
  } else if (layer == "avg_pool3") {
    block.layer = Layer::avg_pool;
  } else if (layer == "max_pool3") {
    block.layer = Layer::max_pool;
  } else if (layer == "bi_gru") {
    block.layer = Layer::bi_gru;
    const int64_t gates = weights.at(0).shape(0), d = weights.at(0).shape(1);
    std::vector<float> input, bias;
    for (int64_t way = 0; way < 2; ++way) {
      const Array &w = weights.at(4 * way), &recurrent = weights.at(4 * way + 1), &b = weights.at(4 * way + 2),
                  &other = weights.at(4 * way + 3);
      input.insert(input.end(), w.data(), w.data() + w.size());
      bias.insert(bias.end(), b.data(), b.data() + b.size());
      block.recurrent.insert(block.recurrent.end(), recurrent.data(), recurrent.data() + recurrent.size());
      block.recurrent_bias.insert(block.recurrent_bias.end(), other.data(), other.data() + other.size());
    }
    block.first = pack(input.data(), 2 * gates, d, d, 1, bias.data());
  } else if (layer == "self_attn") {
    block.layer = Layer::self_attn;
    block.heads = heads;
    block.first = dense(weights.at(0), weights.at(1).data());
    block.second = dense(weights.at(2), weights.at(3).data());
  } else if (layer == "target_attn") {
    block.layer = Layer::target_attn;
    block.unit = make_unit(weights);
  } else {
    throw std::invalid_argument("unknown layer " + layer);
  }
  return block;
}

class Plan {
 public:
  // `half`: the MLP's first layer in bfloat16; `products`: how it is multiplied (half_products), "" for the best way.
  Plan(Array embedding, int64_t max_history, const std::string& instruction_set, bool half, const std::string& products)
      : embedding_(std::move(embedding)) {
    static std::atomic<uint64_t> made{0};
    program_.id = ++made;
    program_.k = embedding_.shape(1);
    program_.embedding = embedding_.data();
    program_.max_history = max_history;
    for (const Kernels* one : supported()) {
      if (!kernels_ && (instruction_set.empty() || instruction_set == one->name)) kernels_ = one;
    }
    if (!kernels_) throw std::invalid_argument("this processor cannot run " + instruction_set);
    program_.half = half;
    if (half && kernels_->lanes == 16) {
      products_ = products;
      program_.multiply_half = half_products(&products_);
    }
  }

  void add_field(int64_t offset, int64_t size, bool bag) {
    check_rows(offset, size);
    program_.fields.push_back({offset, size, bag ? program_.num_bags++ : -1});
  }
  void add_behavior(int64_t offset, int64_t size) {
    check_rows(offset, size);
    program_.behavior.push_back({offset, size, -1});
  }
  void set_target(std::vector<int64_t> positions, const Arrays& pool) {
    program_.target = std::move(positions);
    program_.pool = make_unit(pool);
  }
  void add_block(const std::string& layer, const std::string& act, const Arrays& norm, const Arrays& weights,
                 int64_t dilation, int64_t heads) {
    program_.blocks.push_back(make_block(layer, act, norm, weights, dilation, heads));
  }
  void set_interactions(std::vector<std::vector<int64_t>> interactions) { program_.interactions = std::move(interactions); }
  // The ids' parts [size][outputs] of the first layer's sums, in ascending order of fields; that layer then has no inputs
  // of theirs.
  void add_folded(int64_t field, const Array& table) {
    const auto width = (table.shape(1) + 15) / 16 * 16;
    if (program_.folded.size() == kMostFolded || field >= static_cast<int64_t>(program_.fields.size()) ||
        table.shape(0) != program_.fields[field].size || program_.fields[field].bag >= 0) {
      throw std::invalid_argument("no such table");
    }
    Folded folded{field, Floats(table.shape(0) * width, 0.0f)};
    for (py::ssize_t id = 0; id < table.shape(0); ++id) {
      std::copy_n(table.data() + id * table.shape(1), table.shape(1), folded.table.data() + id * width);
    }
    program_.folded.push_back(std::move(folded));
  }
  void add_dense(const std::string& act, const Array& weight, const Array& bias, const Arrays& dice) {
    Dense layer;
    layer.act = act_of(act);
    layer.rounded = program_.half && program_.mlp.empty();
    if (layer.rounded && program_.multiply_half) {
      layer.half = pack_half(weight.data(), weight.shape(0), weight.shape(1), bias.data());
    } else if (layer.rounded) {
      std::vector<float> rounded(weight.size());
      std::transform(weight.data(), weight.data() + weight.size(), rounded.begin(), rounded_to_half);
      layer.linear = pack(rounded.data(), weight.shape(0), weight.shape(1), weight.shape(1), 1, bias.data());
    } else {
      layer.linear = dense(weight, bias.data());
    }
    if (layer.act == Act::dice) {
      layer.alpha = copy(dice.at(0));
      layer.mean = copy(dice.at(1));
      for (py::ssize_t i = 0; i < dice.at(2).size(); ++i) {
        layer.scale.push_back(static_cast<float>(1.0 / std::sqrt(static_cast<double>(dice[2].data()[i]) + 1e-8)));
      }
    }
    program_.mlp.push_back(std::move(layer));
  }
  void set_shortcut(const Array& project, const Array& squeeze, const Array& excite) {
    program_.shortcut = true;
    program_.project = copy(project);
    program_.squeeze = dense(squeeze, nullptr);
    program_.excite = dense(excite, nullptr);
  }
  void set_head(const Array& weight, const Arrays& bias) {
    program_.head = dense(weight, bias.empty() ? nullptr : bias[0].data());
    program_.outputs = weight.shape(0);
  }

  // The same for candidates [count][columns] of the only row; column_of says of each field which column holds it, or -1.
  py::object rank(uintptr_t fields, uintptr_t history, uintptr_t history_offsets, int64_t elements, uintptr_t bags,
                  uintptr_t bag_offsets, int64_t bag_ids, uintptr_t candidates, int64_t count, int64_t columns,
                  std::vector<int64_t> column_of, uintptr_t out) const {
    const Input input = make_input(1, fields, history, history_offsets, bags, bag_offsets);
    Candidates all;
    all.ids = reinterpret_cast<const int32_t*>(candidates);
    all.columns = columns;
    all.column_of = std::move(column_of);
    std::optional<Fault> fault;
    {
      py::gil_scoped_release free;
      fault = ameir_fast::plan::rank(program_, *kernels_, input, {elements, bag_ids}, all, count,
                                     reinterpret_cast<float*>(out));
    }
    return told(fault);
  }

  // Addresses of a batch's arrays and of the output; None, or where the first id outside its vocabulary is.
  py::object run(int64_t rows, uintptr_t fields, uintptr_t history, uintptr_t history_offsets, int64_t elements,
                 uintptr_t bags, uintptr_t bag_offsets, int64_t bag_ids, uintptr_t out) const {
    const Input input = make_input(rows, fields, history, history_offsets, bags, bag_offsets);
    std::optional<Fault> fault;
    {
      py::gil_scoped_release free;
      fault = score(program_, *kernels_, input, {elements, bag_ids}, reinterpret_cast<float*>(out));
    }
    return told(fault);
  }

  // run() on the calling thread alone: the fault, and the seconds of each Part (program.h).
  py::tuple run_by_parts(int64_t rows, uintptr_t fields, uintptr_t history, uintptr_t history_offsets, int64_t elements,
                         uintptr_t bags, uintptr_t bag_offsets, int64_t bag_ids, uintptr_t out) const {
    const Input input = make_input(rows, fields, history, history_offsets, bags, bag_offsets);
    std::optional<Fault> fault;
    std::vector<double> seconds;
    {
      py::gil_scoped_release free;
      seconds = score_by_parts(program_, *kernels_, input, {elements, bag_ids}, reinterpret_cast<float*>(out), &fault);
    }
    return py::make_tuple(told(fault), seconds);
  }

  std::string instruction_set() const { return kernels_->name; }
  std::string products() const { return products_; }

 private:
  static Input make_input(int64_t rows, uintptr_t fields, uintptr_t history, uintptr_t history_offsets, uintptr_t bags,
                          uintptr_t bag_offsets) {
    return {rows,
            reinterpret_cast<const int32_t*>(fields),
            reinterpret_cast<const int32_t*>(history),
            reinterpret_cast<const int64_t*>(history_offsets),
            reinterpret_cast<const int32_t*>(bags),
            reinterpret_cast<const int64_t*>(bag_offsets)};
  }

  static py::object told(const std::optional<Fault>& fault) {
    if (!fault) return py::none();
    return py::make_tuple(fault->row, fault->column, fault->id, fault->history);
  }

  void check_rows(int64_t offset, int64_t size) const {
    if (offset < 0 || size < 1 || offset + size > embedding_.shape(0)) {
      throw std::invalid_argument("a vocabulary does not lie within the embedding matrix");
    }
  }

  Array embedding_;
  Program program_;
  std::string products_ = "none";
  const Kernels* kernels_ = nullptr;
};

}  // namespace
}  // namespace ameir_fast::plan

PYBIND11_MODULE(_plan, m) {
  using ameir_fast::plan::Plan;
  m.attr("interface") = 4;
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const auto* one : ameir_fast::plan::supported()) names.emplace_back(one->name);
    return names;
  });
  py::class_<Plan>(m, "Plan")
      .def(py::init<ameir_fast::plan::Array, int64_t, const std::string&, bool, const std::string&>())
      .def("add_field", &Plan::add_field)
      .def("add_behavior", &Plan::add_behavior)
      .def("set_target", &Plan::set_target)
      .def("add_block", &Plan::add_block)
      .def("set_interactions", &Plan::set_interactions)
      .def("add_folded", &Plan::add_folded)
      .def("add_dense", &Plan::add_dense)
      .def("set_shortcut", &Plan::set_shortcut)
      .def("set_head", &Plan::set_head)
      .def("run", &Plan::run)
      .def("run_by_parts", &Plan::run_by_parts)
      .def("rank", &Plan::rank)
      .def_property_readonly("instruction_set", &Plan::instruction_set)
      .def_property_readonly("products", &Plan::products);
}
