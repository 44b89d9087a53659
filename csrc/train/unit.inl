// DIN's local activation unit with its first layer folded. Included once for each instruction set.
//
// Its weights depend on the target, so that each lane has a matrix of its own: M = own + product · t and
// b + T t; then a = w PReLU(M x + b) + c for every element.

// then(r, p, Σ_i matrix[r][i] x[i][p] + start[r]) of all rows and lanes; matrix [rows][inputs][V], start [rows][V] or null.
template <int count, int vectors, typename Then>
inline void multiply_lanes(const Group& g, const float* matrix, const float* start, int64_t inputs, const float* x,
                           int64_t first, int64_t p, Then then) {
  vf sum[count][vectors];
  for (int r = 0; r < count; ++r) {
    for (int v = 0; v < vectors; ++v) sum[r][v] = start ? load(start + (first + r) * V) : vf{};
  }
  for (int64_t i = 0; i < inputs; ++i) {
    vf in[vectors];
    for (int v = 0; v < vectors; ++v) in[v] = load(x + i * g.pitch + p + v * V);
    for (int r = 0; r < count; ++r) {
      const vf w = load(matrix + ((first + r) * inputs + i) * V);
      for (int v = 0; v < vectors; ++v) sum[r][v] = fma(w, in[v], sum[r][v]);
    }
  }
  for (int r = 0; r < count; ++r) {
    for (int v = 0; v < vectors; ++v) then(first + r, p + v * V, sum[r][v]);
  }
}

template <typename Then>
inline void multiply_lanes(const Group& g, const float* matrix, const float* start, int64_t rows, int64_t inputs,
                           const float* x, Then then) {
  constexpr int kRows = 4, kVectors = V == 16 ? 4 : 2;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    int64_t p = 0;
    for (; p + kVectors * V <= g.lanes; p += kVectors * V) {
      multiply_lanes<kRows, kVectors>(g, matrix, start, inputs, x, r, p, then);
    }
    for (; p < g.lanes; p += V) multiply_lanes<kRows, 1>(g, matrix, start, inputs, x, r, p, then);
  }
  for (; r < rows; ++r) {
    for (int64_t p = 0; p < g.lanes; p += V) multiply_lanes<1, 1>(g, matrix, start, inputs, x, r, p, then);
  }
}

struct Activation {
  Group& g;
  const Unit& u;
  float *target, *matrix, *start, *before, *attention;  // [D][V], [hidden][D][V], [hidden][V], rows, a row

  Activation(Group& group) : g(group), u(group.s.unit) {
    target = g.arena.take(g.d * V);
    matrix = g.arena.take(u.hidden * g.d * V), start = g.arena.take(u.hidden * V);
    before = g.rows(u.hidden), attention = g.rows(1);
    g.gather_samples(g.s.target, g.d, 0, target);
    for (int64_t o = 0; o < u.hidden; ++o) {
      vf bias = set(u.bias[o]);
      for (int64_t i = 0; i < g.d; ++i) {
        const int64_t at = o * g.d + i;
        const vf t = load(target + i * V);
        bias = fma(set(u.target[at]), t, bias);
        store(matrix + at * V, fma(set(u.product[at]), t, set(u.own[at])));
      }
      store(start + o * V, bias);
    }
  }

  static vf prelu(vf x, float slope) { return x > 0.0f ? x : slope * x; }

  void forward(const float* x) {
    multiply_lanes(g, matrix, start, u.hidden, g.d, x, [&](int64_t o, int64_t p, vf v) { store(g.row(before, o) + p, v); });
    for (int64_t p = 0; p < g.lanes; p += V) {
      vf a = set(u.out_bias);
      for (int64_t o = 0; o < u.hidden; ++o) a = fma(set(u.out[o]), prelu(load(g.row(before, o) + p), u.slope), a);
      store(attention + p, a);
    }
  }

