  // A part of class Histories: the bidirectional GRU.

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
