// bfloat16 products with AVX512_BF16: an instruction takes two inputs of sixteen lanes. Called on processors that have it.
#include <immintrin.h>

#include "plan/program.h"

namespace ameir_fast::plan {
namespace {

constexpr int kOutputs = 8;  // of which a block has twice as many

// kOutputs outputs from `first` of a block, `vectors` vectors of lanes from p. Accumulators fill the registers.
template <int vectors>
void multiply(const Half& map, int64_t block, int first, const uint32_t* pairs, int64_t pitch, int64_t p, float* sums) {
  constexpr int64_t kBlock = kBlockOutputs * kBlockInputs / 2, kPairs = kBlockInputs / 2;  // in pairs
  const int64_t parts = map.input_blocks();
  const uint32_t* weight = reinterpret_cast<const uint32_t*>(map.weight.data()) + block * parts * kBlock + first * kPairs;
  __m512 sum[kOutputs][vectors];
  for (int o = 0; o < kOutputs; ++o) {
    for (int v = 0; v < vectors; ++v) sum[o][v] = _mm512_setzero_ps();
  }
  for (int64_t part = 0; part < parts; ++part, weight += kBlock) {
    for (int64_t pair = 0; pair < kPairs; ++pair) {
      const uint32_t* x = pairs + (part * kPairs + pair) * pitch + p;
      __m512bh in[vectors];
      for (int v = 0; v < vectors; ++v) in[v] = (__m512bh)_mm512_loadu_si512(x + v * 16);
      for (int o = 0; o < kOutputs; ++o) {
        const __m512bh w = (__m512bh)_mm512_set1_epi32(static_cast<int>(weight[o * kPairs + pair]));
        for (int v = 0; v < vectors; ++v) sum[o][v] = _mm512_dpbf16_ps(sum[o][v], in[v], w);
      }
    }
  }
  for (int o = 0; o < kOutputs; ++o) {
    float* to = sums + (block * kBlockOutputs + first + o) * pitch + p;
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(to + v * 16, sum[o][v]);
  }
}

}  // namespace

void multiply_half_avx512(const Half& map, const uint32_t* pairs, int64_t pitch, int64_t lanes, float* sums) {
  for (int64_t block = 0; block < map.output_blocks(); ++block) {
    for (int first = 0; first < kBlockOutputs; first += kOutputs) {
      if (block * kBlockOutputs + first >= map.outputs) break;  // padding, which nobody reads
      int64_t p = 0;
      for (; p + 48 <= lanes; p += 48) multiply<3>(map, block, first, pairs, pitch, p, sums);
      if (p + 32 <= lanes) {
        multiply<2>(map, block, first, pairs, pitch, p, sums);
      } else if (p + 16 <= lanes) {
        multiply<1>(map, block, first, pairs, pitch, p, sums);
      }
    }
  }
}

}  // namespace ameir_fast::plan
