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

// ---- linear maps -----------------------------------------------------------------------------------------

// outputs x vectors accumulators over all inputs. weight [inputs][panel], of which `outputs` from its start.
template <int outputs, int vectors, typename Then>
inline void multiply(const float* weight, int64_t panel, const float* bias, const float* const* rows, int64_t inputs,
                     int64_t p, Then then) {
  vf sum[outputs][vectors], before[outputs][vectors];
  for (int o = 0; o < outputs; ++o) {
    for (int v = 0; v < vectors; ++v) sum[o][v] = set(bias[o]);
  }
  for (int64_t start = 0; start < inputs; start += kChunk) {
    const int64_t end = std::min(start + kChunk, inputs);
    for (int o = 0; start && o < outputs; ++o) {
      for (int v = 0; v < vectors; ++v) before[o][v] = start == kChunk ? sum[o][v] : before[o][v] + sum[o][v], sum[o][v] = vf{};
    }
    for (int64_t i = start; i < end; ++i, weight += panel) {
      const float* x = rows[i] + p;
      vf in[vectors];
      for (int v = 0; v < vectors; ++v) in[v] = load(x + v * V);
      for (int o = 0; o < outputs; ++o) {
        const vf w = set(weight[o]);
        for (int v = 0; v < vectors; ++v) sum[o][v] = fma(w, in[v], sum[o][v]);
      }
    }
  }
  for (int o = 0; inputs > kChunk && o < outputs; ++o) {
    for (int v = 0; v < vectors; ++v) sum[o][v] = before[o][v] + sum[o][v];
  }
  for (int o = 0; o < outputs; ++o) {
    for (int v = 0; v < vectors; ++v) then(o, p + v * V, sum[o][v]);
  }
}

template <int vectors, typename Then>
inline void multiply_panels(const Linear& map, const float* const* rows, int64_t p, Then then) {
  const float *weight = map.weight.data(), *bias = map.bias.data();
  for (int64_t o = 0; o < map.outputs;) {
    auto at = [&](int64_t place, int64_t lane, vf sum) {
      if (place < map.outputs) then(place, lane, sum);
    };
    if (map.outputs - o > kNarrow) {
      if constexpr (V == 16) {
        multiply<kWide, vectors>(weight, kWide, bias + o, rows, map.inputs, p,
                                 [&](int j, int64_t lane, vf sum) { at(o + j, lane, sum); });
      } else {  // sixteen registers hold half a panel's accumulators
        for (int64_t half = 0; half < kWide; half += kNarrow) {
          multiply<kNarrow, vectors>(weight + half, kWide, bias + o + half, rows, map.inputs, p,
                                     [&](int j, int64_t lane, vf sum) { at(o + half + j, lane, sum); });
        }
      }
      weight += kWide * map.inputs;
      o += kWide;
    } else {
      multiply<kNarrow, vectors>(weight, kNarrow, bias + o, rows, map.inputs, p,
                                 [&](int j, int64_t lane, vf sum) { at(o + j, lane, sum); });
      o += kNarrow;
    }
  }
}

// Outputs as lanes, for a few samples: W x + b of one of them, `panels` panels of `width` outputs at a time.
template <typename Lanes, int panels>
inline void multiply_vector(const float* weight, const float* bias, const float* x, int64_t inputs, float* out) {
  constexpr int64_t width = sizeof(Lanes) / sizeof(float);
  Lanes sum[panels], before[panels];
  for (int j = 0; j < panels; ++j) std::memcpy(&sum[j], bias + j * width, sizeof(Lanes));
  for (int64_t start = 0; start < inputs; start += kChunk) {
    for (int j = 0; start && j < panels; ++j) before[j] = start == kChunk ? sum[j] : before[j] + sum[j], sum[j] = Lanes{};
    for (int64_t i = start; i < std::min(start + kChunk, inputs); ++i) {
      for (int j = 0; j < panels; ++j) {
        Lanes w;
        std::memcpy(&w, weight + (j * inputs + i) * width, sizeof w);
        sum[j] = fma(w, x[i], sum[j]);
      }
    }
  }
  for (int j = 0; inputs > kChunk && j < panels; ++j) sum[j] = before[j] + sum[j];
  for (int j = 0; j < panels; ++j) std::memcpy(out + j * width, &sum[j], sizeof(Lanes));
}

