// The step of some blocks of a leaf. Compiled once per instruction set, under a name of its own
// (FA_KERNEL). Each stage is a loop over a block, which stays in the nearest cache.
#include <algorithm>

#include "codes.h"
#include "rounding.h"

namespace {

// A block of a leaf, and its place.
struct Block {
  int64_t at;      // number of its first element in the part
  int64_t number;  // its number among the blocks
  uint32_t place;  // place of its first element in the whole leaf
};

// The numbers of a block; 32-bit floats are used where they are in memory. All numbers have 32
// bits, because loops that also have shorter ones would need several vectors at a time, for which
// there are not enough registers. Shorter numbers are widened and narrowed in separate loops.
template <int kLength>
struct Room {
  alignas(64) float g[kLength], theta[kLength], weight[kLength];
  alignas(64) float m[kLength], v[kLength], w[kLength], u[kLength];
  alignas(64) uint32_t random[kLength];
  alignas(64) int32_t codes[2][kLength];
};

// ---- Stages ----

template <class T>
FA_INLINE T* at(void* data, const Block& block) {
  return static_cast<T*>(data) + block.at;
}

// How many numbers are computed for a block of n: whole vectors, because a remainder would be
// computed one by one. The extra numbers are zeros and are not written.
FA_INLINE int whole_vectors(int n) { return (n + 15) & ~15; }

template <class From, class To>
FA_INLINE void widen(const From* from, int n, To* room) {
  FA_EACH
  for (int i = 0; i < n; ++i) room[i] = from[i];
  for (int i = n; i < whole_vectors(n); ++i) room[i] = 0;
}

template <class T>
FA_INLINE void narrow(const int32_t* numbers, int n, T* out) {
  FA_EACH
  for (int i = 0; i < n; ++i) out[i] = static_cast<T>(numbers[i]);
}

FA_INLINE const float* read(const Floats& x, const Block& block, int n, int32_t* bits,
                            float* room) {
  if (x.is_short) {
    widen(at<const uint16_t>(x.data, block), n, bits);
    FA_EACH
    for (int i = 0; i < whole_vectors(n); ++i) room[i] = widened(bits[i]);
    return room;
  }
  const float* numbers = at<const float>(x.data, block);
  if (n == whole_vectors(n)) return numbers;
  widen(numbers, n, room);
  return room;
}

FA_INLINE void write(const Floats& x, const Block& block, int n, const float* from) {
  if (x.is_short) {
    uint16_t* halves = at<uint16_t>(x.data, block);
    FA_EACH
    for (int i = 0; i < n; ++i) halves[i] = static_cast<uint16_t>(bfloat16(from[i]));
  } else {
    std::memcpy(at<float>(x.data, block), from, sizeof(float) * n);
  }
}

// The weights of parameters and their residuals.
template <class Code, class Weight>
FA_INLINE void add_residual(const Code* residual, int n, int32_t* codes, const float* theta,
                            float* weights, Weight weight) {
  const int all = whole_vectors(n);
  widen(residual, n, codes);
  FA_EACH
  for (int i = 0; i < all; ++i) weights[i] = weight(theta[i], codes[i]);
}

// b a + (1 - b) x, written as in functional_adam/_equations/numerics.py.
template <bool kSubtracts>
FA_INLINE float average(float a, float x, const Rate& b) {
  if (kSubtracts) return fused(b.complement, x - a, a);
  const float rest = fused(-b.subtract, a, x);  // x, unless a is infinite
  return fused(b.keep, a, b.complement * rest);
}

template <bool kFirst, bool kSecond>
FA_INLINE void advance(const Scalars& s, int n, const float* g, const float* old_m,
                       const float* old_v, float* m, float* v) {
  FA_EACH
  for (int i = 0; i < n; ++i) {
    const float x = g[i], old = old_v[i];
    // XLA's compiler fuses the square and the difference, if there is a difference.
    const float square = kSecond ? fused(s.b2.complement, fused(x, x, -old), old)
                                 : average<false>(old, x * x, s.b2);
    v[i] = bits_of(old) == kInfinite ? old : square;
    m[i] = average<kFirst>(old_m[i], x, s.b1);
  }
}

FA_INLINE void advance(const Scalars& s, int n, const float* g, const float* old_m,
                       const float* old_v, float* m, float* v) {
  const bool first = s.b1.subtract != 0, second = s.b2.subtract != 0;
  if (first && second) return advance<true, true>(s, n, g, old_m, old_v, m, v);
  if (first) return advance<true, false>(s, n, g, old_m, old_v, m, v);
  if (second) return advance<false, true>(s, n, g, old_m, old_v, m, v);
  advance<false, false>(s, n, g, old_m, old_v, m, v);
}

// `numerator(i)` over `root(i)` + eps, times the step size; then the decay.
template <class Numerator, class Root>
FA_INLINE void updates(const Scalars& s, int n, float* u, Numerator numerator, Root root) {
  FA_EACH
  for (int i = 0; i < n; ++i) u[i] = -(s.step_size * (numerator(i) / (root(i) + s.eps)));
}

FA_INLINE void updates(const Config& config, const Scalars& s, int n, const float* g,
                       const float* m, const float* v, const float* w, const float* theta,
                       float* u) {
  const auto momentum = [=](int i) { return m[i]; };
  const auto ahead = [=](int i) {
    const float later = s.ahead * m[i], now = s.now * g[i];
    return later + now;
  };
  const auto root = [=](int i) { return w[i]; };
  const auto root_of_sum = [=](int i) { return std::sqrt(v[i] + s.eps_root); };
  if (config.has_eps_root) {
    if (config.looks_ahead) updates(s, n, u, ahead, root_of_sum);
    else updates(s, n, u, momentum, root_of_sum);
  } else {
    if (config.looks_ahead) updates(s, n, u, ahead, root);
    else updates(s, n, u, momentum, root);
  }
  if (!config.decays) return;
  FA_EACH
  for (int i = 0; i < n; ++i) {
    const float decay = s.decay * theta[i];
    u[i] = u[i] - decay;
  }
}

// The parameter or the update, for a parameter that is not rounded.
FA_INLINE void land(const Config& config, const Leaf& leaf, const Block& block, int n,
                    const float* theta, float* u) {
  const int all = whole_vectors(n);
  if (config.applies) {
    // First in the dtype of an update, the wider of those of gradient and parameter.
    if (leaf.g.is_short && leaf.theta.is_short) {
      FA_EACH
      for (int i = 0; i < all; ++i) u[i] = widened(bfloat16(u[i]));
    }
    FA_EACH
    for (int i = 0; i < all; ++i) u[i] = theta[i] + u[i];
  }
  write(leaf.out, block, n, u);
}

// The same for a parameter that is rounded: `goal(x, i)` is the 16-bit number for the weight x, and
// `code(x, landed, i)` its residual. An update does not always land on its goal: it is a float32,
// and goal and parameter may differ by a factor of thousands.
template <class Goal, class Code>
FA_INLINE void land_rounded(int n, const float* theta, const float* weight, float* u,
                            int32_t* landed, int32_t* codes, Goal goal, Code code) {
  FA_EACH
  for (int i = 0; i < n; ++i) {
    float x = weight[i] + u[i];
    u[i] = way(theta[i], goal(x, i));
    landed[i] = bfloat16(theta[i] + u[i]);
    codes[i] = code(x, widened(landed[i]), i);
  }
}

template <int kLength>
FA_INLINE void land_rounded(const Config& config, const Noise& noise, const Leaf& leaf,
                            const Block& block, int n, Room<kLength>& room) {
  const uint32_t* random = room.random;
  const int all = whole_vectors(n);
  int32_t *landed = room.codes[0], *codes = room.codes[1];
  if (config.rounding == Rounding::kStochastic) {
    const auto goal = [=](float x, int i) {
      return widened(stochastic(x, theta_bits(random[i], noise)));
    };
    const auto none = [](float, float, int) { return 0; };
    land_rounded(all, room.theta, room.theta, room.u, landed, codes, goal, none);
  } else if (config.rounding == Rounding::kCompensated) {
    const auto goal = [=](float& x, int i) {
      x = to_grid(x, 8, code_bits(random[i], noise));
      return up_from_half_way(x);
    };
    const auto code = [=](float x, float landed, int i) {
      return compensated_code(x, landed, theta_bits(random[i], noise));
    };
    land_rounded(all, room.theta, room.weight, room.u, landed, codes, goal, code);
    narrow(codes, n, at<int8_t>(leaf.residual, block));
  } else {
    const auto goal = [](float x, int) { return nearest_half(x); };
    const auto code = [](float x, float landed, int) { return split_code(x, landed); };
    land_rounded(all, room.theta, room.weight, room.u, landed, codes, goal, code);
    narrow(codes, n, at<int16_t>(leaf.residual, block));
  }
  if (config.applies) narrow(landed, n, at<uint16_t>(leaf.out.data, block));
  else write(leaf.out, block, n, room.u);
}

// ---- The whole step ----

// The weights: parameters with their residuals.
template <int kLength>
FA_INLINE const float* weights(const Config& config, const Leaf& leaf, const Block& block, int n,
                               Room<kLength>& room) {
  const float* theta = read(leaf.theta, block, n, room.codes[0], room.theta);
  if (config.rounding == Rounding::kCompensated) {
    add_residual(at<const int8_t>(leaf.residual, block), n, room.codes[0], theta, room.weight,
                 compensated_weight);
    return room.weight;
  }
  if (config.rounding == Rounding::kSplit) {
    add_residual(at<const int16_t>(leaf.residual, block), n, room.codes[0], theta, room.weight,
                 split_weight);
    return room.weight;
  }
  return theta;
}

template <int kLength>
FA_INLINE void store(const Config& config, const Scalars& s, const Noise& noise, const Leaf& leaf,
                     const Block& block, int n, int groups, Room<kLength>& room) {
  const int all = whole_vectors(n);
  int32_t *first = room.codes[0], *second = room.codes[1];
  if (config.moments == Moments::kCodes) {
    uint16_t& scale = leaf.scale[block.number];
    scale = encode(room.m, room.v, room.w, room.random, all, groups, scale, s.bound, noise, first,
                   second);
    narrow(first, n, leaf.mu + block.at);
    narrow(second, n, leaf.nu + block.at);
  } else if (config.moments == Moments::kStochastic) {
    FA_EACH
    for (int i = 0; i < all; ++i) {
      first[i] = stochastic(room.m[i], mu_bits(room.random[i], noise));
      second[i] = stochastic(room.v[i], nu_bits(room.random[i], noise));
    }
    narrow(first, n, at<uint16_t>(leaf.m.data, block));
    narrow(second, n, at<uint16_t>(leaf.v.data, block));
  } else {
    write(leaf.m, block, n, room.m);
    write(leaf.v, block, n, room.v);
  }
}

template <int kLength>
FA_INLINE void step(const Config& config, const Scalars& s, const Noise& noise, const Leaf& leaf,
                    const Block& block, int n, int groups) {
  Room<kLength> room;
  const int all = whole_vectors(n);
  const bool rounds = config.rounding != Rounding::kNone;
  const float *g = read(leaf.g, block, n, room.codes[0], room.g), *theta = nullptr;
  const float *old_m = room.m, *old_v = room.v;
  if (config.moments == Moments::kCodes) {
    widen(leaf.mu + block.at, n, room.codes[0]);
    widen(leaf.nu + block.at, n, room.codes[1]);
    decode(room.codes[0], room.codes[1], leaf.scale[block.number], all, room.m, room.v);
  } else {
    old_m = read(leaf.m, block, n, room.codes[0], room.m);
    old_v = read(leaf.v, block, n, room.codes[0], room.v);
  }
  if (config.needs_theta()) theta = weights(config, leaf, block, n, room);
  if (config.has_l2) {
    FA_EACH
    for (int i = 0; i < all; ++i) room.g[i] = fused(s.l2, theta[i], g[i]);
    g = room.g;
  }
  advance(s, all, g, old_m, old_v, room.m, room.v);
  FA_EACH
  for (int i = 0; i < all; ++i) room.w[i] = std::sqrt(room.v[i]);
  updates(config, s, all, g, room.m, room.v, room.w, theta, room.u);
  if (config.moments != Moments::kNearest || rounds) {
    FA_EACH
    for (int i = 0; i < all; ++i) {
      room.random[i] = scrambled(block.place + static_cast<uint32_t>(i));
    }
  }
  store(config, s, noise, leaf, block, n, groups, room);
  if (rounds) {
    land_rounded(config, noise, leaf, block, n, room);
  } else {
    land(config, leaf, block, n, theta, room.u);
  }
}

}  // namespace

