  // A part of class Histories: self-attention.

  void attend(int64_t heads) {
    const int64_t width = d() / heads;
    for (int64_t head = 0; head < heads; ++head) {
      switch (width) {
        case 2: attend_head<2, V == 16 ? 4 : 2>(head, width); break;
        case 4: attend_head<4, V == 16 ? 3 : 1>(head, width); break;
        case 8: attend_head<8, 1>(head, width); break;
        default: attend_head<0, 1>(head, width);
      }
    }
  }

  // The largest |x| over a sample's elements, in its lane.
  vf largest(const float* x) const {
    vf most = {};
    for (int64_t p = 0; p < group_.lanes; p += V) most = larger(keep(abs(load(x + p)), p), most);
    if constexpr (alone) {
      float one = most[0];
      for (int lane = 1; lane < V; ++lane) one = most[lane] > one ? most[lane] : one;
      return set(one);
    }
    return most;
  }

  // Scores are powers of two, for those cost least. Where no score of a sample can exceed kSafe they are taken as they
  // are; otherwise less the largest one of their query, as softmax must.
  template <int fixed, int queries>
  void attend_head(int64_t head, int64_t dynamic) {
    constexpr float kSafe = 60.0f;
    const int64_t width = fixed ? fixed : dynamic, start = head * width, vectors = group_.lanes / V;
    const float scale = 1.44269504f / std::sqrt(static_cast<float>(width));
    vf bound = {};
    for (int64_t i = 0; i < width; ++i) {
      bound = fma(largest(row(at_.gates, start + i)) * scale, largest(row(at_.gates, d() + start + i)), bound);
    }
    const vi safe = bound < kSafe;
    bool all = true;
    for (int lane = 0; lane < V; ++lane) all &= safe[lane] != 0;
    for (int64_t i = 0; i < width; ++i) {
      float* q = row(at_.gates, start + i);
      for (int64_t p = 0; p < group_.lanes; p += V) store(q + p, load(q + p) * scale);
    }
    int64_t first = 0;
    for (; first + queries <= vectors; first += queries) attend_queries<fixed, queries>(start, width, first * V, safe, all);
    for (; first < vectors; ++first) attend_queries<fixed, 1>(start, width, first * V, safe, all);
  }

  vf key(const float* x, int64_t t) const { return alone ? set(x[t]) : load(x + t * V); }

  // Some vectors of queries with all keys, and the mean of the values.
  template <int fixed, int queries>
  void attend_queries(int64_t start, int64_t dynamic, int64_t p, vi safe, bool all) {
    constexpr int kHeld = fixed ? fixed : 1;  // queries and means that stay in registers
    const int64_t width = fixed ? fixed : dynamic, pitch = at_.pitch;
    const float *q = row(at_.gates, start) + p, *k = row(at_.gates, d() + start), *v = row(at_.gates, 2 * d() + start);
    float* out = row(at_.mixed, start) + p;
    vf held[queries][kHeld], mean[queries][kHeld], sum[queries] = {}, shift[queries] = {};
    auto query = [&](int j, int64_t i) { return fixed ? held[j][i] : load(q + i * pitch + j * V); };
    for (int j = 0; j < queries; ++j) {
      for (int64_t i = 0; i < width; ++i) {
        if constexpr (fixed != 0) {
          held[j][i] = load(q + i * pitch + j * V);
          mean[j][i] = vf{};
        } else {
          store(out + i * pitch + j * V, vf{});
        }
      }
    }
    auto scores = [&](int64_t t, vf* score) {
      for (int j = 0; j < queries; ++j) score[j] = vf{};
      for (int64_t i = 0; i < width; ++i) {
        const vf one = key(k + i * pitch, t);
        for (int j = 0; j < queries; ++j) score[j] = fma(query(j, i), one, score[j]);
      }
    };
    if (!all) {
      for (int j = 0; j < queries; ++j) shift[j] = set(-std::numeric_limits<float>::infinity());
      for (int64_t t = 0; t < group_.longest; ++t) {
        vf score[queries];
        scores(t, score);
        for (int j = 0; j < queries; ++j) {
          if (!alone) score[j] = keep(score[j], t * V, -std::numeric_limits<float>::infinity());
          shift[j] = larger(score[j], shift[j]);
        }
      }
      for (int j = 0; j < queries; ++j) shift[j] = safe ? vf{} : shift[j];
    }
    for (int64_t t = 0; t < group_.longest; ++t) {
      vf e[queries];
      scores(t, e);
      for (int j = 0; j < queries; ++j) {
        e[j] = exp2(e[j] - shift[j]);
        if (!alone) e[j] = keep(e[j], t * V);
        sum[j] += e[j];
      }
      for (int64_t i = 0; i < width; ++i) {
        const vf one = key(v + i * pitch, t);
        for (int j = 0; j < queries; ++j) {
          if constexpr (fixed != 0) {
            mean[j][i] = fma(e[j], one, mean[j][i]);
          } else {
            float* to = out + i * pitch + j * V;
            store(to, fma(e[j], one, load(to)));
          }
        }
      }
    }
    for (int j = 0; j < queries; ++j) {
      sum[j] = 1.0f / sum[j];
      for (int64_t i = 0; i < width; ++i) {
        float* to = out + i * pitch + j * V;
        store(to, (fixed ? mean[j][fixed ? i : 0] : load(to)) * sum[j]);
      }
    }
  }
