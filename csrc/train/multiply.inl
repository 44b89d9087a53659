// Products of matrices: a tile of samples and packed weights, or a tile transposed and another. Included once for each
// instruction set, inside its namespace. Every sum is taken in one order, whatever tile it is part of.

constexpr int kVectors = 3, kRows = V == 16 ? 8 : 4;  // accumulators
constexpr int64_t kPanel = kVectors * V;
constexpr int64_t kDepth = 128;  // terms summed up on their own: a panel of so many rows stays in the nearest cache

struct Left {  // a[r, i] at r * row + i * step
  const float* at;
  int64_t row, step;
};

struct Right {  // rows of `pitch` floats, readable up to whole vectors; in panels [depth][width] where pitch is 0
  const float* at;
  int64_t pitch;
};

template <int rows, int vectors>
inline void multiply(Left a, const float* b, int64_t pitch, int64_t depth, const float* bias, bool add, float* to,
                     int64_t to_pitch, int64_t last) {
  vf sum[rows][vectors] = {};
  for (int64_t i = 0; i < depth; ++i, a.at += a.step, b += pitch) {
    vf in[vectors];
    for (int v = 0; v < vectors; ++v) in[v] = load(b + v * V);
    for (int r = 0; r < rows; ++r) {
      const vf w = set(a.at[r * a.row]);
      for (int v = 0; v < vectors; ++v) sum[r][v] = fma(w, in[v], sum[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r, to += to_pitch) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t count = v + 1 < vectors ? V : last;
      vf x = sum[r][v];
      if (bias) x += load(bias + v * V);
      if (add) x = load_part(to + v * V, count) + x;
      store_part(to + v * V, x, count);
    }
  }
}

template <int vectors>
void multiply_rows(Left a, int64_t m, const float* b, int64_t pitch, int64_t depth, const float* bias, bool add,
                   float* to, int64_t to_pitch, int64_t last) {
  int64_t r = 0;
  auto next = [&]<int rows>() {
    multiply<rows, vectors>({a.at + r * a.row, a.row, a.step}, b, pitch, depth, bias, add, to + r * to_pitch, to_pitch,
                            last);
    r += rows;
  };
  while (r + kRows <= m) next.template operator()<kRows>();
  if (kRows > 4 && r + 4 <= m) next.template operator()<4>();
  if (r + 2 <= m) next.template operator()<2>();
  if (r < m) next.template operator()<1>();
}

// to [m][n] = a b + bias, or to += a b. a [m][depth], b [depth][n]; the bias is null or padded.
void product(Left a, int64_t m, Right b, int64_t depth, int64_t n, const float* bias, bool add, float* to,
             int64_t to_pitch) {
  for (int64_t start = 0; start == 0 || start < depth; start += kDepth) {
    const int64_t terms = std::min(kDepth, depth - start);
    const bool sum = add || start > 0;
    const Left left = {a.at + start * a.step, a.row, a.step};
    for (int64_t c = 0; c < n; c += kPanel) {
      const int64_t vectors = std::min<int64_t>(kVectors, (n - c + V - 1) / V), width = vectors * V;
      const int64_t last = std::min<int64_t>(V, n - c - width + V);
      const float* right = b.pitch ? b.at + start * b.pitch + c : b.at + c * depth + start * width;
      const int64_t pitch = b.pitch ? b.pitch : width;
      const float* shift = bias && start == 0 ? bias + c : nullptr;
      switch (vectors) {
        case 1: multiply_rows<1>(left, m, right, pitch, terms, shift, sum, to + c, to_pitch, last); break;
        case 2: multiply_rows<2>(left, m, right, pitch, terms, shift, sum, to + c, to_pitch, last); break;
        default: multiply_rows<3>(left, m, right, pitch, terms, shift, sum, to + c, to_pitch, last);
      }
    }
  }
}

// Panels first to last of b.
void pack(const Matrix& b, int64_t first, int64_t last, float* to) {
  constexpr int64_t block = 16;  // rows at a time, so that a transposed source is read by cache lines
  for (int64_t c = first * kPanel; c < std::min(last * kPanel, b.columns); c += kPanel) {
    const int64_t count = std::min(kPanel, b.columns - c), width = (count + V - 1) / V * V;
    float* panel = to + c * b.rows;
    for (int64_t start = 0; start < b.rows; start += block) {
      const int64_t end = std::min(start + block, b.rows);
      if (b.column == 1) {
        for (int64_t i = start; i < end; ++i) {
          std::memcpy(panel + i * width, b.at + i * b.row + c, count * sizeof(float));
        }
      } else {
        for (int64_t j = 0; j < count; ++j) {
          const float* from = b.at + (c + j) * b.column;
          for (int64_t i = start; i < end; ++i) panel[i * width + j] = from[i * b.row];
        }
      }
      for (int64_t i = start; i < end; ++i) std::fill(panel + i * width + count, panel + (i + 1) * width, 0.0f);
    }
  }
}

// The sums of a tile's columns.
void sum_columns(const float* from, int64_t pitch, int64_t rows, int64_t n, bool add, float* to) {
  for (int64_t c = 0; c < n; c += V) {
    const int64_t count = std::min<int64_t>(V, n - c);
    vf sum = {};
    for (int64_t r = 0; r < rows; ++r) sum += load_part(from + r * pitch + c, count);
    store_part(to + c, add ? load_part(to + c, count) + sum : sum, count);
  }
}
