// Histories through the behaviour blocks and pools. Included once for each instruction set, inside its namespace.

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
  static constexpr int64_t kAhead = 4;  // vectors of lanes whose embeddings are fetched while others are copied

  Histories(const Program& program, const Input& input, const Places& at, const Group& group, int64_t column)
      : program_(program), input_(input), at_(at), group_(group), column_(column) {}

  void run(Fault* fault) {
    look_up(fault);
    lap(kHistory);
    for (size_t b = 0; b < program_.blocks.size(); ++b) {
      run_block(program_.blocks[b]);
      lap(kBlocks + b);
    }
    pool();
    lap(kPool);
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

  // Fetches the embeddings of V lanes from p on: rows lie anywhere in a large table, and the processor alone would ask for
  // few of them at a time.
  void fetch(int64_t p) const {
    const int64_t fields = static_cast<int64_t>(program_.behavior.size());
    for (int lane = 0; lane < V; ++lane) {
      const int64_t s = alone ? 0 : lane, t = alone ? p + lane : p / V;
      if (s >= group_.count || t >= group_.length[s]) continue;
      const int32_t* ids = input_.history + (input_.history_offsets[group_.order[s]] + t) * fields;
      for (int64_t f = 0; f < fields; ++f) {
        const Field& field = program_.behavior[f];
        if (static_cast<uint32_t>(ids[f]) >= static_cast<uint64_t>(field.size)) continue;
        __builtin_prefetch(program_.embedding + (field.offset + ids[f]) * program_.k);
      }
    }
  }

  void look_up(Fault* fault) {
    const int64_t fields = static_cast<int64_t>(program_.behavior.size());
    const float* from[V];
    for (int64_t p = 0; p < std::min(group_.lanes, kAhead * V); p += V) fetch(p);
    for (int64_t p = 0; p < group_.lanes; p += V) {
      if (p + kAhead * V < group_.lanes) fetch(p + kAhead * V);
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
        return apply(block.second, at_.rows, group_.lanes, at_.partial, [&](int64_t o, int64_t p, vf y) { add<act>(o, p, y); });
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
    apply(block.first, at_.rows, group_.lanes, at_.partial, [&](int64_t o, int64_t p, vf y) { add<act>(o, p, y); });
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
    apply(map, at_.rows, group_.lanes, at_.partial, [&](int64_t o, int64_t p, vf y) { store(row(at_.gates, o) + p, y); });
  }

#include "plan/recurrent.inl"
#include "plan/attention.inl"
#include "plan/unit.inl"

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