// What apply() gives, for the first `count` lanes; the others are zero. `space` holds the inputs and outputs of one.
template <typename Then>
inline void apply_to_few(const Linear& map, const float* const* rows, int64_t count, float* space, Then then) {
  const int64_t padded = static_cast<int64_t>(map.bias.size());
  float *x = space, *out = space + map.inputs;
  for (int64_t s = 0; s < count; ++s, out += padded) {
    for (int64_t i = 0; i < map.inputs; ++i) x[i] = rows[i][s];
    const float *weight = map.weight.data(), *bias = map.bias.data();
    int64_t o = 0;
    for (; o + 4 * kWide <= padded; o += 4 * kWide) {
      multiply_vector<Eight, 4>(weight + o * map.inputs, bias + o, x, map.inputs, out + o);
    }
    for (; o + kWide <= padded; o += kWide) {
      multiply_vector<Eight, 1>(weight + o * map.inputs, bias + o, x, map.inputs, out + o);
    }
    if (o < padded) multiply_vector<Four, 1>(weight + o * map.inputs, bias + o, x, map.inputs, out + o);
  }
  out = space + map.inputs;
  for (int64_t o = 0; o < map.outputs; ++o) {
    vf sum = {};
    for (int64_t s = 0; s < count; ++s) sum[s] = out[s * padded + o];
    then(o, 0, sum);
  }
}

// then(output, lane, sum) for lanes [0, lanes), a multiple of V, of W x + b.
template <typename Then>
inline void apply(const Linear& map, const float* const* rows, int64_t lanes, Then then) {
  int64_t p = 0;
  for (; p + 3 * V <= lanes; p += 3 * V) multiply_panels<3>(map, rows, p, then);
  if (p + 2 * V <= lanes) {
    multiply_panels<2>(map, rows, p, then);
  } else if (p + V <= lanes) {
    multiply_panels<1>(map, rows, p, then);
  }
}

// ---- scratch ---------------------------------------------------------------------------------------------

// Memory of a thread, kept between calls.
struct Scratch {
  Floats memory;
  uint64_t owner = 0;
  std::vector<const float*> rows;
};

// Where things lie in it. Rows of elements have room on the left that stays what it is at the start (zero, or -inf for
// max_pool) and on the right that every group fills anew, for neighbours beyond a history's ends.
struct Places {
  int64_t width, pitch, room;  // D, a row of elements, its left room
  float *hidden, *normed, *window, *gates, *mixed, *mask, *weights, *unit_bias, *attention, *scores;
  float *x, *first, *second, *squeezed, *excited, *shortcut, *few, *sums, *rounded, *zero;
  const float** rows;
};

int64_t most_gates(const Program& program) {
  int64_t most = 0;
  for (const Block& block : program.blocks) {
    if (block.layer == Layer::self_attn || block.layer == Layer::bi_gru) most = std::max(most, block.first.outputs);
  }
  return most;
}

Places arrange(const Program& program, Scratch& scratch) {
  Places at;
  const int64_t d = program.width(), columns = program.columns();
  at.width = d;
  at.room = program.reach() * V;
  at.pitch = 2 * at.room + program.max_history * V + V;
  if (at.pitch % 1024 == 0) at.pitch += V;  // or rows would share cache sets
  int64_t widest = std::max(columns, program.outputs), hidden = 0, inputs = program.inputs();
  for (const Dense& layer : program.mlp) widest = std::max(widest, layer.outputs());
  if (!program.target.empty()) hidden = (program.pool.hidden + kUnitRows) * V;
  const int64_t gates = most_gates(program);
  const bool any = !program.behavior.empty();
  bool max_pool = false;
  for (const Block& block : program.blocks) max_pool |= block.layer == Layer::max_pool;
  const int64_t half = program.half ? (std::max(inputs, widest) + kBlockInputs) * TILE : 0;  // a layer's rounded inputs
  const int64_t sizes[] = {any ? d * at.pitch : 0,
                           any ? d * at.pitch : 0,
                           max_pool ? d * at.pitch : 0,
                           gates * at.pitch,
                           gates ? d * at.pitch : 0,
                           any ? at.pitch : 0,
                           hidden * d,
                           hidden,
                           any ? at.pitch : 0,
                           gates ? 4 * (program.max_history + 1) * V : 0,
                           (inputs + program.k) * TILE,
                           widest * TILE,
                           widest * TILE,
                           columns * TILE,
                           columns * TILE,
                           program.k * TILE,
                           inputs + program.k + widest + kFew * (widest + program.k + kWide),
                           half ? (widest + kBlockOutputs) * TILE : 0,
                           half,
                           program.k + 4};
  float** parts[] = {&at.hidden,    &at.normed,  &at.window, &at.gates,    &at.mixed,   &at.mask,
                     &at.weights,   &at.unit_bias, &at.attention, &at.scores, &at.x,     &at.first,
                     &at.second,    &at.squeezed, &at.excited, &at.shortcut, &at.few,
                     &at.sums,      &at.rounded,  &at.zero};
  int64_t total = 0;
  for (int64_t size : sizes) total += (size + 15) / 16 * 16;
  if (static_cast<int64_t>(scratch.memory.size()) < total) {
    // NaN wherever nothing is promised: what is read before it is written shows in a result.
    scratch.memory.assign(total, std::numeric_limits<float>::quiet_NaN());
    scratch.owner = 0;
  }
  const bool fresh = scratch.owner != program.id;
  if (fresh) {
    scratch.owner = program.id;
    int64_t most = std::max(inputs, widest) + program.k;
    for (const Block& block : program.blocks) most = std::max(most, std::max(block.first.inputs, d));
    scratch.rows.resize(most);
  }
  float* next = scratch.memory.data();
  for (size_t part = 0; part < std::size(sizes); ++part) {
    *parts[part] = next;
    next += (sizes[part] + 15) / 16 * 16;
  }
  if (fresh) {
    for (int64_t i = 0; i < d; ++i) {
      std::fill_n(at.normed + i * at.pitch, at.room, 0.0f);
      if (max_pool) std::fill_n(at.window + i * at.pitch, at.room, -std::numeric_limits<float>::infinity());
    }
    if (any) std::fill_n(at.mask, at.room, 0.0f);
    std::fill_n(at.zero, program.k + 4, 0.0f);
  }
  at.hidden += at.room, at.normed += at.room, at.window += at.room, at.gates += at.room, at.mixed += at.room;
  at.mask += at.room;
  at.rows = scratch.rows.data();
  return at;
}

