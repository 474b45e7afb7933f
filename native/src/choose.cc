// Chooses among the kernels that were built the one for this processor.
#include "step.h"

#if defined(FA_X86)
#include <cpuid.h>
#endif

namespace functional_adam {

#if defined(FA_X86)
#define FA_DECLARE(name)                                                                       \
  void name(const Config&, const Scalars&, const Noise&, const Leaf&, int64_t begin, int64_t end)
FA_DECLARE(step_v2);
FA_DECLARE(step_v3);
FA_DECLARE(step_v4);

namespace {

// Tests everything that compilers may use for x86-64-v3, including the operating system's support.
// Not every compiler's builtin function knows F16C, MOVBE and LZCNT.
bool has_v3() {
  unsigned a, b, c, d;
  const unsigned halves = bit_F16C | bit_MOVBE;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & halves) == halves &&
         __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & bit_LZCNT) != 0 &&
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

}  // namespace

const int kKernels = 3;

Named kernel_at(int index) {
  __builtin_cpu_init();
  switch (index) {
    case 0: return {"x86-64-v4", has_v4() ? &step_v4 : nullptr};
    case 1: return {"x86-64-v3", has_v3() ? &step_v3 : nullptr};
    default: return {"x86-64-v2", &step_v2};
  }
}

#else

void step_base(const Config&, const Scalars&, const Noise&, const Leaf&, int64_t, int64_t);

const int kKernels = 1;

Named kernel_at(int) { return {"base", &step_base}; }

#endif

Kernel kernel() {
  static const Kernel best = [] {
    int index = 0;
    while (kernel_at(index).kernel == nullptr) ++index;
    return kernel_at(index).kernel;
  }();
  return best;
}

}  // namespace functional_adam
