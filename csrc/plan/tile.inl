// The kernels of one instruction set. A file that includes this one defines AMEIR_FAST_ISA (a name) and
// AMEIR_FAST_LANES, and is compiled with the flags of that instruction set.
//
// Activations lie as rows of numbers, a row for each unit. A tile of samples is a row of `tile` lanes. Histories go
// through the behaviour blocks in groups: V samples of similar length side by side, element t of lane s at t * V + s
// (stride V); or a single sample alone, its elements being the lanes (stride 1). Either way a neighbour in time is one
// stride away, whole vectors are always used, and a result is the same number in both, and in any company.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#if AMEIR_FAST_LANES > 4
#include <immintrin.h>
#endif

#include "plan/program.h"

namespace ameir_fast::plan::AMEIR_FAST_ISA {
namespace {

#include "plan/simd.inl"

constexpr int64_t kChunk = 128;  // inputs that are summed up on their own, so that rounding errors of long sums stay small
constexpr int TILE = 3 * V;  // samples of a tile
constexpr int kFew = 4;      // samples that are cheaper one by one than as the lanes of a vector
constexpr int kUnitRows = V == 16 ? 6 : 4, kUnitVectors = V == 16 ? 4 : 3;  // accumulators of the activation unit

#include "plan/linear.inl"
#include "plan/scratch.inl"
#include "plan/histories.inl"

// ---- a tile of samples -----------------------------------------------------------------------------------

// sum[o, o + vectors V) of some rows: each is read as a stream, while the sums stay in registers.
template <int vectors>
inline void add_rows(const float* const* rows, int64_t count, int64_t o, float* sum) {
  vf s[vectors] = {};
  for (int64_t f = 0; f < count; ++f) {
    for (int v = 0; v < vectors; ++v) s[v] += load(rows[f] + o + v * V);
  }
  for (int v = 0; v < vectors; ++v) store(sum + o + v * V, s[v]);
}

// Of rows order[0, count), or of candidates first + [0, count) for the only row.
void look_up_fields(const Program& program, const Input& input, const int64_t* order, const Candidates* candidates,
                    int64_t first, int64_t count, const Places& at, Fault* fault) {
  const int64_t fields = static_cast<int64_t>(program.fields.size()), k = program.k;
  const float* from[V];
  for (int64_t c = 0; c < count; c += V) {
    auto row_of = [&](int lane) { return candidates ? 0 : order[c + lane]; };
    for (int lane = 0; !candidates && lane < V && c + lane < count; ++lane) {  // of rows that lie anywhere in a large table
      const int32_t* ids = input.fields + order[c + lane] * fields;
      for (int64_t f = 0; f < fields; ++f) {
        const Field& field = program.fields[f];
        if (static_cast<uint32_t>(ids[f]) < static_cast<uint64_t>(field.size)) {
          __builtin_prefetch(program.embedding + (field.offset + ids[f]) * k);
        }
      }
    }
    for (int64_t f = 0; f < fields; ++f) {
      const Field& field = program.fields[f];
      const int64_t column = candidates ? candidates->column_of[f] : -1;
      float* to = at.x + (program.history_width() + f * k) * TILE + c;
      for (int lane = 0; lane < V; ++lane) {
        if (c + lane >= count || field.bag >= 0) {
          from[lane] = at.zero;
        } else if (column >= 0) {
          const int64_t row = first + c + lane;
          from[lane] = embedded(program, field, candidates->ids[row * candidates->columns + column], at.zero, row, f,
                                false, fault);
        } else {
          from[lane] = embedded(program, field, input.fields[row_of(lane) * fields + f], at.zero, row_of(lane), f, false,
                                fault);
        }
      }
      spread(from, k, to, TILE);
      for (int lane = 0; field.bag >= 0 && lane < V && c + lane < count; ++lane) {  // the mean of a bag
        const int64_t* ends = input.bag_offsets + row_of(lane) * program.num_bags + field.bag;
        for (int64_t at_id = ends[0]; at_id < ends[1]; ++at_id) {
          const float* e =
              embedded(program, field, input.bags[at_id], at.zero, row_of(lane), f, false, fault);
          for (int64_t i = 0; i < k; ++i) to[i * TILE + lane] += e[i];
        }
        const float size = static_cast<float>(ends[1] - ends[0]);
        for (int64_t i = 0; size > 1 && i < k; ++i) to[i * TILE + lane] /= size;
      }
    }
    if (program.folded.empty()) continue;
    const int64_t width = program.folded_width();
    for (int lane = 0; lane < V; ++lane) {
      const float* rows[kMostFolded];
      int64_t count_of = 0;
      for (const Folded& one : program.folded) {
        const int64_t column = candidates ? candidates->column_of[one.field] : -1;
        if (c + lane >= count) break;
        const int32_t id = column >= 0 ? candidates->ids[(first + c + lane) * candidates->columns + column]
                                       : input.fields[row_of(lane) * fields + one.field];
        // One outside its vocabulary was noted above, and the result is thrown away.
        if (static_cast<uint32_t>(id) < static_cast<uint64_t>(program.fields[one.field].size)) {
          rows[count_of++] = one.table.data() + id * width;
        }
      }
      float* sum = at.looked_up + lane * width;
      int64_t o = 0;
      for (; o + 16 * V <= width; o += 16 * V) add_rows<16>(rows, count_of, o, sum);
      for (; o + 4 * V <= width; o += 4 * V) add_rows<4>(rows, count_of, o, sum);
      for (; o < width; o += V) add_rows<1>(rows, count_of, o, sum);
      from[lane] = sum;
    }
    spread(from, width, at.turned + c, TILE);
  }
}

// A sample alone.
Group single(const Input& input, const int64_t* row) {
  Group one;
  one.order = row;
  one.count = 1;
  one.longest = one.length[0] = input.history_offsets[*row + 1] - input.history_offsets[*row];
  one.lanes = (one.longest + V - 1) / V * V;
  one.full = one.lanes == one.longest;
  return one;
}

// The histories' part of the tile's rows.
void run_histories(const Program& program, const Input& input, const int64_t* order, int64_t count, const Places& at,
                   Fault* fault) {
  for (int64_t start = 0; start < count; start += V) {
    Group group;
    group.order = order + start;
    group.count = std::min<int64_t>(V, count - start);
    group.longest = 0;
    int64_t shortest = std::numeric_limits<int64_t>::max();
    for (int64_t s = 0; s < V; ++s) {
      group.length[s] = s < group.count ? input.history_offsets[group.order[s] + 1] - input.history_offsets[group.order[s]]
                                        : 0;
      group.longest = std::max(group.longest, group.length[s]);
      shortest = std::min(shortest, group.length[s]);
    }
    if (group.count * 4 > V) {
      group.lanes = group.longest * V;
      group.full = shortest == group.longest;
      Histories<false>(program, input, at, group, start).run(fault);
      continue;
    }
    for (int64_t s = 0; s < group.count; ++s) {
      const Group one = single(input, group.order + s);
      Histories<true>(program, input, at, one, start + s).run(fault);
    }
  }
}

// A linear map of the tile's samples.
template <typename Then>
inline void apply_to_samples(const Linear& map, int64_t count, const Places& at, Then then) {
  if (count <= kFew) return apply_to_few(map, at.rows, count, at.few, then);
  apply(map, at.rows, (count + V - 1) / V * V, at.partial, then);
}

// To the nearest bfloat16, ties to even; a NaN stays one.
inline vi round_half(vf x) {
  const vu bits = (vu)x, rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
  return (vi)(x == x ? rounded : (bits | 0x400000u) & 0xFFFF0000u);
}

// A layer in bfloat16 by special instructions: inputs rounded in pairs, then() as apply() calls it.
template <typename Then>
inline void apply_half(const Program& program, const Half& map, int64_t count, const Places& at, Then then) {
  const int64_t lanes = (count + V - 1) / V * V;
  uint32_t* pairs = reinterpret_cast<uint32_t*>(at.rounded);
  for (int64_t i = 0; i < map.input_blocks() * kBlockInputs; i += 2) {
    for (int64_t p = 0; p < lanes; p += V) {
      vi two = {};
      if (i < map.inputs) two = (vi)((vu)round_half(load(at.rows[i] + p)) >> 16);
      if (i + 1 < map.inputs) two |= round_half(load(at.rows[i + 1] + p));
      std::memcpy(pairs + i / 2 * TILE + p, &two, sizeof two);
    }
  }
  program.multiply_half(map, pairs, TILE, lanes, at.sums);
  for (int64_t o = 0; o < map.outputs; ++o) {
    for (int64_t p = 0; p < lanes; p += V) then(o, p, load(at.sums + o * TILE + p) + map.bias[o]);
  }
}

template <Act act>
void run_dense(const Program& program, const Dense& layer, int64_t count, const Places& at, float* to) {
  const bool folded = &layer == program.mlp.data() && !program.folded.empty();
  auto then = [&](int64_t o, int64_t p, vf s) {
    if (folded) s += load(at.turned + o * TILE + p);
    if constexpr (act == Act::dice) {
      const vf share = sigmoid((s - layer.mean[o]) * layer.scale[o]);
      s = s * fma(share, set(1.0f - layer.alpha[o]), set(layer.alpha[o]));
    } else {
      s = activate<act>(s);
    }
    store(to + o * TILE + p, s);
  };
  if (layer.half.outputs) return apply_half(program, layer.half, count, at, then);
  for (int64_t i = 0; layer.rounded && i < layer.linear.inputs; ++i) {
    float* rounded = at.rounded + i * TILE;
    for (int64_t p = 0; p < count; p += V) store(rounded + p, (vf)round_half(load(at.rows[i] + p)));
    at.rows[i] = rounded;
  }
  apply_to_samples(layer.linear, count, at, then);
}

void run_dense(const Program& program, const Dense& layer, int64_t count, const Places& at, float* to) {
  switch (layer.act) {
    case Act::relu: return run_dense<Act::relu>(program, layer, count, at, to);
    case Act::swish: return run_dense<Act::swish>(program, layer, count, at, to);
    case Act::dice: return run_dense<Act::dice>(program, layer, count, at, to);
    default: return run_dense<Act::identity>(program, layer, count, at, to);
  }
}

void point(const float** rows, float* base, int64_t count) {
  for (int64_t i = 0; i < count; ++i) rows[i] = base + i * TILE;
}

// The first layer's inputs but for those of folded fields, which come in ascending order.
void leave_out_folded(const Program& program, float* base, const float** rows) {
  if (program.folded.empty()) return;
  const int64_t k = program.k, start = program.history_width();
  int64_t next = 0, to = 0;
  for (int64_t i = 0; i < program.inputs(); ++i) {
    const int64_t field = i < start ? -1 : (i - start) / k;
    while (next < static_cast<int64_t>(program.folded.size()) && program.folded[next].field < field) ++next;
    if (next < static_cast<int64_t>(program.folded.size()) && program.folded[next].field == field) continue;
    rows[to++] = base + i * TILE;
  }
}

// The SE shortcut: a mean of fields and products by weights that they themselves give.
void recalibrate(const Program& program, int64_t count, int64_t lanes, const Places& at) {
  const int64_t columns = program.columns(), k = program.k;
  float* q = at.x + program.history_width() * TILE;
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t p = 0; p < lanes; p += V) {
      vf z = {};
      for (int64_t i = 0; i < k; ++i) z = fma(set(program.project[i]), load(q + (c * k + i) * TILE + p), z);
      store(at.excited + c * TILE + p, z);
    }
  }
  point(at.rows, at.excited, columns);
  apply_to_samples(program.squeeze, count, at,
        [&](int64_t o, int64_t p, vf s) { store(at.squeezed + o * TILE + p, activate<Act::relu>(s)); });
  point(at.rows, at.squeezed, program.squeeze.outputs);
  apply_to_samples(program.excite, count, at,
        [&](int64_t o, int64_t p, vf s) { store(at.excited + o * TILE + p, sigmoid(s)); });
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t p = 0; p < lanes; p += V) {
      vf sum = {};
      for (int64_t c = 0; c < columns; ++c) {
        sum = fma(load(at.excited + c * TILE + p), load(q + (c * k + i) * TILE + p), sum);
      }
      store(at.shortcut + i * TILE + p, sum);
    }
  }
}