// ---- looking up ------------------------------------------------------------------------------------------

void note(Fault* fault, int64_t row, int64_t column, int64_t id, bool history) {
  if (fault->row < 0 || row < fault->row) *fault = {row, column, id, history};
}

// Row of an id, or zeros with a fault noted where it lies outside its vocabulary.
inline const float* embedded(const Program& program, const Field& field, int32_t id, const float* zero, int64_t row,
                             int64_t column, bool history, Fault* fault) {
  if (static_cast<uint32_t>(id) >= static_cast<uint64_t>(field.size)) [[unlikely]] {
    note(fault, row, column, id, history);
    return zero;
  }
  return program.embedding + (field.offset + id) * program.k;
}

// k numbers of V rows each into k rows of vectors, `pitch` apart.
inline void spread(const float* const* from, int64_t k, float* to, int64_t pitch) {
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
    vf part[4];
    transpose4(from, i, part);
    for (int j = 0; j < 4; ++j) store(to + (i + j) * pitch, part[j]);
  }
  for (; i < k; ++i) {
    for (int lane = 0; lane < V; ++lane) to[i * pitch + lane] = from[lane][i];
  }
}

// ---- groups of histories ---------------------------------------------------------------------------------

// Samples that go through the blocks together: `count` of them in `V` lanes, or one alone. `order` names their rows.
struct Group {
  const int64_t* order;
  int64_t count, longest, lanes;  // lanes: elements of a row in use, a multiple of V
  bool full;                      // whether every lane holds a true element
  int64_t length[V];
};

template <bool alone>
class Histories {
 public:
  static constexpr int64_t S = alone ? 1 : V;

  Histories(const Program& program, const Input& input, const Places& at, const Group& group, int64_t column)
      : program_(program), input_(input), at_(at), group_(group), column_(column) {}

  void run(Fault* fault) {
    look_up(fault);
    for (const Block& block : program_.blocks) run_block(block);
    pool();
  }

  // The blocks that candidates share; [D][length] to `hidden`.
  void share(float* hidden, Fault* fault) {
    look_up(fault);
    for (int64_t b = 0; b < program_.shared_blocks(); ++b) run_block(program_.blocks[b]);
    for (int64_t i = 0; i < d(); ++i) std::copy_n(row(at_.hidden, i), group_.longest, hidden + i * group_.longest);
  }

  // The rest, for candidates as lanes.
  void run_on(const float* hidden) {
    for (int64_t p = 0; p < group_.lanes; p += V) store(at_.mask + p, set(1.0f));
    fill_right(at_.mask, 1, 0.0f);
    for (int64_t i = 0; i < d(); ++i) {
      for (int64_t t = 0; t < group_.longest; ++t) store(row(at_.hidden, i) + t * V, set(hidden[i * group_.longest + t]));
    }
    for (size_t b = program_.shared_blocks(); b < program_.blocks.size(); ++b) run_block(program_.blocks[b]);
    pool();
  }

 private:
  const Program& program_;
  const Input& input_;
  const Places& at_;
  const Group& group_;
  const int64_t column_;  // of the tile, where the group's first sample lies

  int64_t d() const { return at_.width; }
  float* row(float* base, int64_t i) const { return base + i * at_.pitch; }

