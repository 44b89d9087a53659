// mlp_population: the MLPs of many children over one first pre-activation. Children that begin alike share the
// beginning, and widths are prefixes of one another; so their MLPs are a tree whose nodes are pre-activations, and all of
// them are walked once for a tile of samples (population_kernels.cpp). Dice's statistics are over all samples: before the
// last walk, which writes logits, there is one for each layer that has Dice, up to that layer.
#include "train/population.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops.h"
#include "train/common.h"

namespace ameir_fast {
namespace {

using namespace train;
using at::Tensor;

constexpr double kDiceEps = 1e-8;
constexpr int64_t kGroups = 32;  // of tiles whose moments are added up one after the other, whatever the threads
constexpr plan::Act kActs[] = {plan::Act::relu, plan::Act::swish, plan::Act::identity, plan::Act::dice};

// Children by activation and width of one layer after the other, as the tree of a Population.
class Tree {
 public:
  Tree(Population& p, const Tensor& children) : p_(p), rows_(children.const_data_ptr<int64_t>()) {
    p.outputs.resize(children.size(0));
    std::iota(p.outputs.begin(), p.outputs.end(), int64_t{0});
    std::stable_sort(p.outputs.begin(), p.outputs.end(), [&](int64_t a, int64_t b) {
      for (int64_t l = 0; l < p_.layers; ++l) {
        if (act(a, l) != act(b, l)) return act(a, l) < act(b, l);
        if (units(a, l) != units(b, l)) return units(a, l) < units(b, l);
      }
      return false;
    });
    add(0, 0, children.size(0));
    p.mean.resize(statistics_), p.scale.resize(statistics_);
  }

 private:
  int64_t units(int64_t child, int64_t level) const { return rows_[(child * p_.layers + level) * 2]; }
  int64_t act(int64_t child, int64_t level) const { return rows_[(child * p_.layers + level) * 2 + 1]; }

  // visit(first, last) for the runs of equal values among some children.
  template <typename Value, typename Visit>
  void by_runs(int64_t first, int64_t last, Value value, Visit visit) const {
    for (int64_t next = first; first < last; first = next) {
      while (next < last && value(p_.outputs[next]) == value(p_.outputs[first])) ++next;
      visit(first, next);
    }
  }

  // The node of children [first, last) of the order, and all above it.
  int64_t add(int64_t level, int64_t first, int64_t last) {
    const int64_t place = static_cast<int64_t>(p_.nodes.size());
    p_.nodes.emplace_back();
    PopulationNode node;
    node.level = level;
    std::vector<PopulationBranch> branches;
    by_runs(first, last, [&](int64_t c) { return act(c, level); }, [&](int64_t from, int64_t to) {
      std::vector<PopulationStop> stops;
      PopulationBranch branch = {kActs[act(p_.outputs[from], level)], 0, 0};
      by_runs(from, to, [&](int64_t c) { return units(c, level); }, [&](int64_t begin, int64_t end) {
        PopulationStop stop = {units(p_.outputs[begin], level), -1, begin, end};
        if (level + 1 < p_.layers) {
          stop.node = add(level + 1, begin, end);
          stop.measured = p_.nodes[stop.node].measured;
        }
        branch.measured |= stop.measured;
        stops.push_back(stop);
      });
      const int64_t most = stops.back().units;
      node.units = std::max(node.units, most);
      if (branch.act == plan::Act::dice) node.dice = most;
      branch.first = append(p_.stops, stops), branch.last = branch.first + static_cast<int64_t>(stops.size());
      node.measured |= branch.measured;
      branches.push_back(branch);
    });
    if (node.dice) {
      node.statistics = statistics_;
      statistics_ += node.dice;
      node.measured |= 1u << level;
    }
    node.first = append(p_.branches, branches), node.last = node.first + static_cast<int64_t>(branches.size());
    p_.width = std::max(p_.width, node.units);
    p_.nodes[place] = node;
    return place;
  }

  template <typename Part>
  static int64_t append(std::vector<Part>& all, const std::vector<Part>& some) {
    all.insert(all.end(), some.begin(), some.end());
    return static_cast<int64_t>(all.size() - some.size());
  }

