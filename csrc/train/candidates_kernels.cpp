// A tile of samples through all candidates, for one instruction set.
//
// About half of a ReLU's units are zero, other ones for every sample, but mostly the same ones for all of a sample's
// candidates, which have the base in common. So the second layer is summed up for two candidates of a sample at a time, from
// those units alone that are not zero for both: lanes are the layer's outputs, and all sums stay in registers. Units are
// taken by blocks whose weights stay in the nearest cache while a tile's samples pass. A sum's order is that of the units,
// and units that are zero add nothing: logits are the same, bit for bit, whichever candidates and samples are there beside.
#include "train/candidates.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#if AMEIR_FAST_LANES > 4
#include <immintrin.h>
#endif

namespace ameir_fast::train::AMEIR_FAST_ISA {
namespace {

using plan::Act;
#include "plan/simd.inl"
#include "train/sum_lanes.inl"

constexpr int kMost = V == 16 ? 8 : 5;  // vectors of outputs at a time, for which there are registers
constexpr int kUnits = V == 16 ? 7 : 4;  // and of units,
constexpr int kRest = V == 16 ? 3 : 2;   // and of what is left of a block

#if AMEIR_FAST_LANES == 8
// The lanes of every mask, one after the other.
struct Lanes {
  alignas(32) int32_t of[256][8] = {};
  constexpr Lanes() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int lane = 0, n = 0; lane < 8; ++lane) {
        if (mask >> lane & 1) of[mask][n++] = lane;
      }
    }
  }
};
constexpr Lanes lanes_of;
#endif

inline vf relu(vf s) { return larger(vf{}, s); }  // what is no number stays so

// Keeps a vector in a register that the compiler would load again for every use.
inline void hold(vf& x) {
#if AMEIR_FAST_LANES > 4
  asm("" : "+v"(x));
#endif
}

// A block's units that are not zero for all of two candidates: places in the units of either.
struct Active {
  float *first, *second;
  int32_t* at;
  int32_t count;

  // V units of either, from unit `start` of the layer on.
  void add(vf a, vf b, int64_t start) {
    a = relu(a), b = relu(b);
    store(first + start, a), store(second + start, b);
#if AMEIR_FAST_LANES == 16
    const __mmask16 on = _mm512_cmp_ps_mask((__m512)a, __m512{}, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask((__m512)b, __m512{}, _CMP_NEQ_UQ);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(start)));
    _mm512_storeu_si512(at + count, _mm512_maskz_compress_epi32(on, places));
    count += __builtin_popcount(on);
#elif AMEIR_FAST_LANES == 8
    const int on = _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps((__m256)a, __m256{}, _CMP_NEQ_UQ),
                                                   _mm256_cmp_ps((__m256)b, __m256{}, _CMP_NEQ_UQ)));
    const __m256i lanes = _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes_of.of[on]));
    const __m256i places = _mm256_add_epi32(lanes, _mm256_set1_epi32(static_cast<int32_t>(start)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at + count), places);
    count += __builtin_popcount(on);
#else
    for (int i = 0; i < V; ++i) {
      at[count] = static_cast<int32_t>(start + i);
      count += !(a[i] == 0.0f && b[i] == 0.0f);
    }
#endif
  }
};

// Two candidates of a sample: products, projections and the base of the units from `start` to `last`, whose lists are made.
struct Pair {
  const float *base, *p, *first, *second;
  int64_t width, pitch, start, last;
};

// The first layer's pre-activations of some vectors of units from `unit` on.
template <int vectors>
inline void units(const Pair& pair, int64_t unit, Active& to) {
  vf s[2][vectors];
  for (int v = 0; v < vectors; ++v) s[0][v] = s[1][v] = load(pair.base + unit + v * V);
  const float *first = pair.first + unit, *second = pair.second + unit;
  for (int64_t k = 0; k < pair.width; ++k, first += pair.pitch, second += pair.pitch) {
    const vf a = set(pair.p[k]), b = set(pair.p[pair.width + k]);
    for (int v = 0; v < vectors; ++v) {
      s[0][v] = fma(a, load(first + v * V), s[0][v]), s[1][v] = fma(b, load(second + v * V), s[1][v]);
    }
  }
  for (int v = 0; v < vectors; ++v) to.add(s[0][v], s[1][v], unit + v * V);
}

__attribute__((noinline)) int32_t list_units(Pair pair, Active to) {
  int64_t unit = pair.start;
  for (; unit + kUnits * V <= pair.last; unit += kUnits * V) units<kUnits>(pair, unit, to);
  for (; unit + kRest * V <= pair.last; unit += kRest * V) units<kRest>(pair, unit, to);
  for (; unit < pair.last; unit += V) units<1>(pair, unit, to);
  return to.count;
}

// Adds a block's part to the second layer's sums of both. Not inlined: among a larger function's variables the compiler keeps
// some of the sums in memory, and waits for them.
template <int vectors>
__attribute__((noinline)) void add_rows(const Active& active, const float* weight, float* z, int64_t pitch) {
  vf sum[2][vectors];
  for (int v = 0; v < vectors; ++v) sum[0][v] = load(z + v * V), sum[1][v] = load(z + pitch + v * V);
  for (int64_t i = 0; i < active.count; ++i) {
    const int64_t unit = active.at[i];
    const vf a = set(active.first[unit]), b = set(active.second[unit]);
    const float* row = weight + unit * pitch;
    for (int v = 0; v < vectors; ++v) {
      vf w = load(row + v * V);
      hold(w);
      sum[0][v] = fma(a, w, sum[0][v]), sum[1][v] = fma(b, w, sum[1][v]);
    }
  }
  for (int v = 0; v < vectors; ++v) store(z + v * V, sum[0][v]), store(z + pitch + v * V, sum[1][v]);
}