  void look_up(Fault* fault) {
    const int64_t fields = static_cast<int64_t>(program_.behavior.size());
    const float* from[V];
    for (int64_t p = 0; p < group_.lanes; p += V) {
      vf valid = {};
      int64_t element[V];
      for (int lane = 0; lane < V; ++lane) {
        const int64_t s = alone ? 0 : lane, t = alone ? p + lane : p / V;
        const bool there = s < group_.count && t < group_.length[s];
        element[lane] = there ? input_.history_offsets[group_.order[s]] + t : -1;
        valid[lane] = there;
      }
      store(at_.mask + p, valid);
      for (int64_t f = 0; f < fields; ++f) {
        for (int lane = 0; lane < V; ++lane) {
          from[lane] = element[lane] < 0 ? at_.zero
                                         : embedded(program_, program_.behavior[f],
                                                    input_.history[element[lane] * fields + f], at_.zero,
                                                    group_.order[alone ? 0 : lane], f, true, fault);
        }
        spread(from, program_.k, row(at_.hidden, f * program_.k) + p, at_.pitch);
      }
    }
    fill_right(at_.mask, 1, 0.0f);
  }

  // What lies beyond the lanes in use, as far as neighbours are read.
  void fill_right(float* base, int64_t rows, float value) {
    for (int64_t i = 0; i < rows; ++i) {
      float* end = row(base, i) + group_.lanes;
      std::fill(end, end + at_.room, value);
    }
  }

  vf keep(vf x, int64_t p, float otherwise = 0.0f) const {
    return group_.full ? x : (load(at_.mask + p) != 0.0f ? x : set(otherwise));
  }

  void run_block(const Block& block) {
    const bool max_pool = block.layer == Layer::max_pool;
    float* to = max_pool ? at_.window : at_.normed;
    normalize(block, to, max_pool ? -std::numeric_limits<float>::infinity() : 0.0f);
    if (block.reach()) fill_right(to, d(), max_pool ? -std::numeric_limits<float>::infinity() : 0.0f);
    switch (block.act) {
      case Act::relu: return run_layer<Act::relu>(block);
      case Act::swish: return run_layer<Act::swish>(block);
      case Act::gelu: return run_layer<Act::gelu>(block);
      default: return run_layer<Act::identity>(block);
    }
  }

  void normalize(const Block& block, float* to, float outside) {
    const float inverse = 1.0f / static_cast<float>(d());
    for (int64_t p = 0; p < group_.lanes; p += V) {
      if (!block.norm) {
        for (int64_t i = 0; i < d(); ++i) store(row(to, i) + p, keep(load(row(at_.hidden, i) + p), p, outside));
        continue;
      }
      vf mean = {}, variance = {};
      for (int64_t i = 0; i < d(); ++i) mean += load(row(at_.hidden, i) + p);
      mean *= inverse;
      for (int64_t i = 0; i < d(); ++i) {
        const vf away = load(row(at_.hidden, i) + p) - mean;
        variance = fma(away, away, variance);
      }
      const vf scale = 1.0f / sqrt(fma(variance, set(inverse), set(1e-5f)));
      for (int64_t i = 0; i < d(); ++i) {
        const vf away = load(row(at_.hidden, i) + p) - mean;
        store(row(to, i) + p, keep(fma(away * scale, set(block.gain[i]), set(block.shift[i])), p, outside));
      }
    }
  }

  // The residual: H + Act(y), zero outside the histories.
  template <Act act>
  void add(int64_t i, int64_t p, vf y) {
    float* h = row(at_.hidden, i) + p;
    store(h, keep(load(h) + activate<act>(y), p));
  }

  template <Act act>
  void run_layer(const Block& block) {
    switch (block.layer) {
      case Layer::conv: return convolve<act>(block);
      case Layer::avg_pool: return average<act>();
      case Layer::max_pool: return maximum<act>();
      case Layer::bi_gru:
        project(block.first);
        if (alone && d() <= V) return recur_in_lanes<act>(block);
        switch (d() / 2) {
          case 4: return recur<act, 4>(block);
          case 8: return recur<act, 8>(block);
          case 16: return recur<act, 16>(block);
          default: return recur<act, 0>(block);
        }
      case Layer::self_attn:
        project(block.first);
        attend(block.heads);
        for (int64_t i = 0; i < d(); ++i) at_.rows[i] = row(at_.mixed, i);
        return apply(block.second, at_.rows, group_.lanes, [&](int64_t o, int64_t p, vf y) { add<act>(o, p, y); });
      case Layer::target_attn:
        unit(block.unit, at_.normed);
        for (int64_t p = 0; p < group_.lanes; p += V) {
          const vf a = load(at_.attention + p);
          for (int64_t i = 0; i < d(); ++i) add<act>(i, p, a * load(row(at_.normed, i) + p));
        }
    }
  }

