// A block, Act(Layer(Norm(H))) + H, and the pools. Included once for each instruction set.

// The layer norm's inputs and outputs.
struct Normed {
  Group& g;
  float *x, *n, *mean = nullptr, *scale = nullptr;

  explicit Normed(Group& group) : g(group) {
    const Sequences& s = g.s;
    const float outside = s.layer == Layer::max_pool ? -std::numeric_limits<float>::infinity() : 0.0f;
    x = n = g.rows(g.d);
    g.gather(s.x, x);
    if (s.gain) {
      n = g.rows(g.d), mean = g.rows(1), scale = g.rows(1);
      const float inverse = 1.0f / static_cast<float>(g.d);
      for (int64_t p = 0; p < g.lanes; p += V) {
        vf m = {}, variance = {};
        for (int64_t i = 0; i < g.d; ++i) m += load(g.row(x, i) + p);
        m *= inverse;
        for (int64_t i = 0; i < g.d; ++i) {
          const vf away = load(g.row(x, i) + p) - m;
          variance = fma(away, away, variance);
        }
        const vf one = 1.0f / sqrt(fma(variance, set(inverse), set(1e-5f)));
        for (int64_t i = 0; i < g.d; ++i) {
          const vf away = load(g.row(x, i) + p) - m;
          store(g.row(n, i) + p, g.keep(fma(away * one, set(s.gain[i]), set(s.shift[i])), p, outside));
        }
        store(mean + p, m);
        store(scale + p, one);
      }
    } else if (outside != 0.0f) {
      n = g.rows(g.d);
      for (int64_t i = 0; i < g.d; ++i) {
        for (int64_t p = 0; p < g.lanes; p += V) store(g.row(n, i) + p, g.keep(load(g.row(x, i) + p), p, outside));
      }
    }
    g.fill_ends(n, g.d, outside);
  }

  // dx += what flows back from dn; the gradients of gain and shift are added at `to`.
  void backward(float* dn, float* dx, float* to) {
    if (!g.s.gain) {
      for (int64_t i = 0; i < g.d; ++i) {
        for (int64_t p = 0; p < g.lanes; p += V) store(g.row(dx, i) + p, load(g.row(dx, i) + p) + load(g.row(dn, i) + p));
      }
      return;
    }
    float* gained = g.rows(g.d);  // dn ⊙ x̂, whose sums are the gain's gradient
    const float inverse = 1.0f / static_cast<float>(g.d);
    for (int64_t p = 0; p < g.lanes; p += V) {
      const vf m = load(mean + p), one = load(scale + p);
      vf sum = {}, sum_hat = {};
      for (int64_t i = 0; i < g.d; ++i) {
        const vf hat = (load(g.row(x, i) + p) - m) * one, d = g.keep(load(g.row(dn, i) + p), p);
        const vf d_hat = d * g.s.gain[i];
        sum += d_hat;
        sum_hat = fma(d_hat, hat, sum_hat);
        store(g.row(dn, i) + p, d);
        store(g.row(gained, i) + p, d * hat);
      }
      sum *= inverse, sum_hat *= inverse;
      for (int64_t i = 0; i < g.d; ++i) {
        const vf hat = (load(g.row(x, i) + p) - m) * one, d_hat = load(g.row(dn, i) + p) * g.s.gain[i];
        float* at = g.row(dx, i) + p;
        store(at, fma(one, d_hat - sum - hat * sum_hat, load(at)));
      }
    }
    add_sums(g.pointers(gained, g.d).data(), g.d, g.lanes, to);
    add_sums(g.pointers(dn, g.d).data(), g.d, g.lanes, to + g.d);
  }
};

struct Convolution {
  Group& g;

  // Rows of all taps; `sign` turns them around.
  std::vector<const float*> taps(const float* base, int64_t sign) const {
    std::vector<const float*> found;
    for (int64_t tap = 0; tap < g.s.taps; ++tap) {
      const auto rows = g.pointers(base, g.d, sign * (tap * g.s.dilation - g.s.reach()) * V);
      found.insert(found.end(), rows.begin(), rows.end());
    }
    return found;
  }

  void forward(const float* n, float* y) {
    float* partial = g.arena.take((g.d + kWide) * 3 * V);
    apply(g.s.first, taps(n, 1).data(), g.lanes, partial, [&](int64_t o, int64_t p, vf v) { store(g.row(y, o) + p, v); });
  }

  void backward(const float* n, float* dy, float* dn, float* to) {
    g.fill_ends(dy, g.d, 0.0f);
    float* partial = g.arena.take((g.d + kWide) * 3 * V);
    apply(g.s.first_back, taps(dy, -1).data(), g.lanes, partial, [&](int64_t i, int64_t p, vf v) { store(g.row(dn, i) + p, v); });
    const auto dys = g.pointers(dy, g.d), x = taps(n, 1);
    outer(dys.data(), g.d, x.data(), g.s.taps * g.d, g.lanes, [&](int64_t o, int64_t at, float v) {
      to[(o * g.d + at % g.d) * g.s.taps + at / g.d] += v;
    });
    add_sums(dys.data(), g.d, g.lanes, to + g.d * g.d * g.s.taps);
  }
};

