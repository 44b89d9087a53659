// Self-attention. Included once for each instruction set.
//
// No scores are stored: the forward pass leaves of each query the largest score (where it must be subtracted) and the
// inverse of the sum of exponentials, and the backward pass computes each weight again from them.
struct Attention {
  Group& g;
  const int64_t heads, width;  // of a head
  const float scale;           // 1 / √width
  float *qkv, *mixed, *shift, *inverse;  // 3 D rows, D rows, a row a head

  static constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

  explicit Attention(Group& group)
      : g(group), heads(group.s.heads), width(group.d / heads), scale(1.0f / std::sqrt(static_cast<float>(width))) {
    qkv = g.rows(3 * g.d), mixed = g.rows(g.d), shift = g.rows(heads), inverse = g.rows(heads);
  }

  template <typename Run>
  void each_head(Run run) {
    for (int64_t head = 0; head < heads; ++head) {
      switch (width) {
        case 2: run.template operator()<2>(head); break;
        case 4: run.template operator()<4>(head); break;
        case 8: run.template operator()<8>(head); break;
        default: run.template operator()<0>(head);
      }
    }
  }

  void forward(const float* n, float* y) {
    const auto rows = g.pointers(n, g.d);
    float* partial = g.arena.take((3 * g.d + kWide) * 3 * V);
    // Scores are powers of two, for those cost least: the queries carry the factor.
    apply(g.s.first, rows.data(), g.lanes, partial, [&](int64_t o, int64_t p, vf v) {
      store(g.row(qkv, o) + p, o < g.d ? v * (scale * kLog2e) : v);
    });
    each_head([&]<int fixed>(int64_t head) { head_forward<fixed>(head); });
    const auto mixed_rows = g.pointers(mixed, g.d);
    apply(g.s.second, mixed_rows.data(), g.lanes, partial, [&](int64_t o, int64_t p, vf v) { store(g.row(y, o) + p, v); });
  }

  // Queries at a time, so that keys and values are read once for all of them; their sums stay in registers.
  template <int fixed>
  static constexpr int queries = fixed == 0 ? 1 : V == 16 ? (fixed == 8 ? 2 : 4) : 2;

  template <int fixed>
  void head_forward(int64_t head) {
    const int64_t start = head * (fixed ? fixed : width);
    const bool safe = bounded(g.row(qkv, start), g.row(qkv, g.d + start), fixed ? fixed : width);
    constexpr int64_t step = queries<fixed> * V;
    int64_t p = 0;
    for (; p + step <= g.lanes; p += step) attend<fixed, queries<fixed>>(head, p, safe);
    for (; p < g.lanes; p += V) attend<fixed, 1>(head, p, safe);
  }

  template <int fixed, int count>
  void attend(int64_t head, int64_t p, bool safe) {
    constexpr int kHeld = fixed ? fixed : 1;
    const int64_t w = fixed ? fixed : width, start = head * w;
    const float *q = g.row(qkv, start) + p, *k = g.row(qkv, g.d + start), *v = g.row(qkv, 2 * g.d + start);
    float* out = g.row(mixed, start) + p;
    vf mean[count][kHeld] = {}, sum[count] = {}, most[count] = {};
    if (!safe) {
      const float lowest = -std::numeric_limits<float>::infinity();
      for (int j = 0; j < count; ++j) most[j] = set(lowest);
      for (int64_t t = 0; t < g.lanes; t += V) {
        vf s[count];
        scores<count>(q, k + t, w, s);
        for (int j = 0; j < count; ++j) most[j] = larger(g.keep(s[j], t, lowest), most[j]);
      }
      for (int j = 0; j < count; ++j) most[j] = g.keep(most[j], 0);  // lanes without elements have no largest
    }
    for (int64_t i = 0; !fixed && i < w; ++i) {
      for (int j = 0; j < count; ++j) store(out + i * g.pitch + j * V, vf{});
    }
    for (int64_t t = 0; t < g.lanes; t += V) {
      vf e[count];
      scores<count>(q, k + t, w, e);
      for (int j = 0; j < count; ++j) {
        e[j] = g.keep(exp2(e[j] - most[j]), t);
        sum[j] += e[j];
      }
      for (int64_t i = 0; i < w; ++i) {
        const vf one = load(v + i * g.pitch + t);
        for (int j = 0; j < count; ++j) {
          if constexpr (fixed != 0) {
            mean[j][i] = fma(e[j], one, mean[j][i]);
          } else {
            float* to = out + i * g.pitch + j * V;
            store(to, fma(e[j], one, load(to)));
          }
        }
      }
    }
    for (int j = 0; j < count; ++j) {
      const vf one = 1.0f / g.keep(sum[j], 0, 1.0f);
      store(g.row(shift, head) + p + j * V, most[j]);
      store(g.row(inverse, head) + p + j * V, one);
      for (int64_t i = 0; i < w; ++i) {
        float* to = out + i * g.pitch + j * V;
        store(to, g.keep((fixed ? mean[j][fixed ? i : 0] : load(to)) * one, p + j * V));
      }
    }
  }

  // Of some queries' rows with one vector of keys' rows.
  template <int count>
  void scores(const float* q, const float* k, int64_t w, vf* sum) const {
    for (int j = 0; j < count; ++j) sum[j] = vf{};
    for (int64_t i = 0; i < w; ++i) {
      const vf one = load(k + i * g.pitch);
      for (int j = 0; j < count; ++j) sum[j] = fma(load(q + i * g.pitch + j * V), one, sum[j]);
    }
  }

