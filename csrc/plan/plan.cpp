#include "plan/plan.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string_view>

#ifdef AMEIR_FAST_AVX2
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ameir_fast::plan {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check_offsets(const char* name, const int64_t* offsets, int64_t groups, int64_t values) {
  bool rises = offsets[0] == 0 && offsets[groups] == values;
  for (int64_t g = 0; rises && g < groups; ++g) rises = offsets[g] <= offsets[g + 1];
  if (!rises) refuse(std::string(name) + " does not rise from 0 to " + std::to_string(values));
}

// The nearest bfloat16, ties to even; a NaN stays one.
uint16_t round_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

#ifdef AMEIR_FAST_AVX2
// Whether the system lets this process use AMX tiles, for which it must be asked.
bool tiles_granted() {
#ifdef __linux__
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

// Rows by falling length of their histories, so that neighbours are alike and the longest tiles come first.
void sort_rows(const Program& program, const Input& input, std::vector<int64_t>& order) {
  order.resize(input.rows);
  if (program.behavior.empty()) {
    for (int64_t r = 0; r < input.rows; ++r) order[r] = r;
    return;
  }
  thread_local std::vector<int64_t> start;
  start.assign(program.max_history + 2, 0);
  for (int64_t r = 0; r < input.rows; ++r) {
    const int64_t length = input.history_offsets[r + 1] - input.history_offsets[r];
    if (length > program.max_history) {
      refuse("history of row " + std::to_string(r) + " has " + std::to_string(length) +
             " elements, more than max_history " + std::to_string(program.max_history));
    }
    ++start[program.max_history - length + 1];
  }
  for (size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
  for (int64_t r = 0; r < input.rows; ++r) {
    const int64_t length = input.history_offsets[r + 1] - input.history_offsets[r];
    order[start[program.max_history - length]++] = r;
  }
}

}  // namespace

thread_local Stopwatch* stopwatch = nullptr;

Linear pack(const float* weight, int64_t outputs, int64_t inputs, int64_t outer, int64_t inner, const float* bias) {
  Linear packed;
  packed.inputs = inputs;
  packed.outputs = outputs;
  for (int64_t o = 0; o < outputs;) {
    const int64_t panel = outputs - o > kNarrow ? kWide : kNarrow;
    const size_t start = packed.weight.size();
    packed.weight.resize(start + panel * inputs, 0.0f);
    packed.bias.resize(packed.bias.size() + panel, 0.0f);
    for (int64_t j = 0; j < panel && o + j < outputs; ++j) {
      for (int64_t i = 0; i < inputs; ++i) packed.weight[start + i * panel + j] = weight[(o + j) * outer + i * inner];
      if (bias) packed.bias[o + j] = bias[o + j];
    }
    o += panel;
  }
  return packed;
}

Half pack_half(const float* weight, int64_t outputs, int64_t inputs, const float* bias) {
  Half packed;
  packed.inputs = inputs;
  packed.outputs = outputs;
  packed.weight.resize(packed.output_blocks() * packed.input_blocks() * kBlockOutputs * kBlockInputs, 0);
  packed.bias.resize(packed.output_blocks() * kBlockOutputs, 0.0f);
  for (int64_t o = 0; o < outputs; ++o) {
    if (bias) packed.bias[o] = bias[o];
    for (int64_t i = 0; i < inputs; ++i) {
      const int64_t block = o / kBlockOutputs * packed.input_blocks() + i / kBlockInputs;
      packed.weight[(block * kBlockOutputs + o % kBlockOutputs) * kBlockInputs + i % kBlockInputs] =
          round_half(weight[o * inputs + i]);
    }
  }
  return packed;
}

float rounded_to_half(float x) {
  const uint32_t bits = static_cast<uint32_t>(round_half(x)) << 16;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

MultiplyHalf half_products(std::string* name) {
#ifdef AMEIR_FAST_AVX2
  const bool any = name->empty();
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;  // of EDX
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (supported().front() == &avx512_kernels) {
    if ((any || *name == "amx") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBfloat16) && (d & kTiles) &&
        tiles_granted()) {
      *name = "amx";
      return &multiply_half_amx;
    }
    constexpr unsigned kDots = 1u << 5;  // of EAX
    if ((any || *name == "avx512_bf16") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kDots)) {
      *name = "avx512_bf16";
      return &multiply_half_avx512;
    }
  }
#endif
  *name = "none";
  return nullptr;
}

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found;
#ifdef AMEIR_FAST_AVX2
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view wanted = variable ? variable : "";
  const bool avx2 = wanted != "default" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && wanted != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&avx512_kernels);
  }
  if (avx2) found.push_back(&avx2_kernels);
