#include "operands.h"

#include <algorithm>
#include <cstring>

namespace functional_adam {

namespace {

const char* name_of(Type type) {
  constexpr const char* kNames[] = {"float32", "bfloat16", "int8",  "uint8",
                                    "int16",   "uint16",   "uint32", "another dtype"};
  return kNames[static_cast<int>(type)];
}

int64_t bytes_of(Type type) {
  constexpr int64_t kBytes[] = {4, 2, 1, 1, 2, 2, 4, 1};
  return kBytes[static_cast<int>(type)];
}

// Takes the arrays of a call in order and checks each of them.
class Reader {
 public:
  Reader(const char* what, const std::vector<Array>& arrays) : what_(what), arrays_(arrays) {}

  // The next array, of this size and of one of these two types.
  Array take(const char* name, int64_t size, Type type, Type other) {
    if (!problem_.empty()) return {type, nullptr, 0};
    const size_t index = next_++;
    if (index >= arrays_.size()) return fail(name, "is missing");
    const Array array = arrays_[index];
    if (array.type != type && array.type != other) {
      const std::string or_other = type == other ? "" : std::string(" or ") + name_of(other);
      return fail(name, std::string("is of ") + name_of(array.type) + ", not " + name_of(type) + or_other);
    }
    if (array.size != size) {
      return fail(name, "has " + std::to_string(array.size) + " elements, not " +
                            std::to_string(size));
    }
    if (size > 0 && reinterpret_cast<uintptr_t>(array.data) % bytes_of(array.type) != 0) {
      return fail(name, "is not aligned to its elements");
    }
    return array;
  }

  Array take(const char* name, int64_t size, Type type) { return take(name, size, type, type); }

  Floats take_floats(const char* name, int64_t size) {
    const Array array = take(name, size, Type::kFloat32, Type::kBFloat16);
    return {array.data, array.type == Type::kBFloat16};
  }

  // What was wrong, including arrays left over at the end.
  std::string problem_at_end() const {
    if (!problem_.empty() || next_ == arrays_.size()) return problem_;
    return std::string(what_) + "s are " + std::to_string(arrays_.size()) + ", not " +
           std::to_string(next_);
  }

  bool failed() const { return !problem_.empty(); }

 private:
  Array fail(const char* name, const std::string& why) {
    problem_ = std::string(what_) + " " + std::to_string(next_) + " (" + name + ") " + why;
    return {Type::kOther, nullptr, 0};
  }

  const char* what_;
  const std::vector<Array>& arrays_;
  size_t next_ = 0;
  std::string problem_;
};

// Elements of a leaf; -1 if the numbers are not valid tiles.
int64_t size_of(const Tiles& tiles, bool has_codes) {
  const bool positive = tiles.planes >= 0 && tiles.rows >= 0 && tiles.width >= 0 &&
                        tiles.blocks >= 1 && tiles.length >= 1 && tiles.length <= kLongest;
  if (!positive || (has_codes && tiles.length % 16 != 0)) return -1;
  int64_t lines, size, covered, all;
  if (__builtin_mul_overflow(tiles.planes, tiles.rows, &lines) ||
      __builtin_mul_overflow(lines, tiles.width, &size) ||
      __builtin_mul_overflow(tiles.blocks, tiles.length, &covered) ||
      __builtin_mul_overflow(lines, covered, &all)) {
    return -1;
  }
  const bool covers = covered >= tiles.width && covered - tiles.length < tiles.width;
  return size == 0 || covers ? size : -1;
}

Tiles tiles_of(const int64_t* numbers, uint32_t place) {
  return {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], place,
          static_cast<uint32_t>(numbers[5]), static_cast<uint32_t>(numbers[6])};
}

// The stored array at the place of the new one; XLA has given both the same memory.
template <class T>
T* moved(const Array& from, const Array& to) {
  if (from.data != to.data && from.size > 0) {
    std::memcpy(to.data, from.data, from.size * bytes_of(from.type));
  }
  return static_cast<T*>(to.data);
}

struct Pair {
  Array old, now;
};

struct Stored {
  Pair pairs[4];
  int count = 0;
};

// Takes an argument and its result, which have the same type.
Pair take_stored(Reader& arguments, Reader& results, const char* name, int64_t size, Type type,
                 Type other) {
  const Array old = arguments.take(name, size, type, other);
  return {old, results.take(name, size, old.type)};
}

Stored take_leaf(const Config& config, Reader& arguments, Reader& results, int64_t size,
                 Leaf& leaf) {
  const bool rounds = config.rounding != Rounding::kNone;
  Stored stored;
  leaf.g = arguments.take_floats("gradient", size);
  if (config.needs_theta()) {
    const Array theta = arguments.take("parameter", size, rounds ? Type::kBFloat16 : Type::kFloat32,
                                       Type::kBFloat16);
    leaf.theta = {theta.data, theta.type == Type::kBFloat16};
    const Array out = config.applies ? results.take("parameter", size, theta.type)
                      : rounds       ? results.take("update", size, Type::kFloat32)
                                     : results.take("update", size, Type::kFloat32, Type::kBFloat16);
    leaf.out = {out.data, out.type == Type::kBFloat16};
  } else {
    leaf.out = results.take_floats("update", size);
  }
  const auto take = [&](const char* name, int64_t size, Type type, Type other) {
    stored.pairs[stored.count++] = take_stored(arguments, results, name, size, type, other);
  };
  if (config.moments == Moments::kCodes) {
    take("mu", size, Type::kInt8, Type::kInt8);
    take("nu", size, Type::kUint8, Type::kUint8);
    take("nu_scale", leaf.tiles.count(), Type::kUint16, Type::kUint16);
  } else {
    const Type wide = config.moments == Moments::kNearest ? Type::kFloat32 : Type::kBFloat16;
    take("mu", size, wide, Type::kBFloat16);
    take("nu", size, wide, Type::kBFloat16);
  }
  if (config.rounding == Rounding::kCompensated) take("residual", size, Type::kInt8, Type::kInt8);
  if (config.rounding == Rounding::kSplit) take("residual", size, Type::kInt16, Type::kInt16);
  return stored;
}

// 0 for a leaf without elements.
int64_t blocks_of(const Leaf& leaf) { return leaf.tiles.width > 0 ? leaf.tiles.count() : 0; }

void point_to(const Config& config, const Stored& stored, Leaf& leaf) {
  const auto at = [&](int n) { return moved<void>(stored.pairs[n].old, stored.pairs[n].now); };
  int count = 2;
  if (config.moments == Moments::kCodes) {
    leaf.mu = static_cast<int8_t*>(at(0));
    leaf.nu = static_cast<uint8_t*>(at(1));
    leaf.scale = static_cast<uint16_t*>(at(2));
    count = 3;
  } else {
    leaf.m = {at(0), stored.pairs[0].old.type == Type::kBFloat16};
    leaf.v = {at(1), stored.pairs[1].old.type == Type::kBFloat16};
  }
  if (stored.count > count) leaf.residual = at(count);
}

}  // namespace