  template <Act act>
  void convolve(const Block& block) {
    for (int64_t tap = 0; tap < block.taps; ++tap) {
      const int64_t shift = (tap * block.dilation - block.reach()) * S;
      for (int64_t i = 0; i < d(); ++i) at_.rows[tap * d() + i] = row(at_.normed, i) + shift;
    }
    apply(block.first, at_.rows, group_.lanes, [&](int64_t o, int64_t p, vf y) { add<act>(o, p, y); });
  }

  template <Act act>
  void average() {
    for (int64_t p = 0; p < group_.lanes; p += V) {
      const vf count = load(at_.mask + p - S) + load(at_.mask + p) + load(at_.mask + p + S);
      for (int64_t i = 0; i < d(); ++i) {
        const float* x = row(at_.normed, i) + p;
        add<act>(i, p, (load(x - S) + load(x) + load(x + S)) / count);
      }
    }
  }

  template <Act act>
  void maximum() {
    for (int64_t i = 0; i < d(); ++i) {
      for (int64_t p = 0; p < group_.lanes; p += V) {
        const float* x = row(at_.window, i) + p;
        const vf a = load(x - S), b = load(x), c = load(x + S), ab = a > b ? a : b;
        add<act>(i, p, ab > c ? ab : c);
      }
    }
  }

  // The part of gates, or q, k and v, that depends on the element alone.
  void project(const Linear& map) {
    for (int64_t i = 0; i < d(); ++i) at_.rows[i] = row(at_.normed, i);
    apply(map, at_.rows, group_.lanes, [&](int64_t o, int64_t p, vf y) { store(row(at_.gates, o) + p, y); });
  }

  // Of a single sample: the units of both directions are the lanes.
  template <Act act>
  void recur_in_lanes(const Block& block) {
    const int64_t h = d() / 2, steps = group_.longest;
    float *gates = at_.scores, *states = gates + 3 * steps * V;  // [steps][3][V], [steps][V]
    vi from[V / 2];  // lanes of unit j's state, each in its own direction's half
    for (int64_t j = 0; j < h; ++j) {
      for (int lane = 0; lane < V; ++lane) from[j][lane] = static_cast<int32_t>(lane < h ? j : lane < d() ? h + j : 0);
    }
    for (int64_t i = 0; i < d(); ++i) {
      const int64_t way = i / h;
      for (int64_t g = 0; g < 3; ++g) {
        const float* gate = row(at_.gates, (way * 3 + g) * h + i % h);
        for (int64_t step = 0; step < steps; ++step) gates[(step * 3 + g) * V + i] = gate[way ? steps - 1 - step : step];
      }
    }
    vf bias[3] = {}, weight[3][V / 2] = {}, state = {};
    for (int64_t i = 0; i < d(); ++i) {
      const int64_t way = i / h;
      for (int64_t g = 0; g < 3; ++g) {
        const int64_t unit = (way * 3 + g) * h + i % h;
        bias[g][i] = block.recurrent_bias[unit];
        for (int64_t j = 0; j < h; ++j) weight[g][j][i] = block.recurrent[unit * h + j];
      }
    }
    for (int64_t step = 0; step < steps; ++step) {
      vf gate[3] = {bias[0], bias[1], bias[2]};
      for (int64_t j = 0; j < h; ++j) {
        const vf one = pick(state, from[j]);
        for (int g = 0; g < 3; ++g) gate[g] = fma(weight[g][j], one, gate[g]);
      }
      const float* in = gates + step * 3 * V;
      state = step_of(state, gate, load(in), load(in + V), load(in + 2 * V));
      store(states + step * V, activate<act>(state));
    }
    for (int64_t i = 0; i < d(); ++i) {
      float* to = row(at_.hidden, i);
      for (int64_t step = 0; step < steps; ++step) to[i < h ? step : steps - 1 - step] += states[step * V + i];
    }
  }

  // The next state from this one, the recurrent parts of the gates, and the input's.
  static vf step_of(vf state, const vf* gate, vf in_reset, vf in_update, vf in_fresh) {
    const vf reset = sigmoid(in_reset + gate[0]), update = sigmoid(in_update + gate[1]);
    const vf fresh = tanh(fma(reset, gate[2], in_fresh));
    return fma(update, state - fresh, fresh);
  }

