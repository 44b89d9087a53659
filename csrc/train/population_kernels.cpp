// A tile of samples through all children's MLPs, for one instruction set. A unit is a row of kSamples numbers, one a
// sample.
//
// Layers are walked depth first. Of a branch the units are activated stop by stop; at each stop the next layer's sums,
// held from the last one, get the terms of the units in between, and are the pre-activation of the stop's node. The
// last layer's activated units go into the head's running sum and nowhere else. Every sum is taken term after term, so
// that a child's logits are the same, bit for bit, whichever children are there beside it.
#include "train/population.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#if AMEIR_FAST_LANES > 4
#include <immintrin.h>
#endif

namespace ameir_fast::train::AMEIR_FAST_ISA {
namespace {

using plan::Act;
#include "plan/simd.inl"
#include "train/part.inl"
#include "train/sum_lanes.inl"

constexpr int kVectorsOfTile = kSamples / V;
static_assert(kSamples % (3 * V) == 0);

// One unit's activation.
template <Act act>
struct Unit {
  vf alpha, rest, mean, scale;

  Unit(const Population& p, const PopulationNode& node, int64_t unit) {
    if constexpr (act == Act::dice) {
      const float a = p.alpha[node.level][unit];
      alpha = set(a), rest = set(1.0f - a);
      mean = set(p.mean[node.statistics + unit]), scale = set(p.scale[node.statistics + unit]);
    }
  }

  vf operator()(vf s) const {
    if constexpr (act == Act::dice) {
      return s * fma(sigmoid((s - mean) * scale), rest, alpha);
    } else {
      return activate<act>(s);
    }
  }
};

template <typename Visit>
inline void by_activation(Act act, Visit visit) {
  switch (act) {
    case Act::relu: return visit.template operator()<Act::relu>();
    case Act::swish: return visit.template operator()<Act::swish>();
    case Act::dice: return visit.template operator()<Act::dice>();
    default: visit.template operator()<Act::identity>();
  }
}

// z[o] += the sum over i of weight[o, i] h[i], for units of kSamples numbers.
template <int outputs>
inline void add_products(const float* weight, int64_t pitch, const float* h, int64_t inputs, float* z) {
  for (int64_t c = 0; c < kSamples; c += 3 * V) {
    vf sum[outputs][3];
    for (int o = 0; o < outputs; ++o) {
      for (int v = 0; v < 3; ++v) sum[o][v] = load(z + o * kSamples + c + v * V);
    }
    for (int64_t i = 0; i < inputs; ++i) {
      vf in[3];
      for (int v = 0; v < 3; ++v) in[v] = load(h + i * kSamples + c + v * V);
      for (int o = 0; o < outputs; ++o) {
        const vf w = set(weight[o * pitch + i]);
        for (int v = 0; v < 3; ++v) sum[o][v] = fma(w, in[v], sum[o][v]);
      }
    }
    for (int o = 0; o < outputs; ++o) {
      for (int v = 0; v < 3; ++v) store(z + o * kSamples + c + v * V, sum[o][v]);
    }
  }
}

void add_products(const float* weight, int64_t pitch, const float* h, int64_t inputs, int64_t outputs, float* z) {
  constexpr int kWide = V == 16 ? 8 : 4;
  int64_t o = 0;
  auto next = [&]<int count>() {
    add_products<count>(weight + o * pitch, pitch, h, inputs, z + o * kSamples);
    o += count;
  };
  while (o + kWide <= outputs) next.template operator()<kWide>();
  if (kWide > 4 && o + 4 <= outputs) next.template operator()<4>();
  if (o + 2 <= outputs) next.template operator()<2>();
  if (o < outputs) next.template operator()<1>();
}

class Tile {
 public:
  Tile(const Population& p, int64_t start, int64_t rows, float* space)
      : p_(p), start_(start), rows_(rows), space_(space), size_(p.width * kSamples) {
    const int64_t units = p.nodes[0].units;
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = p.x + (start + r) * p.pitch;
      for (int64_t u = 0; u < units; ++u) space[u * kSamples + r] = from[u];
    }
    for (int64_t u = 0; u < units; ++u) std::fill(space + u * kSamples + rows, space + (u + 1) * kSamples, 0.0f);
  }

  void score() { visit(0, space_); }

  void measure(int64_t level, Moments& to) {
    level_ = level, moments_ = &to;
    visit(0, space_);
  }

 private:
  // Whether there is something to do in a part of the tree.
  bool wanted(uint32_t measured) const { return level_ < 0 || (measured >> level_ & 1); }

