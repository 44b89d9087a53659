// The samples of a group, their elements as lanes, and what all layers do with them. Included once for each
// instruction set.

// Numbers of one feature are a row; rows are `pitch` apart and have `room` numbers on either side for neighbours.
struct Group {
  const Sequences& s;
  Arena& arena;
  const int64_t d;
  const int64_t* order;
  int64_t count, longest = 0, lanes, room, pitch;
  int64_t length[V] = {}, begin[V] = {};
  bool full;
  float *mask, *zero;

  Group(const Sequences& sequences, int64_t number, Arena& memory) : s(sequences), arena(memory), d(sequences.width) {
    arena.reset();
    order = s.order.data() + number * V;
    count = std::min<int64_t>(V, s.samples - number * V);
    int64_t shortest = std::numeric_limits<int64_t>::max();
    for (int64_t lane = 0; lane < V; ++lane) {
      if (lane < count) {
        begin[lane] = s.offsets[order[lane]];
        length[lane] = s.offsets[order[lane] + 1] - begin[lane];
      }
      longest = std::max(longest, length[lane]);
      shortest = std::min(shortest, length[lane]);
    }
    full = shortest == longest;
    lanes = longest * V;
    room = s.reach() * V;
    pitch = 2 * room + lanes;
    if (pitch % 1024 == 0) pitch += V;  // or rows would share cache sets
    mask = rows(1);
    for (int64_t t = 0; t < longest; ++t) {
      for (int64_t lane = 0; lane < V; ++lane) mask[t * V + lane] = t < length[lane];
    }
    fill_ends(mask, 1, 0.0f);
    zero = arena.take(d + 4);
    std::fill_n(zero, d + 4, 0.0f);
  }

  float* rows(int64_t n) { return arena.take(n * pitch) + room; }
  template <typename T>
  T* row(T* base, int64_t i) const {
    return base + i * pitch;
  }
  std::vector<const float*> pointers(const float* base, int64_t n, int64_t shift = 0) const {
    std::vector<const float*> found(n);
    for (int64_t i = 0; i < n; ++i) found[i] = base + i * pitch + shift;
    return found;
  }

  void fill_ends(float* base, int64_t n, float value) const {
    for (int64_t i = 0; i < n; ++i) {
      std::fill_n(row(base, i) - room, room, value);
      std::fill_n(row(base, i) + lanes, room, value);
    }
  }
  void clear(float* base, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) std::fill_n(row(base, i) - room, lanes + 2 * room, 0.0f);
  }

  // x where there is an element, `otherwise` beyond a history's end.
  vf keep(vf x, int64_t p, float otherwise = 0.0f) const {
    return full ? x : (load(mask + p) != 0.0f ? x : set(otherwise));
  }

  // [ΣT][D] to rows, zero beyond the ends.
  void gather(const float* from, float* to) const {
    for (int64_t t = 0; t < longest; ++t) {
      const float* element[V];
      for (int64_t lane = 0; lane < V; ++lane) element[lane] = t < length[lane] ? from + (begin[lane] + t) * d : zero;
      spread(element, d, to + t * V);
    }
  }

  // A row of [B][columns] for each lane, from column `start` on, to vectors; zero for lanes without a sample.
  void gather_samples(const float* from, int64_t columns, int64_t start, float* to) const {
    const float* sample[V];
    for (int64_t lane = 0; lane < V; ++lane) sample[lane] = lane < count ? from + order[lane] * columns + start : zero;
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t lane = 0; lane < V; ++lane) to[i * V + lane] = sample[lane][i];
    }
  }
  void scatter_samples(const float* from, float* to, int64_t columns, int64_t start) const {
    for (int64_t lane = 0; lane < count; ++lane) {
      float* sample = to + order[lane] * columns + start;
      for (int64_t i = 0; i < d; ++i) sample[i] = from[i * V + lane];
    }
  }

  // Rows to [ΣT][D]; what lies beyond the ends is left out.
  void scatter(const float* from, float* to) const {
    for (int64_t t = 0; t < longest; ++t) {
      int64_t i = 0;
      for (; i + 4 <= d; i += 4) {
        const float* x = from + i * pitch + t * V;
        alignas(64) float part[V][4];
        turn(x, part);
        for (int64_t lane = 0; lane < V; ++lane) {
          if (t < length[lane]) std::memcpy(to + (begin[lane] + t) * d + i, part[lane], sizeof part[lane]);
        }
      }
      for (; i < d; ++i) {
        for (int64_t lane = 0; lane < V; ++lane) {
          if (t < length[lane]) to[(begin[lane] + t) * d + i] = from[i * pitch + t * V + lane];
        }
      }
    }
  }

 private:
  void spread(const float* const* from, int64_t k, float* to) const {
    int64_t i = 0;
    for (; i + 4 <= k; i += 4) {
      vf part[4];
      transpose4(from, i, part);
      for (int j = 0; j < 4; ++j) store(to + (i + j) * pitch, part[j]);
    }
    for (; i < k; ++i) {
      for (int lane = 0; lane < V; ++lane) to[i * pitch + lane] = from[lane][i];
    }
  }

  // Four rows' vectors as four numbers a lane.
  void turn(const float* x, float (*part)[4]) const {
#if AMEIR_FAST_LANES == 16
    const __m512 r0 = _mm512_loadu_ps(x), r1 = _mm512_loadu_ps(x + pitch), r2 = _mm512_loadu_ps(x + 2 * pitch),
                 r3 = _mm512_loadu_ps(x + 3 * pitch);
    const __m512 a = _mm512_unpacklo_ps(r0, r1), b = _mm512_unpackhi_ps(r0, r1);
    const __m512 c = _mm512_unpacklo_ps(r2, r3), e = _mm512_unpackhi_ps(r2, r3);
    const __m512 out[4] = {_mm512_shuffle_ps(a, c, 0x44), _mm512_shuffle_ps(a, c, 0xEE), _mm512_shuffle_ps(b, e, 0x44),
                           _mm512_shuffle_ps(b, e, 0xEE)};
    for (int j = 0; j < 4; ++j) {
      _mm_store_ps(part[j], _mm512_castps512_ps128(out[j]));
      _mm_store_ps(part[4 + j], _mm512_extractf32x4_ps(out[j], 1));
      _mm_store_ps(part[8 + j], _mm512_extractf32x4_ps(out[j], 2));
      _mm_store_ps(part[12 + j], _mm512_extractf32x4_ps(out[j], 3));
    }
#elif AMEIR_FAST_LANES == 8
    const __m256 r0 = _mm256_loadu_ps(x), r1 = _mm256_loadu_ps(x + pitch), r2 = _mm256_loadu_ps(x + 2 * pitch),
                 r3 = _mm256_loadu_ps(x + 3 * pitch);
    const __m256 a = _mm256_unpacklo_ps(r0, r1), b = _mm256_unpackhi_ps(r0, r1);
    const __m256 c = _mm256_unpacklo_ps(r2, r3), e = _mm256_unpackhi_ps(r2, r3);
    const __m256 out[4] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xEE), _mm256_shuffle_ps(b, e, 0x44),
                           _mm256_shuffle_ps(b, e, 0xEE)};
    for (int j = 0; j < 4; ++j) {
      _mm_store_ps(part[j], _mm256_castps256_ps128(out[j]));
      _mm_store_ps(part[4 + j], _mm256_extractf128_ps(out[j], 1));
    }
#else
    for (int lane = 0; lane < V; ++lane) {
      for (int j = 0; j < 4; ++j) part[lane][j] = x[j * pitch + lane];
    }
#endif
  }
};