  // Both directions step by step, side by side, for their chains of dependent operations are long.
  template <Act act, int fixed>
  void recur(const Block& block) {
    const int64_t h = fixed ? fixed : d() / 2;
    constexpr int kMost = fixed ? fixed : 1;
    vf own[2][kMost];
    std::vector<vf> other(fixed ? 0 : 4 * h);
    vf* state[2];
    vf* next[2];
    vf fresh[2][kMost];
    for (int way = 0; way < 2; ++way) {
      state[way] = fixed ? own[way] : other.data() + way * h;
      next[way] = fixed ? fresh[way] : other.data() + (2 + way) * h;
      for (int64_t i = 0; i < h; ++i) state[way][i] = vf{};
    }
    for (int64_t step = 0; step < group_.longest; ++step) {
      for (int way = 0; way < 2; ++way) {
        const int64_t t = way ? group_.longest - 1 - step : step, p = t * S;
        const float* weight = block.recurrent.data() + way * 3 * h * h;
        const float* bias = block.recurrent_bias.data() + way * 3 * h;
        for (int64_t i = 0; i < h; ++i) {
          vf gate[3];
          for (int g = 0; g < 3; ++g) {
            gate[g] = set(bias[g * h + i]);
            for (int64_t j = 0; j < h; ++j) gate[g] = fma(set(weight[(g * h + i) * h + j]), state[way][j], gate[g]);
          }
          const float* in = row(at_.gates, way * 3 * h + i) + p;
          next[way][i] = step_of(state[way][i], gate, load(in), load(in + h * at_.pitch), load(in + 2 * h * at_.pitch));
        }
        for (int64_t i = 0; i < h; ++i) {
          if constexpr (alone) {
            state[way][i] = next[way][i];
            row(at_.hidden, way * h + i)[p] += activate<act>(next[way][i])[0];
          } else {
            state[way][i] = keep(next[way][i], p);
            add<act>(way * h + i, p, next[way][i]);
          }
        }
      }
    }
  }

  void attend(int64_t heads) {
    const int64_t width = d() / heads;
    for (int64_t head = 0; head < heads; ++head) {
      switch (width) {
        case 2: attend_head<2, V == 16 ? 4 : 2>(head, width); break;
        case 4: attend_head<4, V == 16 ? 3 : 1>(head, width); break;
        case 8: attend_head<8, 1>(head, width); break;
        default: attend_head<0, 1>(head, width);
      }
    }
  }

  // The largest |x| over a sample's elements, in its lane.
  vf largest(const float* x) const {
    vf most = {};
    for (int64_t p = 0; p < group_.lanes; p += V) most = larger(keep(abs(load(x + p)), p), most);
    if constexpr (alone) {
      float one = most[0];
      for (int lane = 1; lane < V; ++lane) one = most[lane] > one ? most[lane] : one;
      return set(one);
    }
    return most;
  }

  // Scores are powers of two, for those cost least. Where no score of a sample can exceed kSafe they are taken as they
  // are; otherwise less the largest one of their query, as softmax must.
  template <int fixed, int queries>
  void attend_head(int64_t head, int64_t dynamic) {
    constexpr float kSafe = 60.0f;
    const int64_t width = fixed ? fixed : dynamic, start = head * width, vectors = group_.lanes / V;
    const float scale = 1.44269504f / std::sqrt(static_cast<float>(width));
    vf bound = {};
    for (int64_t i = 0; i < width; ++i) {
      bound = fma(largest(row(at_.gates, start + i)) * scale, largest(row(at_.gates, d() + start + i)), bound);
    }
    const vi safe = bound < kSafe;
    bool all = true;
    for (int lane = 0; lane < V; ++lane) all &= safe[lane] != 0;
    for (int64_t i = 0; i < width; ++i) {
      float* q = row(at_.gates, start + i);
      for (int64_t p = 0; p < group_.lanes; p += V) store(q + p, load(q + p) * scale);
    }
    int64_t first = 0;
    for (; first + queries <= vectors; first += queries) attend_queries<fixed, queries>(start, width, first * V, safe, all);
    for (; first < vectors; ++first) attend_queries<fixed, 1>(start, width, first * V, safe, all);
  }

  vf key(const float* x, int64_t t) const { return alone ? set(x[t]) : load(x + t * V); }

