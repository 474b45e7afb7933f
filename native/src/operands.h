// Checks sizes, dtypes and alignment of the operands of a call before it reads or writes them.
#ifndef FUNCTIONAL_ADAM_OPERANDS_H_
#define FUNCTIONAL_ADAM_OPERANDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "step.h"

namespace functional_adam {

enum class Type { kFloat32, kBFloat16, kInt8, kUint8, kInt16, kUint16, kUint32, kOther };

// An array as XLA passes it.
struct Array {
  Type type;
  void* data;
  int64_t size;  // elements
};

struct Call {
  Config config;
  Scalars scalars;
  Noise noise;
  std::vector<Leaf> leaves;
};

constexpr int kTiles = 7;  // numbers per leaf, in the order of the members of Tiles

// Fills `call` from the arrays, in the order of functional_adam/_kernels/native.py: scalars, noise
// and places, then for each leaf its gradient, its parameter (if needed) and its stored arrays.
// Results are an update or parameter, and the stored arrays. Returns what is wrong, or "".
std::string read_call(const Config& config, const std::vector<int64_t>& tiles,
                      const std::vector<Array>& arguments, const std::vector<Array>& results,
                      Call& call);

// Pieces of work for this many threads. A piece is some blocks of a leaf, or some leaves.
struct Piece {
  int64_t leaf, begin;   // the first block
  int64_t last, end;     // the leaf of the last block, and the block after it
};
std::vector<Piece> pieces(const std::vector<Leaf>& leaves, int64_t threads);

void run(const Call& call, const Piece& piece, Kernel kernel);

}  // namespace functional_adam

#endif  // FUNCTIONAL_ADAM_OPERANDS_H_
