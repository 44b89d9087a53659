  // A part of class Histories: DIN's local activation unit.

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