  // Some vectors of queries with all keys, and the mean of the values.
  template <int fixed, int queries>
  void attend_queries(int64_t start, int64_t dynamic, int64_t p, vi safe, bool all) {
    constexpr int kHeld = fixed ? fixed : 1;  // queries and means that stay in registers
    const int64_t width = fixed ? fixed : dynamic, pitch = at_.pitch;
    const float *q = row(at_.gates, start) + p, *k = row(at_.gates, d() + start), *v = row(at_.gates, 2 * d() + start);
    float* out = row(at_.mixed, start) + p;
    vf held[queries][kHeld], mean[queries][kHeld], sum[queries] = {}, shift[queries] = {};
    auto query = [&](int j, int64_t i) { return fixed ? held[j][i] : load(q + i * pitch + j * V); };
    for (int j = 0; j < queries; ++j) {
      for (int64_t i = 0; i < width; ++i) {
        if constexpr (fixed != 0) {
          held[j][i] = load(q + i * pitch + j * V);
          mean[j][i] = vf{};
        } else {
          store(out + i * pitch + j * V, vf{});
        }
      }
    }
    auto scores = [&](int64_t t, vf* score) {
      for (int j = 0; j < queries; ++j) score[j] = vf{};
      for (int64_t i = 0; i < width; ++i) {
        const vf one = key(k + i * pitch, t);
        for (int j = 0; j < queries; ++j) score[j] = fma(query(j, i), one, score[j]);
      }
    };
    if (!all) {
      for (int j = 0; j < queries; ++j) shift[j] = set(-std::numeric_limits<float>::infinity());
      for (int64_t t = 0; t < group_.longest; ++t) {
        vf score[queries];
        scores(t, score);
        for (int j = 0; j < queries; ++j) {
          if (!alone) score[j] = keep(score[j], t * V, -std::numeric_limits<float>::infinity());
          shift[j] = larger(score[j], shift[j]);
        }
      }
      for (int j = 0; j < queries; ++j) shift[j] = safe ? vf{} : shift[j];
    }
    for (int64_t t = 0; t < group_.longest; ++t) {
      vf e[queries];
      scores(t, e);
      for (int j = 0; j < queries; ++j) {
        e[j] = exp2(e[j] - shift[j]);
        if (!alone) e[j] = keep(e[j], t * V);
        sum[j] += e[j];
      }
      for (int64_t i = 0; i < width; ++i) {
        const vf one = key(v + i * pitch, t);
        for (int j = 0; j < queries; ++j) {
          if constexpr (fixed != 0) {
            mean[j][i] = fma(e[j], one, mean[j][i]);
          } else {
            float* to = out + i * pitch + j * V;
            store(to, fma(e[j], one, load(to)));
          }
        }
      }
    }
    for (int j = 0; j < queries; ++j) {
      sum[j] = 1.0f / sum[j];
      for (int64_t i = 0; i < width; ++i) {
        float* to = out + i * pitch + j * V;
        store(to, (fixed ? mean[j][fixed ? i : 0] : load(to)) * sum[j]);
      }
    }
  }

  // The unit's outputs for all elements, into `attention`. Its weights depend on the target: a matrix for each lane,
  // or of a single sample one of plain numbers.
  void unit(const Unit& u, float* from) {
    const int64_t padded = (u.hidden + kUnitRows - 1) / kUnitRows * kUnitRows;
    const float* target[256];
    std::vector<const float*> more;
    const float** t = target;
    if (d() > 256) more.resize(d()), t = more.data();
    for (int64_t f = 0; f < static_cast<int64_t>(program_.target.size()); ++f) {
      for (int64_t i = 0; i < program_.k; ++i) {
        t[f * program_.k + i] =
            at_.x + (program_.history_width() + program_.target[f] * program_.k + i) * TILE + column_;
      }
    }
    // [panel of kUnitRows][D][row]
    for (int64_t o = 0; o < u.hidden; ++o) {
      vf bias = set(u.bias[o]);
      float* panel = at_.weights + (o / kUnitRows * kUnitRows * d() + o % kUnitRows) * S;
      for (int64_t i = 0; i < d(); ++i) {
        const int64_t place = o * d() + i;
        const vf one = alone ? set(t[i][0]) : load(t[i]);
        bias = fma(set(u.target[place]), one, bias);
        const vf weight = fma(set(u.product[place]), one, set(u.own[place]));
        if constexpr (alone) {
          panel[i * kUnitRows] = weight[0];
        } else {
          store(panel + i * kUnitRows * V, weight);
        }
      }
      if constexpr (alone) {
        at_.unit_bias[o] = bias[0];
      } else {
        store(at_.unit_bias + o * V, bias);
      }
    }
    for (int64_t o = u.hidden; o < padded; ++o) {
      float* panel = at_.weights + (o / kUnitRows * kUnitRows * d() + o % kUnitRows) * S;
      for (int64_t i = 0; i < d(); ++i) std::fill(panel + i * kUnitRows * S, panel + i * kUnitRows * S + S, 0.0f);
      std::fill(at_.unit_bias + o * S, at_.unit_bias + (o + 1) * S, 0.0f);
    }
    for (int64_t p = 0; p < group_.lanes; p += V) store(at_.attention + p, set(u.out_bias));
    for (int64_t o = 0; o < padded; o += kUnitRows) {
      int64_t p = 0;
      for (; p + kUnitVectors * V <= group_.lanes; p += kUnitVectors * V) unit_part<kUnitVectors>(u, o, from, p);
      for (; p < group_.lanes; p += V) unit_part<1>(u, o, from, p);
    }
  }