std::string read_call(const Config& config, const std::vector<int64_t>& tiles,
                      const std::vector<Array>& arguments, const std::vector<Array>& results,
                      Call& call) {
  const int64_t leaves = static_cast<int64_t>(tiles.size()) / kTiles;
  Reader given("Argument", arguments), wanted("Result", results);
  const Array floats = given.take("scalars", sizeof(Scalars) / sizeof(float), Type::kFloat32);
  const Array words = given.take("noise", sizeof(Noise) / sizeof(uint32_t) + leaves, Type::kUint32);
  if (tiles.size() % kTiles != 0) return "tiles are not seven numbers a leaf";
  if (given.failed()) return given.problem_at_end();
  const uint32_t* places = static_cast<const uint32_t*>(words.data) + 4;
  std::vector<Stored> stored;
  stored.reserve(leaves);
  call.leaves.reserve(leaves);
  call.config = config;
  for (int64_t n = 0; n < leaves; ++n) {
    Leaf leaf{};
    leaf.tiles = tiles_of(&tiles[n * kTiles], places[n]);
    const int64_t size = size_of(leaf.tiles, config.moments == Moments::kCodes);
    if (size < 0) return "leaf " + std::to_string(n) + " has tiles that do not fit together";
    stored.push_back(take_leaf(config, given, wanted, size, leaf));
    call.leaves.push_back(leaf);
  }
  for (const std::string& problem : {given.problem_at_end(), wanted.problem_at_end()}) {
    if (!problem.empty()) return problem;
  }
  std::memcpy(&call.scalars, floats.data, sizeof(Scalars));
  std::memcpy(&call.noise, words.data, sizeof(Noise));
  for (int64_t n = 0; n < leaves; ++n) point_to(config, stored[n], call.leaves[n]);
  return "";
}

std::vector<Piece> pieces(const std::vector<Leaf>& leaves, int64_t threads) {
  // As long as possible while all threads have some: reading ahead works best on long pieces.
  constexpr int64_t kLeast = 1 << 14, kMost = 1 << 18;
  int64_t total = 0;
  for (const Leaf& leaf : leaves) total += blocks_of(leaf) * leaf.tiles.length;
  const int64_t aim = std::clamp(total / (8 * std::max<int64_t>(threads, 1)), kLeast, kMost);
  std::vector<Piece> found;
  int64_t room = 0;  // elements that the last piece can still take
  for (int64_t n = 0; n < static_cast<int64_t>(leaves.size()); ++n) {
    const int64_t count = blocks_of(leaves[n]), length = leaves[n].tiles.length;
    for (int64_t begin = 0; begin < count;) {
      if (room <= 0) {
        found.push_back({n, begin, n, begin});
        room = aim;
      }
      const int64_t taken = std::min(count - begin, std::max<int64_t>(1, room / length));
      begin += taken;
      room -= taken * length;
      found.back().last = n;
      found.back().end = begin;
    }
  }
  return found;
}

void run(const Call& call, const Piece& piece, Kernel kernel) {
  for (int64_t n = piece.leaf; n <= piece.last; ++n) {
    const Leaf& leaf = call.leaves[n];
    const int64_t begin = n == piece.leaf ? piece.begin : 0;
    const int64_t end = n == piece.last ? piece.end : blocks_of(leaf);
    kernel(call.config, call.scalars, call.noise, leaf, begin, end);
  }
}

}  // namespace functional_adam
