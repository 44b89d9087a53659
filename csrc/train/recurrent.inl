// The bidirectional GRU. Included once for each instruction set.
//
//   r = σ(a_r + W_r h + b_r)   z = σ(a_z + W_z h + b_z)   c = W_n h + b_n   n = tanh(a_n + r c)   h' = n + z (h - n)
//
// with a = W x + b of the element (`first`). Each direction has H = D / 2 units; [way][gate][unit] orders rows of gates.
// h may be fixed at compile time, so that states stay in registers.
struct Recurrent {
  Group& g;
  const int64_t h;
  float *in, *reset, *update, *fresh, *hidden, *state;  // 6 H rows, and 2 H of each other

  explicit Recurrent(Group& group) : g(group), h(group.d / 2) {
    in = g.rows(6 * h);
    reset = g.rows(2 * h), update = g.rows(2 * h), fresh = g.rows(2 * h), hidden = g.rows(2 * h), state = g.rows(2 * h);
  }

  // Weights in PyTorch's order: of each direction W [3 H, D], U [3 H, H], and both biases.
  const float* recurrent(int64_t way) const { return g.s.weights[4 * way + 1]; }
  const float* recurrent_bias(int64_t way) const { return g.s.weights[4 * way + 3]; }

  void forward(const float* n, float* y) {
    const auto rows = g.pointers(n, g.d);
    float* partial = g.arena.take((6 * h + kWide) * 3 * V);
    apply(g.s.first, rows.data(), g.lanes, partial, [&](int64_t o, int64_t p, vf a) { store(g.row(in, o) + p, a); });
    g.fill_ends(state, 2 * h, 0.0f);
    switch (h) {
      case 4: steps<4>(y); break;
      case 8: steps<8>(y); break;
      default: steps<0>(y);
    }
  }

  template <int fixed>
  void steps(float* y) {
    const int64_t n = fixed ? fixed : h;
    for (int64_t step = 0; step < g.longest; ++step) {
      for (int64_t way = 0; way < 2; ++way) {  // side by side, for the chains of dependent operations are long
        const int64_t p = (way ? g.longest - 1 - step : step) * V, before = way ? p + V : p - V;
        const float *weight = recurrent(way), *bias = recurrent_bias(way);
        for (int64_t i = 0; i < n; ++i) {
          vf gate[3];
          for (int64_t k = 0; k < 3; ++k) {
            gate[k] = set(bias[k * n + i]);
            for (int64_t j = 0; j < n; ++j) {
              gate[k] = fma(set(weight[(k * n + i) * n + j]), load(g.row(state, way * n + j) + before), gate[k]);
            }
          }
          const float* a = g.row(in, way * 3 * n + i) + p;
          const vf r = sigmoid(load(a) + gate[0]), z = sigmoid(load(a + n * g.pitch) + gate[1]);
          const vf fresh_one = tanh(fma(r, gate[2], load(a + 2 * n * g.pitch)));
          const int64_t unit = way * n + i;
          const vf old = load(g.row(state, unit) + before);
          // Zero beyond the end, so that the backward direction starts at the last element.
          const vf next = g.keep(fma(z, old - fresh_one, fresh_one), p);
          store(g.row(reset, unit) + p, r);
          store(g.row(update, unit) + p, z);
          store(g.row(fresh, unit) + p, fresh_one);
          store(g.row(hidden, unit) + p, gate[2]);
          store(g.row(state, unit) + p, next);
          store(g.row(y, unit) + p, next);
        }
      }
    }
  }

  // dn from dy (zero beyond the ends); parameters' gradients at `to`, in the order of the weights.
  void backward(const float* n, const float* dy, float* dn, float* to) {
    float *gates = g.rows(6 * h), *inner = g.rows(2 * h);  // of a, and of c
    switch (h) {
      case 4: steps_back<4>(dy, gates, inner); break;
      case 8: steps_back<8>(dy, gates, inner); break;
      default: steps_back<0>(dy, gates, inner);
    }
    float* partial = g.arena.take((g.d + kWide) * 3 * V);
    const auto d_gates = g.pointers(gates, 6 * h), x = g.pointers(n, g.d);
    apply(g.s.first_back, d_gates.data(), g.lanes, partial, [&](int64_t o, int64_t p, vf v) { store(g.row(dn, o) + p, v); });
    for (int64_t way = 0; way < 2; ++way) {
      const float* const* d_gate = d_gates.data() + way * 3 * h;
      std::vector<const float*> d_recurrent(d_gate, d_gate + 3 * h);
      for (int64_t i = 0; i < h; ++i) d_recurrent[2 * h + i] = g.row(inner, way * h + i);
      const auto before = g.pointers(g.row(state, way * h), h, way ? V : -V);
      float *weight = to, *recurrent = weight + 3 * h * g.d, *bias = recurrent + 3 * h * h, *inner_bias = bias + 3 * h;
      outer(d_gate, 3 * h, x.data(), g.d, g.lanes, [&](int64_t o, int64_t i, float v) { weight[o * g.d + i] += v; });
      outer(d_recurrent.data(), 3 * h, before.data(), h, g.lanes, [&](int64_t o, int64_t i, float v) { recurrent[o * h + i] += v; });
      add_sums(d_gate, 3 * h, g.lanes, bias);
      add_sums(d_recurrent.data(), 3 * h, g.lanes, inner_bias);
      to = inner_bias + 3 * h;
    }
  }

  template <int fixed>
  void steps_back(const float* dy, float* gates, float* inner) {
    const int64_t n = fixed ? fixed : h;
    float* carried = g.arena.take(2 * n * V);  // the gradient of the state that the next step back begins with
    std::fill_n(carried, 2 * n * V, 0.0f);
    for (int64_t step = g.longest - 1; step >= 0; --step) {
      for (int64_t way = 0; way < 2; ++way) {
        const int64_t p = (way ? g.longest - 1 - step : step) * V, before = way ? p + V : p - V;
        const float* weight = recurrent(way);
        float* carry = carried + way * n * V;
        for (int64_t i = 0; i < n; ++i) {
          const int64_t unit = way * n + i;
          const vf z = load(g.row(update, unit) + p), r = load(g.row(reset, unit) + p), c = load(g.row(hidden, unit) + p);
          const vf new_one = load(g.row(fresh, unit) + p), old = load(g.row(state, unit) + before);
          const vf dh = g.keep(load(g.row(dy, unit) + p) + load(carry + i * V), p);
          const vf d_fresh = dh * (1.0f - z) * (1.0f - new_one * new_one);
          const vf d_update = dh * (old - new_one) * z * (1.0f - z);
          float* a = g.row(gates, way * 3 * n + i) + p;
          store(a, d_fresh * c * r * (1.0f - r));
          store(a + n * g.pitch, d_update);
          store(a + 2 * n * g.pitch, d_fresh);
          store(g.row(inner, unit) + p, d_fresh * r);
          store(carry + i * V, dh * z);
        }
        for (int64_t j = 0; j < n; ++j) {
          vf sum = load(carry + j * V);
          for (int64_t i = 0; i < n; ++i) {
            const float* a = g.row(gates, way * 3 * n + i) + p;
            sum = fma(set(weight[i * n + j]), load(a), sum);
            sum = fma(set(weight[(n + i) * n + j]), load(a + n * g.pitch), sum);
            sum = fma(set(weight[(2 * n + i) * n + j]), load(g.row(inner, way * n + i) + p), sum);
          }
          store(carry + j * V, sum);
        }
      }
    }
  }
};