  Population& p_;
  const int64_t* rows_;
  int64_t statistics_ = 0;
};

// run(start, rows) for the tiles of group `one` of `groups`.
template <typename Run>
void for_tiles(int64_t samples, int64_t one, int64_t groups, Run run) {
  const int64_t tiles = (samples + kSamples - 1) / kSamples;
  for (int64_t t = tiles * one / groups; t < tiles * (one + 1) / groups; ++t) {
    run(t * kSamples, std::min(kSamples, samples - t * kSamples));
  }
}

// Means and scales of all nodes of a level.
void measure(Population& p, int64_t level) {
  const PopulationKernels& kernels = population_kernels();
  const int64_t groups = std::min(kGroups, (p.samples + kSamples - 1) / kSamples);
  // A level's statistics lie apart where children are walked depth first: all levels' have a place, a level's are used.
  const int64_t size = static_cast<int64_t>(p.mean.size());
  std::vector<double> sums(2 * size * groups);
  std::vector<Moments> parts(groups);
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      double* at = sums.data() + g * 2 * size;
      parts[g] = {0, at, at + size};
      for_tiles(p.samples, g, groups, [&](int64_t start, int64_t rows) {
        kernels.measure(p, level, start, rows, parts[g], scratch(population_space(p)));
      });
    }
  });
  const double samples = static_cast<double>(p.samples);
  for (const PopulationNode& node : p.nodes) {
    if (node.level != level) continue;
    for (int64_t i = node.statistics; i < node.statistics + node.dice; ++i) {
      double mean = 0, squares = 0;
      for (const Moments& part : parts) mean += static_cast<double>(part.count) * part.mean[i];
      mean /= samples;
      for (const Moments& part : parts) {
        const double distance = part.mean[i] - mean;
        squares += part.squares[i] + static_cast<double>(part.count) * distance * distance;
      }
      p.mean[i] = static_cast<float>(mean);
      p.scale[i] = static_cast<float>(1 / std::sqrt(squares / samples + kDiceEps));
    }
  }
}

}  // namespace

Tensor mlp_population(const Tensor& x, at::TensorList weights, at::TensorList biases, at::TensorList dice,
                      const Tensor& head, const Tensor& common, const Tensor& children) {
  check_float(x, "x", 2);
  const int64_t layers = static_cast<int64_t>(weights.size()) + 1;
  TORCH_CHECK(layers <= 32, "weights: ", layers, " layers, at most 32");
  TORCH_CHECK(static_cast<int64_t>(biases.size()) == layers - 1, "biases: ", biases.size(), " for ", weights.size(),
              " weights");
  TORCH_CHECK(static_cast<int64_t>(dice.size()) == layers, "dice: ", dice.size(), " tensors for ", layers, " layers");
  check_float(head, "head", 1);
  check_shape(common, "common", {x.size(0)});
  TORCH_CHECK(children.scalar_type() == at::kLong && children.device().is_cpu() && children.dim() == 2 &&
                  children.size(1) == 2 * layers,
              "children: must be int64 [n, ", 2 * layers, "] on the CPU");
  Population p;
  p.samples = x.size(0), p.layers = layers;
  // Copies where numbers of a row don't lie side by side.
  std::vector<Tensor> kept = {with_whole_rows(x), head.contiguous(), common.contiguous(), children.contiguous()};
  p.x = kept[0].const_data_ptr<float>(), p.pitch = kept[0].stride(0);
  p.head = kept[1].const_data_ptr<float>(), p.common = kept[2].const_data_ptr<float>();
  const Tensor table = kept[3];
  for (const Tensor& weight : weights) {
    check_float(weight, "weights", 2);
    const Tensor& bias = biases[p.maps.size()];
    check_shape(bias, "biases", {weight.size(0)});
    kept.push_back(with_whole_rows(weight));
    const Tensor rows = kept.back();
    kept.push_back(bias.contiguous());
    p.maps.push_back({rows.const_data_ptr<float>(), kept.back().const_data_ptr<float>(), rows.stride(0)});
  }
  for (const Tensor& alpha : dice) {
    check_float(alpha, "dice", 1);
    kept.push_back(alpha.contiguous());
    p.alpha.push_back(kept.back().const_data_ptr<float>());
  }
  const int64_t* at = table.const_data_ptr<int64_t>();
  for (int64_t c = 0; c < table.size(0); ++c) {
    for (int64_t l = 0; l < layers; ++l) {
      const int64_t units = *at++, act = *at++;
      TORCH_CHECK(act >= 0 && act < 4, "children: child ", c, " has activation ", act, " of 4 in layer ", l);
      int64_t most = l ? std::min(weights[l - 1].size(0), dice[l].size(0)) : std::min(x.size(1), dice[0].size(0));
      most = std::min(most, l + 1 < layers ? weights[l].size(1) : head.size(0));
      TORCH_CHECK(units > 0 && units <= most, "children: child ", c, " has ", units, " units in layer ", l, " of ",
                  most);
    }
  }
  Tensor out = at::empty({table.size(0), p.samples}, x.options());
  if (out.numel() == 0) return out;
  p.logits = out.data_ptr<float>();
  Tree(p, table);
  for (int64_t level = 0; level < layers; ++level) {
    if (p.nodes[0].measured >> level & 1) measure(p, level);
  }
  const PopulationKernels& kernels = population_kernels();
  const int64_t tiles = (p.samples + kSamples - 1) / kSamples;
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels.score(p, t * kSamples, std::min(kSamples, p.samples - t * kSamples), scratch(population_space(p)));
    }
  });
  return out;
}

}  // namespace ameir_fast
