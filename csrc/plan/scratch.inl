// A thread's memory, and looking embeddings up into it. Included once for each instruction set, inside its namespace.

// Memory of a thread, kept between calls.
struct Scratch {
  Floats memory;
  uint64_t owner = 0;
  std::vector<const float*> rows;
};

// Where things lie in it. Rows of elements have room on the left that stays what it is at the start (zero, or -inf for
// max_pool) and on the right that every group fills anew, for neighbours beyond a history's ends.
struct Places {
  int64_t width, pitch, room;  // D, a row of elements, its left room
  float *hidden, *normed, *window, *gates, *mixed, *mask, *weights, *unit_bias, *attention, *scores;
  float *x, *first, *second, *squeezed, *excited, *shortcut, *few, *partial, *sums, *rounded, *zero, *looked_up, *turned;
  const float** rows;
};

int64_t most_gates(const Program& program) {
  int64_t most = 0;
  for (const Block& block : program.blocks) {
    if (block.layer == Layer::self_attn || block.layer == Layer::bi_gru) most = std::max(most, block.first.outputs);
  }
  return most;
}

Places arrange(const Program& program, Scratch& scratch) {
  Places at;
  const int64_t d = program.width(), columns = program.columns();
  at.width = d;
  at.room = program.reach() * V;
  at.pitch = 2 * at.room + program.max_history * V + V;
  if (at.pitch % 1024 == 0) at.pitch += V;  // or rows would share cache sets
  int64_t widest = std::max(columns, program.outputs), hidden = 0, inputs = program.inputs();
  for (const Dense& layer : program.mlp) widest = std::max(widest, layer.outputs());
  if (!program.target.empty()) hidden = (program.pool.hidden + kUnitRows) * V;
  const int64_t gates = most_gates(program);
  const bool any = !program.behavior.empty();
  bool max_pool = false;
  for (const Block& block : program.blocks) max_pool |= block.layer == Layer::max_pool;
  const int64_t half = program.half ? (std::max(inputs, widest) + kBlockInputs) * TILE : 0;  // a layer's rounded inputs
  const int64_t sizes[] = {any ? d * at.pitch : 0,
                           any ? d * at.pitch : 0,
                           max_pool ? d * at.pitch : 0,
                           gates * at.pitch,
                           gates ? d * at.pitch : 0,
                           any ? at.pitch : 0,
                           hidden * d,
                           hidden,
                           any ? at.pitch : 0,
                           gates ? 4 * (program.max_history + 1) * V : 0,
                           (inputs + program.k) * TILE,
                           widest * TILE,
                           widest * TILE,
                           columns * TILE,
                           columns * TILE,
                           program.k * TILE,
                           inputs + program.k + widest + kFew * (widest + program.k + kWide),
                           (std::max({widest, gates, d}) + kWide) * 3 * V,
                           half ? (widest + kBlockOutputs) * TILE : 0,
                           half,
                           program.k + 4,
                           program.folded_width() * V,
                           program.folded_width() * TILE};
  float** parts[] = {&at.hidden,    &at.normed,  &at.window, &at.gates,    &at.mixed,   &at.mask,
                     &at.weights,   &at.unit_bias, &at.attention, &at.scores, &at.x,     &at.first,
                     &at.second,    &at.squeezed, &at.excited, &at.shortcut, &at.few,       &at.partial,
                     &at.sums,      &at.rounded,  &at.zero,   &at.looked_up, &at.turned};
  int64_t total = 0;
  for (int64_t size : sizes) total += (size + 15) / 16 * 16;
  // NaN wherever nothing is promised: what is read before it is written shows in a result. New memory always is, and where
  // AMEIR_FAST_POISON is set all of it for every tile.
  static const char* asked = std::getenv("AMEIR_FAST_POISON");
  if (static_cast<int64_t>(scratch.memory.size()) < total || (asked && *asked)) {
    scratch.memory.assign(total, std::numeric_limits<float>::quiet_NaN());
    scratch.owner = 0;
  }
  const bool fresh = scratch.owner != program.id;
  if (fresh) {
    scratch.owner = program.id;
    int64_t most = std::max(inputs, widest) + program.k;
    for (const Block& block : program.blocks) most = std::max(most, std::max(block.first.inputs, d));
    scratch.rows.resize(most);
  }
  float* next = scratch.memory.data();
  for (size_t part = 0; part < std::size(sizes); ++part) {
    *parts[part] = next;
    next += (sizes[part] + 15) / 16 * 16;
  }
  if (fresh) {
    for (int64_t i = 0; i < d; ++i) {
      std::fill_n(at.normed + i * at.pitch, at.room, 0.0f);
      if (max_pool) std::fill_n(at.window + i * at.pitch, at.room, -std::numeric_limits<float>::infinity());
    }
    if (any) std::fill_n(at.mask, at.room, 0.0f);
    std::fill_n(at.zero, program.k + 4, 0.0f);
  }
  at.hidden += at.room, at.normed += at.room, at.window += at.room, at.gates += at.room, at.mixed += at.room;
  at.mask += at.room;
  at.rows = scratch.rows.data();
  return at;
}

// ---- looking up ------------------------------------------------------------------------------------------

void note(Fault* fault, int64_t row, int64_t column, int64_t id, bool history) {
  if (fault->row < 0 || row < fault->row) *fault = {row, column, id, history};
}

// Row of an id, or zeros with a fault noted where it lies outside its vocabulary.
inline const float* embedded(const Program& program, const Field& field, int32_t id, const float* zero, int64_t row,
                             int64_t column, bool history, Fault* fault) {
  if (static_cast<uint32_t>(id) >= static_cast<uint64_t>(field.size)) [[unlikely]] {
    note(fault, row, column, id, history);
    return zero;
  }
  return program.embedding + (field.offset + id) * program.k;
}

// k numbers of V rows each into k rows of vectors, `pitch` apart.
inline void spread(const float* const* from, int64_t k, float* to, int64_t pitch) {
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