// Everything above the tile's histories and fields; then(lane, output, value).
template <typename Then>
void aggregate(const Program& program, int64_t count, const Places& at, Then then) {
  const int64_t lanes = (count + V - 1) / V * V, k = program.k;
  float* fields = at.x + program.history_width() * TILE;
  float* product = fields + static_cast<int64_t>(program.fields.size()) * k * TILE;
  for (const auto& factors : program.interactions) {
    for (int64_t i = 0; i < k; ++i, product += TILE) {
      for (int64_t p = 0; p < lanes; p += V) {
        vf y = load(fields + (factors[0] * k + i) * TILE + p);
        for (size_t f = 1; f < factors.size(); ++f) y *= load(fields + (factors[f] * k + i) * TILE + p);
        store(product + p, y);
      }
    }
  }
  lap(kProducts);
  float *x = at.x, *to = at.first, *other = at.second;
  for (const Dense& layer : program.mlp) {
    point(at.rows, x, layer.inputs());
    if (&layer == program.mlp.data()) leave_out_folded(program, x, at.rows);
    run_dense(program, layer, count, at, to);
    lap(kBlocks + program.blocks.size() + (&layer - program.mlp.data()));
    x = to;
    std::swap(to, other);
  }
  const int64_t width = program.mlp.back().outputs();
  if (program.shortcut) recalibrate(program, count, lanes, at);
  lap(kShortcut);
  point(at.rows, x, width);
  if (program.shortcut) point(at.rows + width, at.shortcut, k);
  apply_to_samples(program.head, count, at, [&](int64_t o, int64_t p, vf s) {
    for (int64_t lane = 0; lane < V && p + lane < count; ++lane) then(p + lane, o, s[lane]);
  });
  lap(kHead);
}

