// Fields and their products, and the way back. Included once for each instruction set, inside its namespace. Lanes is a
// vector that divides K, or float.

typedef float Sixteen __attribute__((vector_size(64)));

template <typename Lanes>
inline Lanes get(const float* p) {
  Lanes x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <typename Lanes>
inline void put(float* p, Lanes x) { std::memcpy(p, &x, sizeof x); }
template <typename Lanes>
inline void accumulate(float* p, Lanes x) { put<Lanes>(p, get<Lanes>(p) + x); }

// visit<Lanes>() with the widest vector that divides K.
template <typename Visit>
inline void by_lanes(int64_t k, Visit visit) {
  if (k % 16 == 0) return visit.template operator()<Sixteen>();
  if (k % 8 == 0) return visit.template operator()<Eight>();
  if (k % 4 == 0) return visit.template operator()<Four>();
  visit.template operator()<float>();
}

template <typename Lanes>
constexpr int64_t width_of = sizeof(Lanes) / sizeof(float);

// The mean of a bag.
template <typename Lanes>
inline void look_up_bag(const Fields& at, int64_t bag, float* to) {
  const int64_t begin = at.bag_offsets[bag], end = at.bag_offsets[bag + 1];
  const float size = static_cast<float>(std::max<int64_t>(1, end - begin));
  for (int64_t i = 0; i < at.k; i += width_of<Lanes>) {
    Lanes sum = {};
    for (int64_t e = begin; e < end; ++e) sum += get<Lanes>(at.embedding + at.bag_rows[e] * at.stride + i);
    put<Lanes>(to + i, sum / size);
  }
}

// Fields and products of samples begin to end, a row of `pitch` floats for each.
template <typename Lanes>
void look_up(const Fields& at, int64_t begin, int64_t end, float* q, int64_t pitch) {
  constexpr int64_t ahead = 4;  // samples whose embeddings are on their way
  const int64_t k = at.k, ids = at.fields * (end - begin);
  const int64_t* row = at.rows + begin * at.fields;
  for (int64_t s = begin; s < end; ++s, q += pitch, row += at.fields) {
    const int64_t near = std::min((s - begin + ahead) * at.fields, ids);
    for (int64_t i = near; i < std::min(near + at.fields, ids); ++i) {
      __builtin_prefetch(at.embedding + at.rows[begin * at.fields + i] * at.stride);
    }
    for (int64_t f = 0; f < at.fields; ++f) {
      if (at.bags && at.bag_of[f] >= 0) {
        look_up_bag<Lanes>(at, s * at.bags + at.bag_of[f], q + f * k);
        continue;
      }
      const float* from = at.embedding + row[f] * at.stride;
      for (int64_t i = 0; i < k; i += width_of<Lanes>) put<Lanes>(q + f * k + i, get<Lanes>(from + i));
    }
    float* to = q + at.fields * k;
    const int64_t* factor = at.factors;
    for (int64_t m = 0; m < at.interactions; factor += at.orders[m], ++m, to += k) {
      for (int64_t i = 0; i < k; i += width_of<Lanes>) {
        Lanes p = get<Lanes>(q + factor[0] * k + i);
        for (int64_t j = 1; j < at.orders[m]; ++j) p *= get<Lanes>(q + factor[j] * k + i);
        put<Lanes>(to + i, p);
      }
    }
  }
}

void look_up(const Fields& at, int64_t begin, int64_t end, float* q, int64_t pitch) {
  by_lanes(at.k, [&]<typename Lanes>() { look_up<Lanes>(at, begin, end, q, pitch); });
}

// Gradients g of one product onto its factors' d, for the samples of a tile: each factor gets the product of the others,
// from the left and from the right. The usual orders are constants: all lies in registers.
template <typename Lanes, int64_t order>
void multiply_back(const int64_t* factor, int64_t k, int64_t samples, int64_t pitch, const float* g, const float* q, float* d) {
  int64_t at[order];
  for (int64_t j = 0; j < order; ++j) at[j] = factor[j] * k;
  for (int64_t s = 0; s < samples; ++s, g += pitch, q += pitch, d += pitch) {
    for (int64_t i = 0; i < k; i += width_of<Lanes>) {
      Lanes left[order], x[order];
      left[0] = get<Lanes>(g + i);
      for (int64_t j = 0; j < order; ++j) {
        x[j] = get<Lanes>(q + at[j] + i);
        if (j + 1 < order) left[j + 1] = left[j] * x[j];
      }
      accumulate<Lanes>(d + at[order - 1] + i, left[order - 1]);
      Lanes right = x[order - 1];
      for (int64_t j = order - 2; j >= 0; --j) {
        accumulate<Lanes>(d + at[j] + i, left[j] * right);
        right *= x[j];
      }
    }
  }
}

// The same for any order; `lefts` has a vector for each factor.
template <typename Lanes>
void multiply_back(const int64_t* factor, int64_t order, int64_t k, int64_t samples, int64_t pitch, const float* g,
                   const float* q, float* d, float* lefts) {
  switch (order) {
    case 2: return multiply_back<Lanes, 2>(factor, k, samples, pitch, g, q, d);
    case 3: return multiply_back<Lanes, 3>(factor, k, samples, pitch, g, q, d);
    case 4: return multiply_back<Lanes, 4>(factor, k, samples, pitch, g, q, d);
  }
  for (int64_t s = 0; s < samples; ++s, g += pitch, q += pitch, d += pitch) {
    for (int64_t i = 0; i < k; i += width_of<Lanes>) {
      Lanes left = get<Lanes>(g + i);
      for (int64_t j = 0; j < order; ++j) {
        put<Lanes>(lefts + j * width_of<Lanes>, left);
        left *= get<Lanes>(q + factor[j] * k + i);
      }
      const int64_t end = factor[order - 1] * k + i;
      accumulate<Lanes>(d + end, get<Lanes>(lefts + (order - 1) * width_of<Lanes>));
      Lanes right = get<Lanes>(q + end);
      for (int64_t j = order - 2; j >= 0; --j) {
        accumulate<Lanes>(d + factor[j] * k + i, get<Lanes>(lefts + j * width_of<Lanes>) * right);
        right *= get<Lanes>(q + factor[j] * k + i);
      }
    }
  }
}

// The gradients of the fields' embeddings, from those of fields and products d, which change.
template <typename Lanes>
void look_up_back(const Fields& at, int64_t begin, int64_t end, const float* q, float* d, int64_t pitch, float* lefts,
                  float* to) {
  const int64_t k = at.k;
  to += begin * at.fields * k;
  const int64_t* factor = at.factors;
  for (int64_t m = 0; m < at.interactions; factor += at.orders[m], ++m) {
    multiply_back<Lanes>(factor, at.orders[m], k, end - begin, pitch, d + (at.fields + m) * k, q, d, lefts);
  }
  for (int64_t s = begin; s < end; ++s, d += pitch, to += at.fields * k) {
    for (int64_t i = 0; i < at.fields * k; i += width_of<Lanes>) put<Lanes>(to + i, get<Lanes>(d + i));
    for (int64_t f = 0; at.bags && f < at.fields; ++f) {
      if (at.bag_of[f] < 0) continue;
      const int64_t* ends = at.bag_offsets + s * at.bags + at.bag_of[f];
      const float size = static_cast<float>(std::max<int64_t>(1, ends[1] - ends[0]));
      for (int64_t i = 0; i < k; ++i) to[f * k + i] /= size;
    }
  }
}

void look_up_back(const Fields& at, int64_t begin, int64_t end, const float* q, float* d, int64_t pitch, float* lefts,
                  float* to) {
  by_lanes(at.k, [&]<typename Lanes>() { look_up_back<Lanes>(at, begin, end, q, d, pitch, lefts, to); });
}

template <typename Lanes>
void scatter(const Fields& at, int64_t samples, const float* from, int64_t begin, int64_t end, float* to) {
  const int64_t k = at.k;
  const uint64_t count = end - begin;
  to += begin * k;
  std::memset(to, 0, count * k * sizeof(float));
  auto add = [&](int64_t row) {
    const uint64_t place = static_cast<uint64_t>(row - begin);
    if (place >= count) return;
    for (int64_t i = 0; i < k; i += width_of<Lanes>) accumulate<Lanes>(to + place * k + i, get<Lanes>(from + i));
  };
  if (!at.bags) {
    for (int64_t i = 0; i < samples * at.fields; ++i, from += k) add(at.rows[i]);
    return;
  }
  const int64_t* row = at.rows;
  for (int64_t s = 0; s < samples; ++s) {
    for (int64_t f = 0; f < at.fields; ++f, ++row, from += k) {
      if (at.bag_of[f] < 0) {
        add(*row);
        continue;
      }
      const int64_t* ends = at.bag_offsets + s * at.bags + at.bag_of[f];
      for (int64_t e = ends[0]; e < ends[1]; ++e) add(at.bag_rows[e]);
    }
  }
}

void scatter(const Fields& at, int64_t samples, const float* from, int64_t begin, int64_t end, float* to) {
  by_lanes(at.k, [&]<typename Lanes>() { scatter<Lanes>(at, samples, from, begin, end, to); });
}
