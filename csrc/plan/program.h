// A derived model as the plan's kernels read it: weights packed, everything that does not depend on a batch done.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace ameir_fast::plan {

template <typename T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <typename U>
  Aligned(const Aligned<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t{64}); }
  friend bool operator==(const Aligned&, const Aligned&) { return true; }
};

using Floats = std::vector<float, Aligned<float>>;

enum class Layer { conv, avg_pool, max_pool, bi_gru, self_attn, target_attn };
enum class Act { identity, relu, swish, gelu, dice };

// A linear map in panels of kWide outputs (kNarrow once no more are left), each [inputs][panel]; both are padded with
// zeros up to a whole panel.
constexpr int kWide = 8, kNarrow = 4;

struct Linear {
  int64_t inputs = 0, outputs = 0;
  Floats weight, bias;
};

// The same with bfloat16 weights and inputs, sums in float32: blocks of 16 outputs x 32 inputs, a row of 64 bytes an
// output, padded with zeros. What an AMX tile holds, and a pair of inputs is a 32-bit number to broadcast.
constexpr int kBlockOutputs = 16, kBlockInputs = 32;

struct Half {
  int64_t inputs = 0, outputs = 0;
  std::vector<uint16_t, Aligned<uint16_t>> weight;
  Floats bias;  // padded to a whole block

  int64_t input_blocks() const { return (inputs + kBlockInputs - 1) / kBlockInputs; }
  int64_t output_blocks() const { return (outputs + kBlockOutputs - 1) / kBlockOutputs; }
};

// sums[o][lane], `pitch` apart, of all padded outputs and `lanes` lanes (a multiple of 16), without the bias; pairs
// [inputs / 2][pitch], two bfloat16 inputs a number, the earlier one in the low bits.
using MultiplyHalf = void (*)(const Half&, const uint32_t* pairs, int64_t pitch, int64_t lanes, float* sums);

// DIN's local activation unit with its first layer folded: W [x, t, x - t, x * t] = (W1 + W3 + W4 diag t) x +
// (W2 - W3) t. All matrices [hidden][width].
struct Unit {
  int64_t hidden = 0;
  Floats own, product, target, bias, out;
  float slope = 0, out_bias = 0;
};

struct Block {
  Layer layer;
  Act act;
  bool norm = false;
  Floats gain, shift;
  int64_t taps = 1, dilation = 1, heads = 1;
  Linear first;      // the convolution; of attention q, k, v; of the GRU the input's part of both directions' gates
  Linear second;     // of attention the output projection
  Floats recurrent;  // [2][3 H][H]
  Floats recurrent_bias;  // [2][3 H]
  Unit unit;

  int64_t reach() const {  // elements to each side that an output reads
    if (layer == Layer::conv) return dilation * (taps - 1) / 2;
    return layer == Layer::avg_pool || layer == Layer::max_pool ? 1 : 0;
  }
};

struct Dense {
  Linear linear;
  Half half;  // in place of `linear` where the layer is rounded and the program has a multiply_half
  Act act;
  bool rounded = false;  // weights and inputs, to bfloat16
  int64_t inputs() const { return half.inputs ? half.inputs : linear.inputs; }
  int64_t outputs() const { return half.outputs ? half.outputs : linear.outputs; }
  Floats alpha, mean, scale;  // of Dice, the scale 1 / sqrt(variance + eps)
};

struct Field {
  int64_t offset = 0, size = 0;  // its vocabulary's rows of the embedding
  int64_t bag = -1;              // which bag of a row it is, or -1
};

constexpr int kMostFolded = 64;

// A field whose part of the first layer's sums is looked up: [ids][padded outputs], a row the layer's weights times the
// id's embedding.
struct Folded {
  int64_t field;
  Floats table;
};

