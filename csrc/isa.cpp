#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string_view>

namespace ameir_fast {
namespace {

std::atomic<int> chosen{-1};

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names = {"portable"};
#ifdef AMEIR_FAST_AVX2
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");  // restricts it as it does PyTorch
  const std::string_view wanted = variable ? variable : "";
  if (wanted != "default" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    names.push_back("avx2");
    if (wanted != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
      names.push_back("avx512");
    }
  }
#endif
  return names;
}

int isa() {
  static const int best = static_cast<int>(instruction_sets().size()) - 1;
  const int one = chosen.load(std::memory_order_relaxed);
  return one < 0 ? best : one;
}

std::string use_instruction_set(std::string name) {
  const auto names = instruction_sets();
  int one = -1;
  if (!name.empty()) {
    one = static_cast<int>(std::find(names.begin(), names.end(), name) - names.begin());
    if (one == static_cast<int>(names.size())) {
      throw std::invalid_argument("instruction set '" + name + "' is not one of this processor's");
    }
  }
  chosen = one;
  return names[isa()];
}

}  // namespace ameir_fast