  // Adds to dx what flows back from d_attention (a row, zero beyond the ends), gives the target's gradient [D][V], and
  // adds those of the five tensors at `to`. Overwrites `before`.
  void backward(const float* x, const float* d_attention, float* dx, float* d_target, float* to) {
    float *weight = to, *bias = weight + u.hidden * 4 * g.d, *slope = bias + u.hidden, *out = slope + 1, *out_bias = out + u.hidden;
    vf d_slope = {}, d_out_bias = {};
    for (int64_t p = 0; p < g.lanes; p += V) d_out_bias += load(d_attention + p);
    float* d_start = g.arena.take(u.hidden * V);
    for (int64_t o = 0; o < u.hidden; ++o) {
      float* row = g.row(before, o);
      const vf w = set(u.out[o]);
      vf d_out = {}, d_bias = {}, d_slope_one = {};
      for (int64_t p = 0; p < g.lanes; p += V) {
        const vf h = load(row + p), da = load(d_attention + p), dh = da * w;
        d_out = fma(da, prelu(h, u.slope), d_out);
        d_slope_one = fma(dh, h > 0.0f ? vf{} : h, d_slope_one);
        const vf inner = h > 0.0f ? dh : dh * u.slope;
        d_bias += inner;
        store(row + p, inner);
      }
      d_slope += d_slope_one;
      store(d_start + o * V, d_bias);
      const Four found = totals(d_out, d_bias, vf{}, vf{});
      out[o] += found[0];
      bias[o] += found[1];
    }
    const Four found = totals(d_slope, d_out_bias, vf{}, vf{});
    *slope += found[0];
    *out_bias += found[1];

    float* turned = g.arena.take(u.hidden * g.d * V);  // [D][hidden][V]
    for (int64_t o = 0; o < u.hidden; ++o) {
      for (int64_t i = 0; i < g.d; ++i) store(turned + (i * u.hidden + o) * V, load(matrix + (o * g.d + i) * V));
    }
    multiply_lanes(g, turned, nullptr, g.d, u.hidden, before, [&](int64_t i, int64_t p, vf v) {
      float* at = g.row(dx, i) + p;
      store(at, load(at) + v);
    });

    for (int64_t i = 0; i < g.d; ++i) store(d_target + i * V, vf{});
    for (int64_t o = 0; o < u.hidden; o += kOuter) {
      for (int64_t i = 0; i < g.d; i += kInner) matrix_gradient(x, o, i, d_start, d_target, weight);
    }
  }

 private:
  // Of kOuter x kInner numbers of the lanes' matrices: their gradients, and from these what they are made of.
  void matrix_gradient(const float* x, int64_t o, int64_t i, const float* d_start, float* d_target, float* weight) const {
    const float *from[kOuter], *with[kInner];
    for (int j = 0; j < kOuter; ++j) from[j] = g.row(before, std::min(o + j, u.hidden - 1));
    for (int j = 0; j < kInner; ++j) with[j] = x + std::min(i + j, g.d - 1) * g.pitch;
    vf sum[kOuter][kInner] = {};
    for (int64_t p = 0; p < g.lanes; p += V) {
      vf in[kInner];
      for (int j = 0; j < kInner; ++j) in[j] = load(with[j] + p);
      for (int k = 0; k < kOuter; ++k) {
        const vf dh = load(from[k] + p);
        for (int j = 0; j < kInner; ++j) sum[k][j] = fma(dh, in[j], sum[k][j]);
      }
    }
    for (int j = 0; j < kInner && i + j < g.d; ++j) {
      const vf t = load(target + (i + j) * V);
      vf dt = load(d_target + (i + j) * V);
      for (int k = 0; k < kOuter && o + k < u.hidden; ++k) {
        const int64_t at = (o + k) * g.d + i + j;
        const vf d_bias = load(d_start + (o + k) * V);
        dt = fma(set(u.product[at]), sum[k][j], dt);
        dt = fma(set(u.target[at]), d_bias, dt);
        const Four found = totals(sum[k][j], sum[k][j] * t, d_bias * t, vf{});
        float* w = weight + (o + k) * 4 * g.d + i + j;  // [x, t, x - t, x * t]
        w[0] += found[0];
        w[g.d] += found[2];
        w[2 * g.d] += found[0] - found[2];
        w[3 * g.d] += found[1];
      }
      store(d_target + (i + j) * V, dt);
    }
  }
};