  template <int vectors>
  void unit_part(const Unit& u, int64_t o, float* from, int64_t p) {
    auto per_lane = [](const float* at) { return alone ? set(*at) : load(at); };
    vf sum[kUnitRows][vectors];
    for (int j = 0; j < kUnitRows; ++j) {
      for (int v = 0; v < vectors; ++v) sum[j][v] = per_lane(at_.unit_bias + (o + j) * S);
    }
    const float* weight = at_.weights + o * d() * S;
    for (int64_t i = 0; i < d(); ++i, weight += kUnitRows * S) {
      const float* x = row(from, i) + p;
      vf in[vectors];
      for (int v = 0; v < vectors; ++v) in[v] = load(x + v * V);
      for (int j = 0; j < kUnitRows; ++j) {
        const vf w = per_lane(weight + j * S);
        for (int v = 0; v < vectors; ++v) sum[j][v] = fma(w, in[v], sum[j][v]);
      }
    }
    for (int v = 0; v < vectors; ++v) {
      vf a = load(at_.attention + p + v * V);
      for (int j = 0; j < kUnitRows; ++j) {
        const vf y = sum[j][v] < 0.0f ? u.slope * sum[j][v] : sum[j][v];
        a = fma(set(u.out[o + j]), y, a);
      }
      store(at_.attention + p + v * V, a);
    }
  }

  // Sum, last element and the mean by attention, into the tile's first rows.
  void pool() {
    const bool target = !program_.target.empty();
    if (target) unit(program_.pool, at_.hidden);
    for (int64_t i = 0; i < d(); ++i) {
      const float* h = row(at_.hidden, i);
      float* to = at_.x + i * TILE + column_;
      if constexpr (alone) {
        float sum = 0.0f, attended = 0.0f;
        for (int64_t t = 0; t < group_.longest; ++t) sum += h[t];
        to[0] = sum;
        to[d() * TILE] = group_.longest ? h[group_.longest - 1] : 0.0f;
        if (target) {
          for (int64_t t = 0; t < group_.longest; ++t) attended = fma(at_.attention[t], h[t], attended);
          to[2 * d() * TILE] = attended;
        }
      } else {
        vf sum = {}, attended = {}, last = {};
        for (int64_t t = 0; t < group_.longest; ++t) {
          const vf x = load(h + t * V);
          sum += x;
          if (target) attended = fma(load(at_.attention + t * V), x, attended);
        }
        for (int lane = 0; lane < V; ++lane) {
          if (group_.length[lane]) last[lane] = h[(group_.length[lane] - 1) * V + lane];
        }
        store(to, sum);
        store(to + d() * TILE, last);
        if (target) store(to + 2 * d() * TILE, attended);
      }
    }
  }
};

// ---- a tile of samples -----------------------------------------------------------------------------------

// Of rows order[0, count), or of candidates first + [0, count) for the only row.
void look_up_fields(const Program& program, const Input& input, const int64_t* order, const Candidates* candidates,
                    int64_t first, int64_t count, const Places& at, Fault* fault) {
  const int64_t fields = static_cast<int64_t>(program.fields.size()), k = program.k;
  const float* from[V];
  for (int64_t c = 0; c < count; c += V) {
    auto row_of = [&](int lane) { return candidates ? 0 : order[c + lane]; };
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
  apply(map, at.rows, (count + V - 1) / V * V, then);
}

// To the nearest bfloat16, ties to even; a NaN stays one.
inline vi round_half(vf x) {
  const vi bits = (vi)x, rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & (int32_t)0xFFFF0000;
  return x == x ? rounded : (bits | 0x400000) & (int32_t)0xFFFF0000;
}

// A layer in bfloat16 by AMX: inputs rounded in pairs, then() as apply() calls it.
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
  auto then = [&](int64_t o, int64_t p, vf s) {
    if constexpr (act == Act::dice) {
      const vf share = sigmoid((s - layer.mean[o]) * layer.scale[o]);
      s = s * fma(share, set(1.0f - layer.alpha[o]), set(layer.alpha[o]));
    } else {
      s = activate<act>(s);
    }
    store(to + o * TILE + p, s);
  };
  if (program.multiply_half) return apply_half(program, layer.half, count, at, then);
  for (int64_t i = 0; program.half && i < layer.linear.inputs; ++i) {
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
  float *x = at.x, *to = at.first, *other = at.second;
  for (const Dense& layer : program.mlp) {
    point(at.rows, x, layer.inputs());
    run_dense(program, layer, count, at, to);
    x = to;
    std::swap(to, other);
  }
  const int64_t width = program.mlp.back().outputs();
  if (program.shortcut) recalibrate(program, count, lanes, at);
  point(at.rows, x, width);
  if (program.shortcut) point(at.rows + width, at.shortcut, k);
  apply_to_samples(program.head, count, at, [&](int64_t o, int64_t p, vf s) {
    for (int64_t lane = 0; lane < V && p + lane < count; ++lane) then(p + lane, o, s[lane]);
  });
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
