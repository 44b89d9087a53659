// Activations by name at run time, and their derivatives. Included once for each instruction set, inside its namespace.

template <Act act>
inline vf slope(vf x) {
  if constexpr (act == Act::relu) return x <= 0.0f ? vf{} : set(1.0f);
  if constexpr (act == Act::swish) {
    const vf p = sigmoid(x);
    return p * (1.0f + x * (1.0f - p));
  }
  if constexpr (act == Act::gelu) {
    const vf density = 0.39894228f * exp(-0.5f * x * x);
    return fma(x, density, 0.5f * (1.0f + erf(x * 0.70710678f)));
  }
  return set(1.0f);
}

// visit<act>() for an activation of single numbers.
template <typename Visit>
inline void by_act(Act act, Visit visit) {
  switch (act) {
    case Act::relu: return visit.template operator()<Act::relu>();
    case Act::swish: return visit.template operator()<Act::swish>();
    case Act::gelu: return visit.template operator()<Act::gelu>();
    default: visit.template operator()<Act::identity>();
  }
}

// to = act(x), n numbers; x itself may be `to`.
inline void activate(Act act, const float* x, int64_t n, float* to) {
  by_act(act, [&]<Act one>() {
    int64_t i = 0;
    for (; i + V <= n; i += V) store(to + i, activate<one>(load(x + i)));
    if (i < n) store_part(to + i, activate<one>(load_part(x + i, n - i)), n - i);
  });
}

// to = grad * act'(x).
inline void activate_back(Act act, const float* x, const float* grad, int64_t n, float* to) {
  by_act(act, [&]<Act one>() {
    int64_t i = 0;
    for (; i + V <= n; i += V) store(to + i, load(grad + i) * slope<one>(load(x + i)));
    if (i < n) store_part(to + i, load_part(grad + i, n - i) * slope<one>(load_part(x + i, n - i)), n - i);
  });
}