Places places(const Program& program) {
  thread_local Scratch scratch;
  return arrange(program, scratch);
}

void run(const Program& program, const Input& input, const int64_t* order, int64_t begin, int64_t end, float* out,
         Fault* fault) {
  const Places at = places(program);
  order += begin;
  look_up_fields(program, input, order, nullptr, 0, end - begin, at, fault);
  lap(kFields);
  if (!program.behavior.empty()) run_histories(program, input, order, end - begin, at, fault);
  aggregate(program, end - begin, at,
            [&](int64_t lane, int64_t o, float y) { out[order[lane] * program.outputs + o] = y; });
}

void share(const Program& program, const Input& input, Candidates* candidates, Fault* fault) {
  if (program.behavior.empty()) return;
  const Places at = places(program);
  constexpr int64_t only = 0;
  const Group group = single(input, &only);
  candidates->length = group.longest;
  candidates->hidden.resize(program.width() * group.longest);
  Histories<true>(program, input, at, group, 0).share(candidates->hidden.data(), fault);
}

void rank(const Program& program, const Input& input, const Candidates& candidates, int64_t begin, int64_t end, float* out,
          Fault* fault) {
  const Places at = places(program);
  const int64_t count = end - begin;
  look_up_fields(program, input, nullptr, &candidates, begin, count, at, fault);
  Group group;
  group.count = V;
  group.longest = candidates.length;
  group.lanes = candidates.length * V;
  group.full = true;
  std::fill(group.length, group.length + V, candidates.length);
  for (int64_t c = 0; !program.behavior.empty() && c < count; c += V) {
    Histories<false>(program, input, at, group, c).run_on(candidates.hidden.data());
  }
  aggregate(program, count, at,
            [&](int64_t lane, int64_t o, float y) { out[(begin + lane) * program.outputs + o] = y; });
}

}  // namespace
}  // namespace ameir_fast::plan::AMEIR_FAST_ISA