struct Program {
  uint64_t id = 0;  // another one for every program, by which a thread knows whose scratch it holds
  int64_t k = 0, max_history = 0;
  const float* embedding = nullptr;  // [*][k], kept alive by the caller
  std::vector<Field> fields, behavior;
  std::vector<int64_t> target;  // field positions
  std::vector<Block> blocks;    // zero blocks left out
  Unit pool;
  std::vector<std::vector<int64_t>> interactions;
  std::vector<Dense> mlp;
  std::vector<Folded> folded;  // whose inputs the first layer leaves out
  int64_t folded_width() const { return folded.empty() ? 0 : (mlp.front().outputs() + 15) / 16 * 16; }
  int64_t shared_blocks() const {  // the first ones, which read no target
    int64_t count = 0;
    while (count < static_cast<int64_t>(blocks.size()) && blocks[count].layer != Layer::target_attn) ++count;
    return count;
  }
  // The MLP's first layer, which has most of the work, is rounded to bfloat16. The layers after it stay float32: each
  // rounded layer adds an error of its own to the logit.
  bool half = false;
  MultiplyHalf multiply_half = nullptr;  // for kernels of 16 lanes; null: they are multiplied as floats
  bool shortcut = false;
  Floats project;  // [k]
  Linear squeeze, excite, head;
  int64_t outputs = 1;  // a logit, or the user's vector

  int64_t num_bags = 0;
  int64_t width() const { return static_cast<int64_t>(behavior.size()) * k; }  // D
  int64_t history_width() const { return behavior.empty() ? 0 : width() * (target.empty() ? 2 : 3); }
  int64_t columns() const { return static_cast<int64_t>(fields.size() + interactions.size()); }
  int64_t inputs() const { return history_width() + columns() * k; }  // K0
  int64_t reach() const {
    int64_t most = 0;
    for (const Block& block : blocks) most = block.reach() > most ? block.reach() : most;
    return most;
  }
};

// Checked arrays of a batch.
struct Input {
  int64_t rows = 0;
  const int32_t* fields = nullptr;           // [B][N]
  const int32_t* history = nullptr;          // [E][N_a]
  const int64_t* history_offsets = nullptr;  // [B + 1]
  const int32_t* bags = nullptr;
  const int64_t* bag_offsets = nullptr;      // [B n_bags + 1]
};

// Candidates for the user of a batch's only row: each is that row with other ids in some categorical fields.
struct Candidates {
  const int32_t* ids = nullptr;       // [n][columns]
  int64_t columns = 0;
  std::vector<int64_t> column_of;     // of each field, or -1: the user's own
  Floats hidden;                      // [D][length] the user's history after the shared blocks
  int64_t length = 0;
};

// Where an id lies outside its vocabulary; the smallest row wins, whatever the order of work.
struct Fault {
  int64_t row = -1, column = -1, id = 0;
  bool history = false;
};

// What takes part of a run's time; blocks and then layers of the MLP follow.
enum Part { kOrder, kFields, kHistory, kPool, kProducts, kShortcut, kHead, kBlocks };

// Where the time of a run goes: lap() counts what has passed since the last one as a part's.
class Stopwatch {
 public:
  explicit Stopwatch(const Program& program) : seconds(kBlocks + program.blocks.size() + program.mlp.size(), 0.0) {}
  void lap(size_t part) {
    const auto now = std::chrono::steady_clock::now();
    seconds[part] += std::chrono::duration<double>(now - since_).count();
    since_ = now;
  }
  std::vector<double> seconds;

 private:
  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
};

extern thread_local Stopwatch* stopwatch;  // of this thread's runs, or null

inline void lap(size_t part) {
  if (stopwatch) [[unlikely]] stopwatch->lap(part);
}

// One instruction set's way of running rows order[begin, end) of a batch, at most `tile` of them; out [B][outputs].
struct Kernels {
  const char* name;
  int lanes, tile;
  void (*run)(const Program&, const Input&, const int64_t* order, int64_t begin, int64_t end, float* out, Fault* fault);
  // The two parts of scoring candidates: what they share, once; and candidates [begin, end).
  void (*share)(const Program&, const Input&, Candidates* candidates, Fault* fault);
  void (*rank)(const Program&, const Input&, const Candidates&, int64_t begin, int64_t end, float* out, Fault* fault);
};

extern const Kernels portable_kernels;
#ifdef AMEIR_FAST_AVX2
extern const Kernels avx2_kernels, avx512_kernels;
void multiply_half_amx(const Half&, const uint32_t* pairs, int64_t pitch, int64_t lanes, float* sums);
void multiply_half_avx512(const Half&, const uint32_t* pairs, int64_t pitch, int64_t lanes, float* sums);
#endif

}  // namespace ameir_fast::plan