#endif
  found.push_back(&portable_kernels);
  return found;
}

namespace {

// work(begin, end, fault) on pieces of [0, count), longest first, on as many threads as there are.
template <typename Work>
std::optional<Fault> share_out(int64_t count, int64_t piece, Work work) {
  const int64_t pieces = (count + piece - 1) / piece;
  std::atomic<int64_t> next{0};
  std::mutex guard;
  Fault first;
  auto run = [&] {
    Fault found;
    for (int64_t at = next++; at < pieces; at = next++) work(at * piece, std::min((at + 1) * piece, count), &found);
    if (found.row < 0) return;
    const std::lock_guard<std::mutex> lock(guard);
    if (first.row < 0 || found.row < first.row) first = found;
  };
  const int64_t threads = std::min<int64_t>(pieces, at::in_parallel_region() ? 1 : at::get_num_threads());
  if (threads <= 1) {
    run();
  } else {
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) { run(); });
  }
  if (first.row < 0) return std::nullopt;
  return first;
}

void check(const Program& program, const Input& input, const Extent& extent) {
  if (!program.behavior.empty()) check_offsets("history_offsets", input.history_offsets, input.rows, extent.elements);
  if (program.num_bags) check_offsets("bag_offsets", input.bag_offsets, input.rows * program.num_bags, extent.bags);
}

}  // namespace

std::optional<Fault> score(const Program& program, const Kernels& kernels, const Input& input, const Extent& extent,
                           float* out) {
  check(program, input, extent);
  thread_local std::vector<int64_t> rows;
  std::vector<int64_t>& order = rows;  // the caller's, whichever thread reads it
  sort_rows(program, input, order);
  return share_out(input.rows, kernels.tile, [&](int64_t begin, int64_t end, Fault* fault) {
    kernels.run(program, input, order.data(), begin, end, out, fault);
  });
}

std::vector<double> score_by_parts(const Program& program, const Kernels& kernels, const Input& input, const Extent& extent,
                                   float* out, std::optional<Fault>* fault) {
  Stopwatch watch(program);
  check(program, input, extent);
  std::vector<int64_t> order;
  sort_rows(program, input, order);
  watch.lap(kOrder);
  Fault found;
  const struct Held {
    explicit Held(Stopwatch* watch) { stopwatch = watch; }
    ~Held() { stopwatch = nullptr; }
  } held(&watch);
  for (int64_t at = 0; at < input.rows; at += kernels.tile) {
    kernels.run(program, input, order.data(), at, std::min(at + kernels.tile, input.rows), out, &found);
  }
  if (found.row >= 0) *fault = found;
  return watch.seconds;
}

std::optional<Fault> rank(const Program& program, const Kernels& kernels, const Input& input, const Extent& extent,
                          Candidates& candidates, int64_t count, float* out) {
  check(program, input, extent);
  std::vector<int64_t> order;
  sort_rows(program, input, order);  // checks the history's length
  Fault fault;
  kernels.share(program, input, &candidates, &fault);
  if (fault.row >= 0) return fault;
  return share_out(count, kernels.tile, [&](int64_t begin, int64_t end, Fault* found) {
    kernels.rank(program, input, candidates, begin, end, out, found);
  });
}

}  // namespace ameir_fast::plan