struct AveragePool {
  Group& g;

  vf count(int64_t p) const {
    return g.keep(load(g.mask + p - V) + load(g.mask + p) + load(g.mask + p + V), p, 1.0f);
  }

  void forward(const float* n, float* y) {
    for (int64_t p = 0; p < g.lanes; p += V) {
      const vf elements = count(p);
      for (int64_t i = 0; i < g.d; ++i) {
        const float* x = g.row(n, i) + p;
        store(g.row(y, i) + p, (load(x - V) + load(x) + load(x + V)) / elements);
      }
    }
  }

  void backward(const float*, float* dy, float* dn, float*) {
    g.fill_ends(dy, g.d, 0.0f);
    for (int64_t p = 0; p < g.lanes; p += V) {
      const vf elements = count(p);
      for (int64_t i = 0; i < g.d; ++i) store(g.row(dy, i) + p, load(g.row(dy, i) + p) / elements);
    }
    for (int64_t i = 0; i < g.d; ++i) {
      for (int64_t p = 0; p < g.lanes; p += V) {
        const float* x = g.row(dy, i) + p;
        store(g.row(dn, i) + p, load(x - V) + load(x) + load(x + V));
      }
    }
  }
};

struct MaxPool {
  Group& g;

  void forward(const float* n, float* y) {
    for (int64_t i = 0; i < g.d; ++i) {
      for (int64_t p = 0; p < g.lanes; p += V) {
        const float* x = n + i * g.pitch + p;
        const vf a = load(x - V), b = load(x), c = load(x + V), ab = a > b ? a : b;
        store(g.row(y, i) + p, ab > c ? ab : c);
      }
    }
  }

  // To the first of the largest, as PyTorch has it.
  void backward(const float* n, float* dy, float* dn, float*) {
    g.clear(dn, g.d);
    for (int64_t i = 0; i < g.d; ++i) {
      for (int64_t p = 0; p < g.lanes; p += V) {
        const float* x = n + i * g.pitch + p;
        float* to = g.row(dn, i) + p;
        const vf a = load(x - V), b = load(x), c = load(x + V), d = load(g.row(dy, i) + p);
        const vi first = (a >= b) & (a >= c), second = ~first & (b >= c);
        store(to - V, load(to - V) + (first ? d : vf{}));
        store(to, load(to) + (second ? d : vf{}));
        store(to + V, load(to + V) + (first | second ? vf{} : d));
      }
    }
  }
};

struct TargetAttention {
  Group& g;
  Activation unit;
  float* d_target;
  explicit TargetAttention(Group& group) : g(group), unit(group), d_target(group.arena.take(group.d * V)) {}

  void forward(const float* n, float* y) {
    unit.forward(n);
    for (int64_t p = 0; p < g.lanes; p += V) {
      const vf a = load(unit.attention + p);
      for (int64_t i = 0; i < g.d; ++i) store(g.row(y, i) + p, a * load(n + i * g.pitch + p));
    }
  }

  void backward(const float* n, float* dy, float* dn, float* to) {
    float* da = g.rows(1);
    for (int64_t p = 0; p < g.lanes; p += V) {
      const vf a = load(unit.attention + p);
      vf sum = {};
      for (int64_t i = 0; i < g.d; ++i) {
        const vf d = load(g.row(dy, i) + p);
        sum = fma(d, load(n + i * g.pitch + p), sum);
        store(g.row(dn, i) + p, a * d);
      }
      store(da + p, sum);
    }
    unit.backward(n, da, dn, d_target, to);
  }
};

template <typename Run>
inline void with_layer(Group& g, Run run) {
  switch (g.s.layer) {
    case Layer::conv: { Convolution one{g}; return run(one); }
    case Layer::avg_pool: { AveragePool one{g}; return run(one); }
    case Layer::max_pool: { MaxPool one{g}; return run(one); }
    case Layer::bi_gru: { Recurrent one(g); return run(one); }
    case Layer::self_attn: { Attention one(g); return run(one); }
    case Layer::target_attn: { TargetAttention one(g); return run(one); }
    case Layer::pool: return;
  }
}

inline void block_forward(Group& g, float* out) {
  if (!g.longest) return;
  Normed normed(g);
  float* y = g.rows(g.d);
  with_layer(g, [&](auto& layer) { layer.forward(normed.n, y); });
  float* to = g.s.acts.size() > 1 ? g.rows(g.d) : y;
  for (const Act one : g.s.acts) {
    by_act(one, [&]<Act act>() {
      for (int64_t i = 0; i < g.d; ++i) {
        for (int64_t p = 0; p < g.lanes; p += V) {
          store(g.row(to, i) + p, load(g.row(normed.x, i) + p) + activate<act>(load(g.row(y, i) + p)));
        }
      }
    });
    g.scatter(to, out);
    out += g.s.elements * g.d;
  }
}

