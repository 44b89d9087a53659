// Squeeze and excitation of a tile. Included once for each instruction set, inside its namespace.

struct ExciteTile {  // where a tile's numbers lie
  int64_t pitch, columns, hidden;  // floats of a row of q; of z and a; of s
  float *q, *z, *a, *s, *rest;

  ExciteTile(const Excite& at, float* scratch)
      : pitch(pitch_of(at.fields.columns())), columns(padded(at.columns)), hidden(padded(at.hidden)), q(scratch),
        z(q + kTile * pitch), a(z + kTile * columns), s(a + kTile * columns), rest(s + kTile * hidden) {}
};

// q, z = Q v, s = relu(W1 z), a = sigmoid(W2 s); `slope` a (1 - a) unless null.
template <typename Lanes>
void excite_tile(const Excite& at, int64_t begin, int64_t end, const ExciteTile& tile, float* slope) {
  const int64_t count = end - begin, k = at.fields.k;
  look_up<Lanes>(at.fields, begin, end, tile.q, tile.pitch);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = 0; c < at.columns; ++c) {
      tile.z[r * tile.columns + c] = dot<Lanes>(tile.q + r * tile.pitch + c * k, at.project, k);
    }
  }
  product({tile.z, tile.columns, 1}, count, {at.squeeze_t, 0}, at.columns, at.hidden, nullptr, false, tile.s,
          tile.hidden);
  for (int64_t r = 0; r < count; ++r) {
    float* s = tile.s + r * tile.hidden;
    activate(Act::relu, s, at.hidden, s);
  }
  product({tile.s, tile.hidden, 1}, count, {at.excite_t, 0}, at.hidden, at.columns, nullptr, false, tile.a,
          tile.columns);
  for (int64_t r = 0; r < count; ++r) {
    float* a = tile.a + r * tile.columns;
    for (int64_t c = 0; c < at.columns; c += V) {
      const vf x = load_part(a + c, std::min<int64_t>(V, at.columns - c)), share = sigmoid(x);
      store(a + c, share);
      if (slope) store(slope + r * tile.columns + c, share * sigmoid(-x));
    }
  }
}

template <typename Lanes>
void excite(const Excite& at, int64_t begin, int64_t end, float* scratch, float* out) {
  const ExciteTile tile(at, scratch);
  excite_tile<Lanes>(at, begin, end, tile, nullptr);
  const int64_t k = at.fields.k;
  for (int64_t r = 0; r < end - begin; ++r) {
    const float *q = tile.q + r * tile.pitch, *a = tile.a + r * tile.columns;
    for (int64_t i = 0; i < k; i += width_of<Lanes>) {
      Lanes sum = {};
      for (int64_t c = 0; c < at.columns; ++c) sum += a[c] * get<Lanes>(q + c * k + i);
      put<Lanes>(out + (begin + r) * k + i, sum);
    }
  }
}

void excite(const Excite& at, int64_t begin, int64_t end, float* scratch, float* out) {
  by_lanes(at.fields.k, [&]<typename Lanes>() { excite<Lanes>(at, begin, end, scratch, out); });
}

template <typename Lanes>
void excite_back(const Excite& at, int64_t begin, int64_t end, const float* grad, bool add, float* scratch,
                 const ExciteGradients& to) {
  const ExciteTile tile(at, scratch);
  const int64_t k = at.fields.k, count = end - begin;
  float* d = tile.rest;               // of q
  float* u = d + kTile * tile.pitch;  // of the excitation before the sigmoid, then of z
  float* ds = u + kTile * tile.columns;
  float* project = ds + kTile * tile.hidden;
  float* lefts = project + padded(k);
  excite_tile<Lanes>(at, begin, end, tile, u);
  grad += begin * k;
  for (int64_t r = 0; r < count; ++r) {
    const float* q = tile.q + r * tile.pitch;
    for (int64_t c = 0; c < at.columns; ++c) u[r * tile.columns + c] *= dot<Lanes>(q + c * k, grad + r * k, k);
  }
  product({u, 1, tile.columns}, at.columns, {tile.s, tile.hidden}, count, at.hidden, nullptr, add, to.excite,
          at.hidden);
  product({u, tile.columns, 1}, count, {at.excite, 0}, at.columns, at.hidden, nullptr, false, ds, tile.hidden);
  for (int64_t r = 0; r < count; ++r) {  // where s is 0, what relu took was not above 0
    activate_back(Act::relu, tile.s + r * tile.hidden, ds + r * tile.hidden, at.hidden, ds + r * tile.hidden);
  }
  product({ds, 1, tile.hidden}, at.hidden, {tile.z, tile.columns}, count, at.columns, nullptr, add, to.squeeze,
          at.columns);
  product({ds, tile.hidden, 1}, count, {at.squeeze, 0}, at.hidden, at.columns, nullptr, false, u, tile.columns);
  std::fill(project, project + k, 0.0f);
  for (int64_t r = 0; r < count; ++r) {
    const float *q = tile.q + r * tile.pitch, *a = tile.a + r * tile.columns, *dz = u + r * tile.columns;
    for (int64_t i = 0; i < k; i += width_of<Lanes>) {
      const Lanes g = get<Lanes>(grad + r * k + i), v = get<Lanes>(at.project + i);
      Lanes sum = {};
      for (int64_t c = 0; c < at.columns; ++c) {
        sum += dz[c] * get<Lanes>(q + c * k + i);
        put<Lanes>(d + r * tile.pitch + c * k + i, a[c] * g + dz[c] * v);
      }
      accumulate<Lanes>(project + i, sum);
    }
  }
  for (int64_t i = 0; i < k; ++i) to.project[i] = add ? to.project[i] + project[i] : project[i];
  look_up_back<Lanes>(at.fields, begin, end, tile.q, d, tile.pitch, lefts, to.fields);
}

void excite_back(const Excite& at, int64_t begin, int64_t end, const float* grad, bool add, float* scratch,
                 const ExciteGradients& to) {
  by_lanes(at.fields.k, [&]<typename Lanes>() { excite_back<Lanes>(at, begin, end, grad, add, scratch, to); });
}