void add_rows(const Active& active, const float* weight, int64_t pitch, float* z) {
  for (int64_t left = pitch / V; left > 0; left -= kMost, weight += kMost * V, z += kMost * V) {
    switch (left) {
      case 1: add_rows<1>(active, weight, z, pitch); break;
      case 2: add_rows<2>(active, weight, z, pitch); break;
      case 3: add_rows<3>(active, weight, z, pitch); break;
      case 4: add_rows<4>(active, weight, z, pitch); break;
      case 5: add_rows<5>(active, weight, z, pitch); break;
#if AMEIR_FAST_LANES == 16
      case 6: add_rows<6>(active, weight, z, pitch); break;
      case 7: add_rows<7>(active, weight, z, pitch); break;
#endif
      default: add_rows<kMost>(active, weight, z, pitch);
    }
  }
}

// The product of a candidate's fields.
inline void product(const float* e, const int64_t* fields, int64_t order, int64_t width, float* to) {
  for (int64_t k = 0; k < width; ++k) {
    float x = e[fields[0] + k];
    for (int64_t f = 1; f < order; ++f) x *= e[fields[f] + k];
    to[k] = x;
  }
}

class Tile {
 public:
  Tile(const Candidates& all, int64_t start, int64_t rows, float* space)
      : all_(all), start_(start), rows_(rows), hidden_(whole(all.hidden)), outputs_(whole(all.outputs)),
        blocks_(block_count(all)) {
    auto take = [&](int64_t n) { return std::exchange(space, space + kTile * n); };
    z_ = take(2 * outputs_), base_ = take(hidden_);
    units_ = take(2 * hidden_);
    places_ = reinterpret_cast<int32_t*>(take(blocks_ * kRoom));
    counts_ = reinterpret_cast<int32_t*>(take(blocks_));
    p_ = space;
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(base_ + r * hidden_, all.base + (start + r) * all.base_pitch, all.hidden * sizeof(float));
      // Units that are not there are zero: their projections are, too.
      std::fill(base_ + r * hidden_ + all.hidden, base_ + (r + 1) * hidden_, 0.0f);
    }
  }

  // The last one of an odd number is computed with itself.
  void score() {
    const int64_t* fields = all_.fields;
    for (int64_t c = 0; c < all_.count; c += 2) {
      const int64_t other = std::min(c + 1, all_.count - 1);
      const int64_t* next = fields + (other > c ? all_.orders[c] : 0);
      list(c, fields, other, next);
      for (int64_t r = 0; r < rows_; ++r) {
        float* z = z_ + 2 * r * outputs_;
        for (int64_t g = 0; g < outputs_; g += V) {
          const vf bias = load(all_.bias.data() + g);
          store(z + g, bias), store(z + outputs_ + g, bias);
        }
      }
      for (int64_t b = 0; b < blocks_; ++b) {
        for (int64_t r = 0; r < rows_; ++r) {
          add_rows(block(r, b, counts_[r * blocks_ + b]), all_.weight.data(), outputs_, z_ + 2 * r * outputs_);
        }
      }
      for (int64_t r = 0; r < rows_; ++r) {
        all_.logits[c * all_.samples + start_ + r] = head(z_ + 2 * r * outputs_);
        all_.logits[other * all_.samples + start_ + r] = head(z_ + (2 * r + 1) * outputs_);
      }
      fields = next + all_.orders[other];
    }
  }

 private:
  Active block(int64_t r, int64_t b, int32_t count) const {
    float* first = units_ + 2 * r * hidden_;
    return {first, first + hidden_, places_ + (r * blocks_ + b) * kRoom, count};
  }

  // All blocks' units of two candidates.
  void list(int64_t c, const int64_t* fields, int64_t other, const int64_t* other_fields) {
    const int64_t width = all_.width;
    for (int64_t r = 0; r < rows_; ++r) {
      const float* e = all_.e + (start_ + r) * all_.pitch;
      product(e, fields, all_.orders[c], width, p_ + 2 * r * width);
      product(e, other_fields, all_.orders[other], width, p_ + (2 * r + 1) * width);
    }
    for (int64_t b = 0; b < blocks_; ++b) {
      const int64_t first = b * kBlock, last = std::min(first + kBlock, hidden_);
      for (int64_t r = 0; r < rows_; ++r) {
        counts_[r * blocks_ + b] = list_units({base_ + r * hidden_, p_ + 2 * r * width,
                                               all_.projections + c * all_.projection_pitch,
                                               all_.projections + other * all_.projection_pitch, width, hidden_, first, last},
                                              block(r, b, 0));
      }
    }
  }

  float head(const float* z) const {
    vf total = {};
    for (int64_t g = 0; g < outputs_; g += V) total = fma(relu(load(z + g)), load(all_.head.data() + g), total);
    return sum_lanes(total) + all_.head_bias;
  }

  const Candidates& all_;
  int64_t start_, rows_, hidden_, outputs_, blocks_;
  float *z_, *base_, *units_, *p_;
  int32_t *places_, *counts_;
};

void score(const Candidates& all, int64_t start, int64_t rows, float* space) { Tile(all, start, rows, space).score(); }

}  // namespace

extern const CandidateKernels candidate_kernels;
const CandidateKernels candidate_kernels = {score};

}  // namespace ameir_fast::train::AMEIR_FAST_ISA
