// Every kernel that this processor runs gives, bit for bit, what the same source does without the
// compiler's vectors and optimisations; with fused operations or without them, as it has them.
#include <algorithm>
#include <cmath>
#include <map>

#include "operands.h"
#include "pool.h"
#include "problem.h"
#include "threads.h"

namespace functional_adam {

#define DECLARE(name) \
  void name(const Config&, const Scalars&, const Noise&, const Leaf&, int64_t begin, int64_t end)
DECLARE(step_plain);
DECLARE(step_plain_fused);

}  // namespace functional_adam

using namespace functional_adam;

namespace {

struct Case {
  Config config;
  Types types;
};

std::vector<Case> all_cases() {
  std::vector<Case> found;
  const auto type = [](int bit) { return bit != 0 ? Type::kBFloat16 : Type::kFloat32; };
  int n = 0;
  for (int moments = 0; moments < 3; ++moments) {
    for (int rounding = 0; rounding < 4; ++rounding) {
      for (int flags = 0; flags < 32; ++flags) {
        const Config config{static_cast<Moments>(moments), static_cast<Rounding>(rounding),
                            (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, (flags & 8) != 0,
                            (flags & 16) != 0};
        for (int repeat = 0; repeat < 4; ++repeat) {
          const int bits = n++ * 11 % 32;  // each with each, over the flags
          found.push_back({config, {type(bits & 1), type(bits & 2), type(bits & 4), type(bits & 8),
                                    type(bits & 16)}});
        }
      }
    }
  }
  return found;
}

std::string name_of(const Case& c) {
  std::string name;
  for (int n : {static_cast<int>(c.config.moments), static_cast<int>(c.config.rounding),
                int{c.config.applies}, int{c.config.decays}, int{c.config.has_l2},
                int{c.config.has_eps_root}, int{c.config.looks_ahead},
                static_cast<int>(c.types.g), static_cast<int>(c.types.theta),
                static_cast<int>(c.types.out), static_cast<int>(c.types.m),
                static_cast<int>(c.types.v)}) {
    name += std::to_string(n) + " ";
  }
  return name;
}

Tiles tiles_of(int64_t planes, int64_t rows, int64_t width, int64_t length, uint32_t place) {
  const auto distance = static_cast<uint32_t>(width + 7);
  return {planes, rows, width, std::max<int64_t>(1, (width + length - 1) / length), length, place,
          distance, distance * static_cast<uint32_t>(rows)};
}

// The step, on this thread or on those of a pool.
Problem stepped(const Case& c, const std::vector<Tiles>& leaves, bool in_place, uint64_t seed,
                Kernel kernel, Threads* threads) {
  Problem p = make_problem(c.config, c.types, leaves, in_place, seed);
  Call call;
  const std::string problem = p.read(call);
  CHECK(problem.empty(), name_of(c) << problem);
  if (threads != nullptr) {
    const std::vector<Piece> work = pieces(call.leaves, 1 << 20);
    parallel(*threads, static_cast<int64_t>(work.size()),
             [&](int64_t n) noexcept { run(call, work[n], kernel); });
  } else {
    for (const Piece& piece : pieces(call.leaves, 1)) run(call, piece, kernel);
  }
  for (const Buffer& buffer : p.buffers) CHECK(buffer.intact(), name_of(c) << "before an array");
  return p;
}

// Of NaN, only that it is one: which of two a sum passes on is the compiler's choice.
bool same(const Buffer& a, const Buffer& b, int64_t i) {
  switch (a.type()) {
    case Type::kFloat32: {
      const auto x = a.get<float>(i), y = b.get<float>(i);
      return a.get<uint32_t>(i) == b.get<uint32_t>(i) || (std::isnan(x) && std::isnan(y));
    }
    case Type::kBFloat16: {
      const int x = a.get<uint16_t>(i), y = b.get<uint16_t>(i);
      return x == y || ((x & 0x7FFF) > 0x7F80 && (y & 0x7FFF) > 0x7F80);
    }
    default: return std::memcmp(a.data() + i * bytes_of_type(a.type()),
                                b.data() + i * bytes_of_type(b.type()), bytes_of_type(a.type())) == 0;
  }
}

void compare(const Problem& a, const Problem& b, const std::string& what) {
  for (size_t n = 0; n < a.results.size(); ++n) {
    const Buffer &x = a.buffers[a.results[n]], &y = b.buffers[b.results[n]];
    for (int64_t i = 0; i < x.size(); ++i) {
      CHECK(same(x, y, i), what << ": result " << n << ", element " << i << " of " << x.size());
    }
  }
}

// Of all results, to compare compilers and machines; without what `same` does not compare.
uint64_t digest = 0;

void add_to_digest(const Problem& p) {
  for (size_t n : p.results) {
    const Buffer& x = p.buffers[n];
    for (int64_t i = 0; i < x.size(); ++i) {
      uint64_t bits = 0;
      std::memcpy(&bits, x.data() + i * bytes_of_type(x.type()), bytes_of_type(x.type()));
      const bool nan = (x.type() == Type::kFloat32 && (bits & 0x7FFFFFFF) > 0x7F800000) ||
                       (x.type() == Type::kBFloat16 && (bits & 0x7FFF) > 0x7F80);
      digest = Random(digest ^ (nan ? 1 : bits)).bits();
    }
  }
}

bool is_fused(const Named& named) { return std::string(named.name) != "x86-64-v2"; }

void check(const Case& c, const std::vector<Tiles>& leaves, uint64_t seed, Threads& threads) {
  for (int n = 0; n < kKernels; ++n) {
    const Named named = kernel_at(n);
    if (named.kernel == nullptr) continue;
    const Kernel plain = is_fused(named) ? &step_plain_fused : &step_plain;
    const Problem right = stepped(c, leaves, false, seed, plain, nullptr);
    const std::string what = std::string(named.name) + " " + name_of(c);
    if (n == 0) add_to_digest(right);
    compare(stepped(c, leaves, false, seed, named.kernel, nullptr), right, what);
    // In place, arguments are other arrays of the same numbers.
    compare(stepped(c, leaves, true, seed, named.kernel, &threads),
            stepped(c, leaves, true, seed, plain, nullptr), what + "in place");
  }
}

// Against double precision: a step without anything but Adam.
void check_numbers() {
  const Case c{{Moments::kNearest, Rounding::kNone, true, true, false, false, false},
               {Type::kFloat32, Type::kFloat32, Type::kFloat32, Type::kFloat32, Type::kFloat32}};
  const std::vector<Tiles> leaves = {tiles_of(1, 1, 5000, 128, 0)};
  for (uint64_t seed = 0; seed < 4; ++seed) {  // both forms of averages
    const Problem before = make_problem(c.config, c.types, leaves, false, seed);
    const Problem after = stepped(c, leaves, false, seed, kernel(), nullptr);
    const Scalars s = before.buffers[0].get<Scalars>(0);
    const auto value = [](const Problem& p, size_t array, int64_t i) {
      return static_cast<double>(p.buffers[array].get<float>(i));
    };
    int64_t checked = 0;
    for (int64_t i = 0; i < 5000; ++i) {
      // Arguments: scalars, noise, gradient, parameter, m, v. Each result follows its argument.
      const double g = value(before, 2, i), theta = value(before, 3, i);
      const double m = s.b1.keep * value(before, 5, i) + s.b1.complement * g;
      const double v = s.b2.keep * value(before, 7, i) + s.b2.complement * g * g;
      const double u = s.step_size * m / (std::sqrt(v) + s.eps) + s.decay * theta;
      const double size = std::fabs(m) + std::fabs(g) + std::fabs(value(before, 5, i));
      const bool within = value(before, 7, i) >= 0 && std::isfinite(u) && v > 1e-30 && v < 1e38 && size > 1e-30 &&
                          size / std::sqrt(v) < 1e37;
      if (!within) continue;
      const double near = 1e-6, of_u = near * (std::fabs(theta) + std::fabs(u)) +
                                       4 * near * s.step_size * size / std::sqrt(v);
      CHECK(std::fabs(value(after, 6, i) - m) <= near * size, i);
      CHECK(std::fabs(value(after, 8, i) - v) <= 2 * near * v, i << " " << v);
      CHECK(std::fabs(value(after, 4, i) - (theta - u)) <= of_u, i << ": " << theta << ", " << u);
      ++checked;
    }
    CHECK(checked > 2000, checked);
  }
}

}  // namespace

int main() {
  Threads threads(3);
  uint64_t seed = 0;
  Random random(29);
  for (const Case& c : all_cases()) {
    // One number a line: compilers choose the order in which they compute arguments.
    const auto place = static_cast<uint32_t>(random.bits());
    const int64_t width = 1 + random.below(300), rows = random.below(4), length = 16 * (1 + random.below(64));
    const int64_t short_length = 16 * (1 + random.below(4));
    const std::vector<Tiles> leaves = {tiles_of(1, 1, width, 128, place),
                                       tiles_of(1 + rows % 2, rows, width / 2, length, 77),
                                       tiles_of(2, 2, 1 + width / 3, short_length, 0xFFFFFF00u)};
    check(c, leaves, ++seed, threads);
  }
  // Every size of a leaf of one block or two, and every length of a block.
  const std::vector<Case> cases = all_cases();
  for (int64_t n = 1; n <= 200; ++n) {
    for (int64_t length : {128, 48, 1024}) {
      check(cases[static_cast<size_t>(random.below(static_cast<int64_t>(cases.size())))],
            {tiles_of(1, 1, n, length, 3)}, ++seed, threads);
    }
  }
  for (int64_t length = 16; length <= kLongest; length += 16) {
    for (int64_t width : {length, 2 * length - 1, length / 2 + 1}) {
      for (int moments = 0; moments < 3; ++moments) {
        Case c = cases[static_cast<size_t>(random.below(static_cast<int64_t>(cases.size())))];
        c.config.moments = static_cast<Moments>(moments);
        check(c, {tiles_of(1, 1 + random.below(2), width, length, 3)}, ++seed, threads);
      }
    }
  }
  // Lengths that only floats have.
  for (int64_t length = 1; length <= 200; ++length) {
    Case c = cases[static_cast<size_t>(random.below(static_cast<int64_t>(cases.size())))];
    c.config.moments = length % 2 == 0 ? Moments::kNearest : Moments::kStochastic;
    check(c, {tiles_of(1, 2, 2 * length - 1 + length % 3, length, 3)}, ++seed, threads);
  }
  // More pieces than threads.
  check(cases[5], {tiles_of(1, 1, 100000, 128, 3), tiles_of(1, 7, 9000, 128, 9)}, ++seed, threads);
  check_numbers();
  std::cout << "Of the first kernel's results: " << std::hex << digest << std::endl;
  return 0;
}
