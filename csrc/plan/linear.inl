// Linear maps of rows of lanes. Included once for each instruction set, inside its namespace.

// outputs x vectors accumulators over some inputs. weight [inputs][panel], of which `outputs` from its start; bias null
// for zeros. then(output, vector, sum).
template <int outputs, int vectors, typename Then>
inline void multiply(const float* weight, int64_t panel, const float* bias, const float* const* rows, int64_t inputs,
                     int64_t p, Then then) {
  vf sum[outputs][vectors];
  for (int o = 0; o < outputs; ++o) {
    for (int v = 0; v < vectors; ++v) sum[o][v] = bias ? set(bias[o]) : vf{};
  }
  for (int64_t i = 0; i < inputs; ++i, weight += panel) {
    const float* x = rows[i] + p;
    vf in[vectors];
    for (int v = 0; v < vectors; ++v) in[v] = load(x + v * V);
    for (int o = 0; o < outputs; ++o) {
      const vf w = set(weight[o]);
      for (int v = 0; v < vectors; ++v) sum[o][v] = fma(w, in[v], sum[o][v]);
    }
  }
  for (int o = 0; o < outputs; ++o) {
    for (int v = 0; v < vectors; ++v) then(o, v, sum[o][v]);
  }
}

// All outputs for `vectors` vectors of lanes from p on. Inputs go by chunks, each through all panels while it is in the
// nearest cache; partial [outputs][vectors] holds the sums in between.
template <int vectors, typename Then>
inline void multiply_panels(const Linear& map, const float* const* rows, int64_t p, float* partial, Then then) {
  for (int64_t start = 0; start < map.inputs || start == 0; start += kChunk) {
    const int64_t count = std::min(kChunk, map.inputs - start);
    const bool first = start == 0, last = start + kChunk >= map.inputs;
    const float* weight = map.weight.data();
    for (int64_t o = 0; o < map.outputs;) {
      const int64_t panel = map.outputs - o > kNarrow ? kWide : kNarrow;
      const float* bias = first ? map.bias.data() + o : nullptr;
      auto take = [&](int64_t place, int v, vf sum) {
        float* held = partial + (place * vectors + v) * V;
        if (!first) sum = load(held) + sum;
        if (!last) return store(held, sum);
        if (place < map.outputs) then(place, p + v * V, sum);
      };
      if (V == 16 && panel == kWide) {
        multiply<kWide, vectors>(weight + start * panel, panel, bias, rows + start, count, p,
                                 [&](int j, int v, vf sum) { take(o + j, v, sum); });
      } else {  // sixteen registers hold half a wide panel's accumulators
        for (int64_t half = 0; half < panel; half += kNarrow) {
          multiply<kNarrow, vectors>(weight + start * panel + half, panel, bias ? bias + half : nullptr, rows + start, count,
                                     p, [&](int j, int v, vf sum) { take(o + half + j, v, sum); });
        }
      }
      weight += panel * map.inputs;
      o += panel;
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

// then(output, lane, sum) for lanes [0, lanes), a multiple of V, of W x + b. partial: room for 3 vectors of each output,
// padded to a panel.
template <typename Then>
inline void apply(const Linear& map, const float* const* rows, int64_t lanes, float* partial, Then then) {
  int64_t p = 0;
  for (; p + 3 * V <= lanes; p += 3 * V) multiply_panels<3>(map, rows, p, partial, then);
  if (p + 2 * V <= lanes) {
    multiply_panels<2>(map, rows, p, partial, then);
  } else if (p + V <= lanes) {
    multiply_panels<1>(map, rows, p, partial, then);
  }
}