  // z: the node's pre-activation, with what lies after `size_` numbers free for the layers above.
  void visit(int64_t place, float* z) {
    const PopulationNode& node = p_.nodes[place];
    if (node.level == level_) return add_moments(node, z);
    for (int64_t b = node.first; b < node.last; ++b) {
      const PopulationBranch& branch = p_.branches[b];
      if (!wanted(branch.measured)) continue;
      by_activation(branch.act, [&]<Act act>() {
        if (node.level + 1 < p_.layers) {
          descend<act>(node, branch, z);
        } else {
          finish<act>(node, branch, z);
        }
      });
    }
  }

  template <Act act>
  void descend(const PopulationNode& node, const PopulationBranch& branch, float* z) {
    const PopulationLayer& map = p_.maps[node.level];
    float *h = z + size_, *next = h + size_;
    int64_t inputs = 0, outputs = 0;  // of which `next` holds the sums
    for (int64_t s = branch.first; s < branch.last; ++s) {
      const PopulationStop& stop = p_.stops[s];
      if (!wanted(stop.measured)) continue;
      for (int64_t u = inputs; u < stop.units; ++u) {
        const Unit<act> unit(p_, node, u);
        for (int v = 0; v < kVectorsOfTile; ++v) store(h + u * kSamples + v * V, unit(load(z + u * kSamples + v * V)));
      }
      add_products(map.weight + inputs, map.pitch, h + inputs * kSamples, stop.units - inputs, outputs, next);
      // Units that no stop before asked for, with all their terms at once.
      const int64_t wide = std::max(outputs, p_.nodes[stop.node].units);
      for (int64_t o = outputs; o < wide; ++o) {
        for (int v = 0; v < kVectorsOfTile; ++v) store(next + o * kSamples + v * V, set(map.bias[o]));
      }
      add_products(map.weight + outputs * map.pitch, map.pitch, h, stop.units, wide - outputs,
                   next + outputs * kSamples);
      inputs = stop.units, outputs = wide;
      visit(stop.node, next);
    }
  }

  template <Act act>
  void finish(const PopulationNode& node, const PopulationBranch& branch, const float* z) {
    vf total[kVectorsOfTile];
    for (int v = 0; v < kVectorsOfTile; ++v) {
      const int64_t count = std::clamp<int64_t>(rows_ - v * V, 0, V);
      total[v] = count ? load_part(p_.common + start_ + v * V, count) : vf{};
    }
    int64_t done = 0;
    for (int64_t s = branch.first; s < branch.last; ++s) {
      const PopulationStop& stop = p_.stops[s];
      for (; done < stop.units; ++done) {
        const Unit<act> unit(p_, node, done);
        const vf w = set(p_.head[done]);
        for (int v = 0; v < kVectorsOfTile; ++v) total[v] = fma(w, unit(load(z + done * kSamples + v * V)), total[v]);
      }
      for (int64_t i = stop.first; i < stop.last; ++i) {
        float* to = p_.logits + p_.outputs[i] * p_.samples + start_;
        for (int v = 0; v * V < rows_; ++v) store_part(to + v * V, total[v], std::min<int64_t>(V, rows_ - v * V));
      }
    }
  }

  // Distances are taken from the mean so far, which is near; the rest is in double.
  void add_moments(const PopulationNode& node, const float* z) {
    const double before = static_cast<double>(moments_->count), rows = static_cast<double>(rows_);
    for (int64_t u = 0; u < node.dice; ++u, z += kSamples) {
      double &mean = moments_->mean[node.statistics + u], &squares = moments_->squares[node.statistics + u];
      const float near = moments_->count ? static_cast<float>(mean) : z[0];
      double rest = 0, around = 0;
      if (rows_ == kSamples) {
        vf first = {}, second = {};
        for (int v = 0; v < kVectorsOfTile; ++v) {
          const vf d = load(z + v * V) - near;
          first += d;
          second = fma(d, d, second);
        }
        rest = sum_lanes(first), around = sum_lanes(second);
      } else {
        for (int64_t r = 0; r < rows_; ++r) {
          const double d = z[r] - near;
          rest += d, around += d * d;
        }
      }
      const double here = near + rest / rows, spread = std::max(0.0, around - rest * rest / rows);
      const double distance = here - mean, all = before + rows;
      mean = before ? mean + distance * rows / all : here;
      squares = before ? squares + spread + distance * distance * before * rows / all : spread;
    }
  }

  const Population& p_;
  int64_t start_, rows_;
  float* space_;
  int64_t size_, level_ = -1;
  Moments* moments_ = nullptr;
};

void measure(const Population& p, int64_t level, int64_t start, int64_t rows, Moments& to, float* space) {
  Tile(p, start, rows, space).measure(level, to);
  to.count += rows;
}

void score(const Population& p, int64_t start, int64_t rows, float* space) { Tile(p, start, rows, space).score(); }

}  // namespace

extern const PopulationKernels population_kernels;
const PopulationKernels population_kernels = {measure, score};

}  // namespace ameir_fast::train::AMEIR_FAST_ISA