namespace functional_adam {

void FA_KERNEL(const Config& config, const Scalars& scalars, const Noise& words, const Leaf& leaf,
               int64_t begin, int64_t end) {
  constexpr int kUsual = 128;
  // Copies, which no write can change.
  const Scalars s = scalars;
  const Noise noise = words;
  const Tiles tiles = leaf.tiles;
  const int groups = tiles.length % kGroups == 0 ? kGroups : kGroups / 2;
  int64_t line = begin / tiles.blocks, in_line = begin % tiles.blocks;
  for (int64_t number = begin; number < end; ++number) {
    const int64_t first = in_line * tiles.length;
    const uint32_t place = tiles.place +
                           static_cast<uint32_t>(line / tiles.rows) * tiles.plane_distance +
                           static_cast<uint32_t>(line % tiles.rows) * tiles.row_distance;
    const Block block{line * tiles.width + first, number, place + static_cast<uint32_t>(first)};
    const int n = static_cast<int>(std::min(tiles.length, tiles.width - first));
    if (n == kUsual && groups == kGroups) {
      step<kUsual>(config, s, noise, leaf, block, kUsual, kGroups);
    } else {
      step<kLongest + 32>(config, s, noise, leaf, block, n, groups);
    }
    if (++in_line == tiles.blocks) {
      in_line = 0;
      ++line;
    }
  }
}

}  // namespace functional_adam