inline void block_backward(Group& g, const float* grad, float* grad_x, float* grad_target, float* parameters) {
  if (!g.longest) {
    if (grad_target) {
      std::vector<float> none(g.d * V);
      g.scatter_samples(none.data(), grad_target, g.d, 0);
    }
    return;
  }
  Normed normed(g);
  float *y = g.rows(g.d), *dx = g.rows(g.d), *dn = g.rows(g.d);
  g.gather(grad, dx);
  with_layer(g, [&](auto& layer) {
    layer.forward(normed.n, y);
    by_act(g.s.act, [&]<Act act>() {  // dy in the place of y
      for (int64_t i = 0; i < g.d; ++i) {
        for (int64_t p = 0; p < g.lanes; p += V) {
          store(g.row(y, i) + p, g.keep(load(g.row(dx, i) + p) * slope<act>(load(g.row(y, i) + p)), p));
        }
      }
    });
    layer.backward(normed.n, y, dn, parameters + (g.s.gain ? 2 * g.d : 0));
    if constexpr (requires { layer.d_target; }) g.scatter_samples(layer.d_target, grad_target, g.d, 0);
  });
  normed.backward(dn, dx, parameters);
  g.scatter(dx, grad_x);
}

// [sum, last, attended by the target] of each sample.
inline void pool_forward(Group& g, float* out) {
  const int64_t columns = g.s.outputs();
  float* found = g.arena.take(3 * g.d * V);
  std::fill_n(found, 3 * g.d * V, 0.0f);
  if (g.longest) {
    float *x = g.rows(g.d), *sum = found, *last = sum + g.d * V, *attended = last + g.d * V;
    g.gather(g.s.x, x);
    float* attention = nullptr;
    if (g.s.has_target) {
      Activation unit(g);
      unit.forward(x);
      attention = unit.attention;
    }
    for (int64_t i = 0; i < g.d; ++i) {
      const float* h = g.row(x, i);
      vf total = {}, weighted = {}, end = {};
      for (int64_t p = 0; p < g.lanes; p += V) {
        const vf one = load(h + p);
        total += one;
        if (attention) weighted = fma(load(attention + p), one, weighted);
      }
      for (int lane = 0; lane < V; ++lane) {
        if (g.length[lane]) end[lane] = h[(g.length[lane] - 1) * V + lane];
      }
      store(sum + i * V, total);
      store(last + i * V, end);
      store(attended + i * V, weighted);
    }
  }
  for (int64_t part = 0; part * g.d < columns; ++part) {
    g.scatter_samples(found + part * g.d * V, out, columns, part * g.d);
  }
}

inline void pool_backward(Group& g, const float* grad, float* grad_x, float* grad_target, float* parameters) {
  const int64_t columns = g.s.outputs();
  float *d = g.arena.take(3 * g.d * V), *d_target = g.arena.take(g.d * V);
  std::fill_n(d_target, g.d * V, 0.0f);
  for (int64_t part = 0; part * g.d < columns; ++part) g.gather_samples(grad, columns, part * g.d, d + part * g.d * V);
  const float *d_sum = d, *d_last = d + g.d * V, *d_attended = d + 2 * g.d * V;
  if (g.longest) {
    float *x = g.rows(g.d), *dx = g.rows(g.d);
    g.gather(g.s.x, x);
    for (int64_t i = 0; i < g.d; ++i) {
      float* row = g.row(dx, i);
      for (int64_t p = 0; p < g.lanes; p += V) store(row + p, load(d_sum + i * V));
      for (int lane = 0; lane < V; ++lane) {
        if (g.length[lane]) row[(g.length[lane] - 1) * V + lane] += d_last[i * V + lane];
      }
    }
    if (g.s.has_target) {
      Activation unit(g);
      unit.forward(x);
      float* da = g.rows(1);
      for (int64_t p = 0; p < g.lanes; p += V) {
        const vf a = load(unit.attention + p);
        vf sum = {};
        for (int64_t i = 0; i < g.d; ++i) {
          const vf one = load(d_attended + i * V);
          float* at = g.row(dx, i) + p;
          sum = fma(one, load(g.row(x, i) + p), sum);
          store(at, fma(a, one, load(at)));
        }
        store(da + p, g.keep(sum, p));
      }
      unit.backward(x, da, dx, d_target, parameters);
    }
    g.scatter(dx, grad_x);
  }
  if (grad_target) g.scatter_samples(d_target, grad_target, g.d, 0);
}

Arena& arena() {
  thread_local Arena memory;
  return memory;
}

void forward(const Sequences& s, int64_t group, float* out) {
  Group g(s, group, arena());
  s.layer == Layer::pool ? pool_forward(g, out) : block_forward(g, out);
}

void backward(const Sequences& s, int64_t group, const float* grad, float* grad_x, float* grad_target, float* parameters) {
  Group g(s, group, arena());
  s.layer == Layer::pool ? pool_backward(g, grad, grad_x, grad_target, parameters)
                         : block_backward(g, grad, grad_x, grad_target, parameters);
}