  // Whether no score can be so large that its power overflows.
  bool bounded(const float* q, const float* k, int64_t w) const {
    vf bound = {};
    for (int64_t i = 0; i < w; ++i) {
      vf most_q = {}, most_k = {};
      for (int64_t p = 0; p < g.lanes; p += V) {
        most_q = larger(g.keep(abs(load(q + i * g.pitch + p)), p), most_q);
        most_k = larger(g.keep(abs(load(k + i * g.pitch + p)), p), most_k);
      }
      bound = fma(most_q, most_k, bound);
    }
    for (int lane = 0; lane < V; ++lane) {
      if (!(bound[lane] < 60.0f)) return false;
    }
    return true;
  }

  void backward(const float* n, const float* dy, float* dn, float* to) {
    float *d_mixed = g.rows(g.d), *d_qkv = g.rows(3 * g.d);
    float* partial = g.arena.take((3 * g.d + kWide) * 3 * V);
    const auto dys = g.pointers(dy, g.d), x = g.pointers(n, g.d), o = g.pointers(mixed, g.d), d_rows = g.pointers(d_qkv, 3 * g.d);
    apply(g.s.second_back, dys.data(), g.lanes, partial, [&](int64_t i, int64_t p, vf v) { store(g.row(d_mixed, i) + p, v); });
    g.clear(g.row(d_qkv, g.d), 2 * g.d);
    each_head([&]<int fixed>(int64_t head) { head_backward<fixed>(head, d_mixed, d_qkv); });
    apply(g.s.first_back, d_rows.data(), g.lanes, partial, [&](int64_t i, int64_t p, vf v) { store(g.row(dn, i) + p, v); });
    float *weight = to, *bias = weight + 3 * g.d * g.d, *out_weight = bias + 3 * g.d, *out_bias = out_weight + g.d * g.d;
    outer(d_rows.data(), 3 * g.d, x.data(), g.d, g.lanes, [&](int64_t r, int64_t i, float v) { weight[r * g.d + i] += v; });
    add_sums(d_rows.data(), 3 * g.d, g.lanes, bias);
    outer(dys.data(), g.d, o.data(), g.d, g.lanes, [&](int64_t r, int64_t i, float v) { out_weight[r * g.d + i] += v; });
    add_sums(dys.data(), g.d, g.lanes, out_bias);
  }

  template <int fixed>
  void head_backward(int64_t head, const float* d_mixed, float* d_qkv) {
    constexpr int64_t step = queries<fixed> * V;
    int64_t p = 0;
    for (; p + step <= g.lanes; p += step) attend_back<fixed, queries<fixed>>(head, p, d_mixed, d_qkv);
    for (; p < g.lanes; p += V) attend_back<fixed, 1>(head, p, d_mixed, d_qkv);
  }

  // With p the weights, O the head's output: dv = Σ p dO, ds = p (dO · v - dO · O), dq = Σ ds k, dk = Σ ds q.
  template <int fixed, int count>
  void attend_back(int64_t head, int64_t p, const float* d_mixed, float* d_qkv) {
    constexpr int kHeld = fixed ? fixed : 1;
    const int64_t w = fixed ? fixed : width, start = head * w;
    const float *q = g.row(qkv, start) + p, *k = g.row(qkv, g.d + start), *v = g.row(qkv, 2 * g.d + start);
    const float *out = g.row(mixed, start) + p, *d_out = g.row(d_mixed, start) + p;
    float *dq = g.row(d_qkv, start) + p, *dk = g.row(d_qkv, g.d + start), *dv = g.row(d_qkv, 2 * g.d + start);
    vf delta[count] = {}, most[count], one[count], sum[count][kHeld] = {};
    for (int j = 0; j < count; ++j) {
      for (int64_t i = 0; i < w; ++i) {
        const int64_t at = i * g.pitch + j * V;
        delta[j] = fma(load(d_out + at), load(out + at), delta[j]);
        if (!fixed) store(dq + at, vf{});
      }
      most[j] = load(g.row(shift, head) + p + j * V), one[j] = load(g.row(inverse, head) + p + j * V);
    }
    for (int64_t t = 0; t < g.lanes; t += V) {
      vf weight[count], ds[count];
      scores<count>(q, k + t, w, weight);
      scores<count>(d_out, v + t, w, ds);
      for (int j = 0; j < count; ++j) {
        // Of queries beyond the end nothing is known, so they are left out here as keys are.
        weight[j] = g.keep(g.keep(exp2(weight[j] - most[j]), t) * one[j], p + j * V);
        ds[j] = weight[j] * (ds[j] - delta[j]);
      }
      for (int64_t i = 0; i < w; ++i) {
        const int64_t at = i * g.pitch;
        const vf key = load(k + at + t);
        vf to_key = {}, to_value = load(dv + at + t);
        for (int j = 0; j < count; ++j) {
          if constexpr (fixed != 0) {
            sum[j][i] = fma(ds[j], key, sum[j][i]);
          } else {
            store(dq + at + j * V, fma(ds[j], key, load(dq + at + j * V)));
          }
          to_key = fma(ds[j], load(q + at + j * V), to_key);
          to_value = fma(weight[j], load(d_out + at + j * V), to_value);
        }
        store(dk + at + t, fma(to_key, set(kLn2), load(dk + at + t)));  // for the queries carry log2 e
        store(dv + at + t, to_value);
      }
    }
    for (int j = 0; j < count; ++j) {
      for (int64_t i = 0; i < w; ++i) {
        float* to = dq + i * g.pitch + j * V;
        store(to, (fixed ? sum[j][fixed ? i : 0] : load(to)) * scale);
      }
    }
  }
};
