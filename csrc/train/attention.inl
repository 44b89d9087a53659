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

  template <int fixed>
  void head_forward(int64_t head) {
    const int64_t w = fixed ? fixed : width, start = head * w;
    const float *q = g.row(qkv, start), *k = g.row(qkv, g.d + start), *v = g.row(qkv, 2 * g.d + start);
    float *m = g.row(shift, head), *inv = g.row(inverse, head), *out = g.row(mixed, start);
    const bool safe = bounded(q, k, w);
    const float lowest = -std::numeric_limits<float>::infinity();
    for (int64_t p = 0; p < g.lanes; p += V) {
      vf most = {};
      if (!safe) {
        most = set(lowest);
        for (int64_t t = 0; t < g.lanes; t += V) most = larger(g.keep(score(q, k, w, p, t), t, lowest), most);
        most = g.keep(most, 0);  // lanes without elements have no largest
      }
      constexpr int kHeld = fixed ? fixed : 1;
      vf mean[kHeld] = {}, sum = {};
      for (int64_t i = 0; !fixed && i < w; ++i) store(out + i * g.pitch + p, vf{});
      for (int64_t t = 0; t < g.lanes; t += V) {
        const vf e = g.keep(exp2(score(q, k, w, p, t) - most), t);
        sum += e;
        for (int64_t i = 0; i < w; ++i) {
          if constexpr (fixed != 0) {
            mean[i] = fma(e, load(v + i * g.pitch + t), mean[i]);
          } else {
            float* to = out + i * g.pitch + p;
            store(to, fma(e, load(v + i * g.pitch + t), load(to)));
          }
        }
      }
      const vf one = 1.0f / g.keep(sum, 0, 1.0f);
      store(m + p, most);
      store(inv + p, one);
      for (int64_t i = 0; i < w; ++i) {
        float* to = out + i * g.pitch + p;
        store(to, g.keep((fixed ? mean[fixed ? i : 0] : load(to)) * one, p));
      }
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

  vf score(const float* q, const float* k, int64_t w, int64_t p, int64_t t) const {
    vf sum = {};
    for (int64_t i = 0; i < w; ++i) sum = fma(load(q + i * g.pitch + p), load(k + i * g.pitch + t), sum);
    return sum;
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

  // With p the weights, O the head's output: dv = Σ p dO, ds = p (dO · v - dO · O), dq = Σ ds k, dk = Σ ds q.
  template <int fixed>
  void head_backward(int64_t head, const float* d_mixed, float* d_qkv) {
    const int64_t w = fixed ? fixed : width, start = head * w;
    const float *q = g.row(qkv, start), *k = g.row(qkv, g.d + start), *v = g.row(qkv, 2 * g.d + start);
    const float *m = g.row(shift, head), *inv = g.row(inverse, head), *out = g.row(mixed, start);
    const float* d_out = d_mixed + start * g.pitch;
    float *dq = g.row(d_qkv, start), *dk = g.row(d_qkv, g.d + start), *dv = g.row(d_qkv, 2 * g.d + start);
    for (int64_t p = 0; p < g.lanes; p += V) {
      vf delta = {};
      for (int64_t i = 0; i < w; ++i) delta = fma(load(d_out + i * g.pitch + p), load(out + i * g.pitch + p), delta);
      const vf most = load(m + p), one = load(inv + p);
      constexpr int kHeld = fixed ? fixed : 1;
      vf sum[kHeld] = {};
      for (int64_t i = 0; !fixed && i < w; ++i) store(dq + i * g.pitch + p, vf{});
      for (int64_t t = 0; t < g.lanes; t += V) {
        // Of queries beyond the end nothing is known, so they are left out here as keys are.
        const vf weight = g.keep(g.keep(exp2(score(q, k, w, p, t) - most), t) * one, p);
        const vf ds = weight * (score(d_out, v, w, p, t) - delta);
        const vf ds_q = ds * kLn2;  // for the queries carry log2 e
        for (int64_t i = 0; i < w; ++i) {
          const int64_t at = i * g.pitch;
          if constexpr (fixed != 0) {
            sum[i] = fma(ds, load(k + at + t), sum[i]);
          } else {
            store(dq + at + p, fma(ds, load(k + at + t), load(dq + at + p)));
          }
          store(dk + at + t, fma(ds_q, load(q + at + p), load(dk + at + t)));
          store(dv + at + t, fma(weight, load(d_out + at + p), load(dv + at + t)));
        }
      }
      for (int64_t i = 0; i < w; ++i) {
        float* to = dq + i * g.pitch + p;
        store(to, (fixed ? sum[fixed ? i : 0] : load(to)) * scale);
      }
    }
  }
};
