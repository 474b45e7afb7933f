// The 8-bit code of both moments of a block. functional_adam/_storage/int8.py gives the reasons.
#ifndef FUNCTIONAL_ADAM_CODES_H_
#define FUNCTIONAL_ADAM_CODES_H_

#include "noise.h"
#include "numbers.h"

namespace {

// ---- Scales and units ----

constexpr int32_t kLargestScale = 253;
constexpr int32_t kRise = 4;
constexpr int32_t kMiddle = 12;
constexpr int32_t kCoarse = 20;
constexpr int32_t kFew = 16;
constexpr int kGroups = 32;  // 16 if 32 does not divide a block
constexpr int kGroupBits = 5;

FA_INLINE int32_t positive_and_finite(int32_t bits) {
  return ((bits > 0) & (bits < kInfinite)) ? bits : 0;
}

// The largest biased exponent of each group (every `groups`th element), then zeros.
FA_INLINE void exponents(const float* v, int n, int groups, int32_t* out) {
  for (int k = 0; k < kGroups; ++k) out[k] = 0;
  int i = 0;
  for (; i + groups <= n; i += groups) {
    if (groups == kGroups) {
      for (int k = 0; k < kGroups; ++k) out[k] = greater(out[k], positive_and_finite(bits_of(v[i + k])));
    } else {
      for (int k = 0; k < kGroups / 2; ++k) out[k] = greater(out[k], positive_and_finite(bits_of(v[i + k])));
    }
  }
  for (int k = 0; i + k < n; ++k) out[k] = greater(out[k], positive_and_finite(bits_of(v[i + k])));
  for (int k = 0; k < kGroups; ++k) out[k] >>= 23;
}

// The largest of 32 numbers.
FA_INLINE int32_t largest(const int32_t* x) {
  int32_t most = x[0];
  for (int k = 1; k < kGroups; ++k) most = greater(most, x[k]);
  return most;
}

// The fourth largest exponent; with few groups the second largest, or else the largest.
FA_INLINE int32_t usual_of(const int32_t* exponents, bool few) {
  int32_t keys[kGroups], ranks[4];
  for (int k = 0; k < kGroups; ++k) keys[k] = shifted(exponents[k], kGroupBits) | k;
  for (int rank = 0; rank < 4; ++rank) {
    const int32_t key = largest(keys);
    ranks[rank] = key >> kGroupBits;
    for (int k = 0; k < kGroups; ++k) keys[k] = keys[k] < key ? keys[k] : 0;
  }
  return few ? (ranks[1] > 0 ? ranks[1] : ranks[0]) : ranks[3];
}

// The scale of a block with these exponents, whose scale was `old`.
FA_INLINE int32_t next_scale(const int32_t* exponents, int32_t old) {
  int32_t counts = 0;  // two sums in one number
  for (int k = 0; k < kGroups; ++k) {
    counts += (exponents[k] > 0 ? 1 : 0) + (exponents[k] > old + kRise ? 1 << 16 : 0);
  }
  const int32_t alive = counts & 0xFFFF, rose = counts >> 16;
  const bool few = alive < kFew;
  int32_t bound = old + (few || rose * 8 < alive ? kRise : kMiddle);
  const bool is_new = few ? rose * 8 >= alive : rose * 4 - 1 >= alive;
  // This is rare, and ranking takes time.
  if (is_new) bound = greater(bound, usual_of(exponents, few) + (few ? kCoarse : kMiddle));
  return lesser(largest(exponents), lesser(bound, kLargestScale));
}

// ---- Roots ----

constexpr int kStep = 18;
constexpr int32_t kBends[2] = {128 << kStep, (3 * 128 + 2 * 96) << kStep};
constexpr int32_t kDeepest = (254 << (kStep + 2)) - kBends[1];

FA_INLINE int32_t top(int32_t scale) { return shifted(scale + 128, 22); }

FA_INLINE int32_t root_code(float w, int32_t top, uint32_t random) {
  const int32_t depth = difference(top, size_bits(w));
  int32_t steps = lesser(depth, sum(depth, kBends[0]) >> 1);
  steps = lesser(steps, sum(depth, kBends[1]) >> 2);
  steps = sum(steps, static_cast<int32_t>(random >> (32 - kStep))) >> kStep;
  const int32_t code = 255 - lesser(greater(steps, 0), 254);
  return size_bits(w) == 0 ? 0 : code;
}

FA_INLINE float root(int32_t code, int32_t top) {
  const int32_t steps = (255 - code) << kStep;
  const int32_t depth = greater(greater(steps, (steps << 1) - kBends[0]), (steps << 2) - kBends[1]);
  return code == 0 ? 0.0f : from_bits(top - depth);
}

// ---- Ratios ----

constexpr int32_t kNan = -128;
constexpr int kPoint = 14;
constexpr float kFixed = 1.5f * 512;
constexpr int32_t kFixedBits = 0x44400000;

FA_INLINE float position(float size) {
  return lesser(lesser(size * 256.0f, size * 128.0f + 24.0f), size * 64.0f + 63.0f);
}

FA_INLINE int32_t ratio_code(float r, float inverse, float last, uint32_t random) {
  const float code = lesser(position(std::fabs(r) * inverse), last);
  const int32_t fixed = bits_of(with_sign(code, r) + kFixed) - kFixedBits;
  const int32_t rounded = sum(fixed, static_cast<int32_t>(random >> (32 - kPoint))) >> kPoint;
  return is_nan(r) ? kNan : rounded;
}

FA_INLINE float ratio(int32_t code, float unit) {
  const float code_as_float = static_cast<float>(code), size = std::fabs(code_as_float);
  const float low = size * (1 / 256.0f), middle = size * (1 / 128.0f) - 0.1875f;
  const float r = greater(greater(low, middle), size * (1 / 64.0f) - 0.984375f) * unit;
  return code == kNan ? NAN : with_sign(r, code_as_float);
}

// The unit of the ratios of a block, from the bits of the largest, as `ratio_bits` computes them.
FA_INLINE int32_t next_unit(int32_t largest) {
  const int32_t exponent = largest >> 23;
  return exponent > 0 ? (exponent + 1) & 255 : 0;
}

// About the bits of |m| / sqrt(v), plus an eighth of an octave; 0 if there is no such number.
FA_INLINE int32_t ratio_bits(float m, float v, int32_t least) {
  const int32_t size = size_bits(m), square = bits_of(v);
  const bool known = (size > 0) & (size < kInfinite) & (square > 0) & (square < kInfinite);
  const int32_t root = greater((square >> 1) + (127 << 22), least);
  return known ? positive_and_finite(sum(size - root, (127 << 23) + (1 << 20))) : 0;
}

// ---- Blocks ----

FA_INLINE void decode(const int32_t* ratios, const int32_t* roots, uint16_t scale, int n, float* m,
                      float* v) {
  const int32_t end = top(scale & 255);
  const float unit = power_of(scale >> 8);
  FA_EACH
  for (int i = 0; i < n; ++i) {
    const float w = root(roots[i], end);
    m[i] = ratio(ratios[i], unit) * w;
    v[i] = w * w;
  }
}

// The codes of m and v, with w = sqrt(v); returns the scale and unit of their block.
FA_INLINE uint16_t encode(const float* m, const float* v, const float* w, const uint32_t* random,
                          int n, int groups, uint16_t old, float bound, const Noise& noise,
                          int32_t* ratios, int32_t* roots) {
  int32_t of_groups[kGroups];
  exponents(v, n, groups, of_groups);
  const int32_t scale = next_scale(of_groups, old & 255);
  const int32_t end = top(scale), least = end - kDeepest;
  int32_t most = 0;
  FA_EACH
  for (int i = 0; i < n; ++i) most = greater(most, ratio_bits(m[i], v[i], least));
  const int32_t unit = next_unit(most);
  const float inverse = power_of(254 - unit);
  const float within = lesser(bound, power_of(greater(unit, 1)));
  const float last = lesser(std::floor(position(within * inverse)), 127.0f);
  const float smallest = from_bits(least);
  FA_EACH
  for (int i = 0; i < n; ++i) {
    const float quotient = m[i] / (w[i] < smallest ? smallest : w[i]);
    const float r = bits_of(w[i]) == 0 ? quotient * 0.0f : quotient;
    ratios[i] = ratio_code(r, inverse, last, mu_bits(random[i], noise));
    roots[i] = root_code(w[i], end, nu_bits(random[i], noise));
  }
  return static_cast<uint16_t>(scale | (unit << 8));
}

}  // namespace

#endif  // FUNCTIONAL_ADAM_CODES_H_
