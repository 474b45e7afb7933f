// The arguments of a step as plain data, and its kernel; the same for all instruction sets.
#ifndef FUNCTIONAL_ADAM_STEP_H_
#define FUNCTIONAL_ADAM_STEP_H_

#include <cstdint>

namespace functional_adam {

// b, 1 - b, and the numbers for `average`: see functional_adam/_equations/numerics.py.
struct Rate {
  float keep, complement, subtract;
};

// The scalars of a step, in the order in which functional_adam/_kernels/native.py packs them.
struct Scalars {
  Rate b1, b2;
  float eps, eps_root, l2, step_size, decay, ahead, now;
  float bound;  // of |m| / sqrt(v)
};

struct Noise {
  uint32_t nu, mu, code, theta;
};

enum class Moments { kNearest, kStochastic, kCodes };
enum class Rounding { kNone, kStochastic, kCompensated, kSplit };

// What is known about a step when it is traced.
struct Config {
  Moments moments;
  Rounding rounding;
  bool applies;  // whether to return the parameter instead of its update
  bool decays, has_l2, has_eps_root, looks_ahead;

  bool needs_theta() const {
    return applies || decays || has_l2 || rounding != Rounding::kNone;
  }
};

// Floats of 32 bits, or bfloat16.
struct Floats {
  void* data;
  bool is_short;
};

// The shape of a leaf or of a part of one: planes of rows of blocks; the last block of a row may be
// shorter. `place` is the number of the first element in the whole leaf, and distances are in
// elements of the whole leaf, all modulo 2**32.
struct Tiles {
  int64_t planes, rows, width, blocks, length;
  uint32_t place, row_distance, plane_distance;

  int64_t count() const { return planes * rows * blocks; }
};

struct Leaf {
  Tiles tiles;
  Floats g, theta, out, m, v;  // `out` may be `theta`: a step in place
  int8_t* mu;                  // codes, used instead of m and v
  uint8_t* nu;
  uint16_t* scale;
  void* residual;  // int8 if compensated, int16 if split
};

constexpr int64_t kLongest = 1024;  // elements of a block

// The step of the blocks [begin, end) of a leaf.
using Kernel = void (*)(const Config&, const Scalars&, const Noise&, const Leaf&, int64_t begin,
                        int64_t end);

// The fastest kernel that this processor can run.
Kernel kernel();

// All kernels that were built, for tests: name and kernel, null if this processor cannot run it.
struct Named {
  const char* name;
  Kernel kernel;
};
extern const int kKernels;
Named kernel_at(int index);

}  // namespace functional_adam

namespace {
using namespace functional_adam;  // NOLINT: for files that are compiled once per set
}

#endif  // FUNCTIONAL_ADAM_STEP_H_
