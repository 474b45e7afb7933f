// Calls as XLA makes them: arrays of random numbers, in blocks of memory that end with them.
#ifndef FUNCTIONAL_ADAM_TESTS_PROBLEM_H_
#define FUNCTIONAL_ADAM_TESTS_PROBLEM_H_

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "operands.h"

namespace functional_adam {

inline int64_t bytes_of_type(Type type) {
  switch (type) {
    case Type::kFloat32:
    case Type::kUint32: return 4;
    case Type::kBFloat16:
    case Type::kInt16:
    case Type::kUint16: return 2;
    default: return 1;
  }
}

// Memory of its own for an array, `offset` elements after where it begins; the address sanitizer
// sees what is read or written after its end, and `intact` what is written before.
class Buffer {
 public:
  Buffer(Type type, int64_t size, int64_t offset)
      : type_(type), size_(size), lead_((offset + 1) * bytes_of_type(type)),
        memory_(new unsigned char[lead_ + bytes()]) {
    std::memset(memory_.get(), kLead, lead_);
    std::memset(data(), 0, bytes());
  }

  Array array() const { return {type_, data(), size_}; }
  unsigned char* data() const { return memory_.get() + lead_; }
  int64_t bytes() const { return size_ * bytes_of_type(type_); }
  int64_t size() const { return size_; }
  Type type() const { return type_; }

  template <class T>
  T get(int64_t i) const {
    T x;
    std::memcpy(&x, data() + i * sizeof(T), sizeof(T));
    return x;
  }
  template <class T>
  void set(int64_t i, T x) {
    std::memcpy(data() + i * sizeof(T), &x, sizeof(T));
  }

  bool intact() const {
    for (int64_t i = 0; i < lead_; ++i) {
      if (memory_[i] != kLead) return false;
    }
    return true;
  }

 private:
  static constexpr unsigned char kLead = 0xA5;

  Type type_;
  int64_t size_, lead_;
  std::unique_ptr<unsigned char[]> memory_;
};

// A float as training has them, and now and then one of the others.
inline float some_float(Random& random, bool positive, int spread) {
  const float edges[] = {0.0f,       -0.0f,   INFINITY, -INFINITY, NAN,  0x1p-149f, -0x1.8p-130f,
                         0x1.fep127f, -0x1p127f, 0x1p-126f, 1.0f,  -1.5f, 0x1.8p-8f,  0x1p-60f};
  float x = edges[random.below(14)];
  if (random.below(16) != 0) {
    const int exponent = static_cast<int>(random.below(spread)) - spread * 3 / 4;
    const double size = std::ldexp(1 + random.unit(), exponent);
    x = static_cast<float>(random.coin() ? size : -size);
  }
  return positive ? std::fabs(x) : x;
}

inline void fill(Buffer& buffer, Random& random, bool positive = false, int spread = 30) {
  for (int64_t i = 0; i < buffer.size(); ++i) {
    const float x = some_float(random, positive, spread);
    if (buffer.type() == Type::kFloat32) {
      buffer.set<float>(i, x);
    } else if (buffer.type() == Type::kBFloat16) {
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof bits);
      buffer.set<uint16_t>(i, static_cast<uint16_t>(std::isnan(x) ? 0x7FC0 : bits >> 16));
    } else {
      const uint64_t bits = random.bits();
      std::memcpy(buffer.data() + i * bytes_of_type(buffer.type()), &bits, bytes_of_type(buffer.type()));
    }
  }
}

// The dtypes that a call may choose.
struct Types {
  Type g, theta, out, m, v;
};

struct Problem {
  Config config{};
  std::vector<int64_t> tiles;
  std::vector<Buffer> buffers;          // arguments, then those results that have memory of their own
  std::vector<size_t> arguments, results;  // indices of buffers

  std::vector<Array> argument_arrays() const { return arrays(arguments); }
  std::vector<Array> result_arrays() const { return arrays(results); }

  std::string read(Call& call) const {
    return read_call(config, tiles, argument_arrays(), result_arrays(), call);
  }

 private:
  std::vector<Array> arrays(const std::vector<size_t>& indices) const {
    std::vector<Array> found;
    for (size_t n : indices) found.push_back(buffers[n].array());
    return found;
  }
};

inline Scalars some_scalars(Random& random) {
  const auto rate = [&](double least, double span) {
    const double b = least + span * random.unit();
    const bool subtracts = random.coin();
    return Rate{static_cast<float>(b), static_cast<float>(1 - b), subtracts ? static_cast<float>(b) : 0};
  };
  Scalars s{};
  s.b1 = rate(0.85, 0.1);
  s.b2 = rate(0.99, 0.009);
  s.eps = 1.3e-8f;
  s.eps_root = 3.1e-13f;
  s.l2 = 0.013f;
  s.step_size = static_cast<float>(0.0007 * (1 + random.unit()));
  s.decay = 0.00019f;
  s.ahead = 0.93f;
  s.now = 0.071f;
  s.bound = 7.3f;
  return s;
}

// Makes the arrays of a call in the order of functional_adam/_kernels/native.py.
inline Problem make_problem(const Config& config, const Types& types,
                            const std::vector<Tiles>& leaves, bool in_place, uint64_t seed) {
  Random random(seed);
  Problem p;
  p.config = config;
  const auto add = [&](Type type, int64_t size) -> Buffer& {
    p.buffers.emplace_back(type, size, random.below(4));
    return p.buffers.back();
  };
  const auto take = [&](Type type, int64_t size, bool positive, int spread) {
    fill(add(type, size), random, positive, spread);
    p.arguments.push_back(p.buffers.size() - 1);
  };
  const auto give = [&](Type type, int64_t size) {
    add(type, size);
    p.results.push_back(p.buffers.size() - 1);
  };
  const auto keep = [&](Type type, int64_t size, bool positive, int spread) {
    take(type, size, positive, spread);
    if (in_place) p.results.push_back(p.buffers.size() - 1);
    else give(type, size);
  };
  const Scalars scalars = some_scalars(random);
  take(Type::kFloat32, sizeof(Scalars) / sizeof(float), false, 1);
  std::memcpy(p.buffers.back().data(), &scalars, sizeof scalars);
  take(Type::kUint32, 4 + static_cast<int64_t>(leaves.size()), false, 1);
  for (const Tiles& tiles : leaves) {
    const int64_t size = tiles.planes * tiles.rows * tiles.width;
    for (int64_t n : {tiles.planes, tiles.rows, tiles.width, tiles.blocks, tiles.length,
                      int64_t{tiles.row_distance}, int64_t{tiles.plane_distance}}) {
      p.tiles.push_back(n);
    }
    take(types.g, size, false, 30);
    const bool rounds = config.rounding != Rounding::kNone;
    const Type theta = rounds ? Type::kBFloat16 : types.theta;
    if (!config.needs_theta()) give(types.out, size);
    else if (config.applies) keep(theta, size, false, 12);
    else {
      take(theta, size, false, 12);
      give(rounds ? Type::kFloat32 : types.out, size);
    }
    if (config.moments == Moments::kCodes) {
      keep(Type::kInt8, size, false, 1);
      keep(Type::kUint8, size, false, 1);
      keep(Type::kUint16, tiles.count(), false, 1);
    } else {
      const bool nearest = config.moments == Moments::kNearest;
      keep(nearest ? types.m : Type::kBFloat16, size, false, 30);
      keep(nearest ? types.v : Type::kBFloat16, size, random.below(8) != 0, 60);  // < 0: a broken file's
    }
    if (config.rounding == Rounding::kCompensated) keep(Type::kInt8, size, false, 1);
    if (config.rounding == Rounding::kSplit) keep(Type::kInt16, size, false, 1);
  }
  return p;
}

}  // namespace functional_adam

#endif  // FUNCTIONAL_ADAM_TESTS_PROBLEM_H_
