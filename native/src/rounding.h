// Stochastic rounding to bfloat16, and the residuals of 16-bit parameters.
// functional_adam/_storage/rounding.py and residual.py give the reasons.
#ifndef FUNCTIONAL_ADAM_ROUNDING_H_
#define FUNCTIONAL_ADAM_ROUNDING_H_

#include "noise.h"
#include "numbers.h"

namespace {

// x with this many of its last bits dropped, rounded up or down so that the mean is x.
FA_INLINE float to_grid(float x, int dropped, uint32_t random) {
  const int32_t carried = sum(size_bits(x), static_cast<int32_t>(random >> (32 - dropped)));
  const float rounded = from_bits(carried & -(1 << dropped));
  return is_finite(x) ? with_sign(rounded, x) : x;
}

// x, a result of arithmetic, in bfloat16, up or down so that the mean is x; finite stays finite.
FA_INLINE int32_t stochastic(float x, uint32_t random) {
  constexpr int32_t kLargest = 0x7F7F0000;
  const int32_t size = size_bits(x);
  const int32_t carried = lesser(sum(size, static_cast<int32_t>(random >> 16)), kLargest + 0xFFFF);
  const int32_t rounded = (size < kInfinite ? carried : size) | (bits_of(x) & kSign);
  return static_cast<int32_t>(static_cast<uint32_t>(rounded) >> 16);
}

// Rounds to nearest, ties away from 0.
FA_INLINE float nearest_half(float x) {
  return is_finite(x) ? from_bits(sum(bits_of(x), 1 << 15) & -(1 << 16)) : x;
}

// Rounds to nearest, ties up.
FA_INLINE float up_from_half_way(float x) {
  const float size = lesser(power(x), 0x1p127f);
  return widened(bfloat16(fused(size, 0x1p-19f, x)));
}

// The distance from a bfloat16 to its neighbor, over 2**8.
FA_INLINE float unit_of(float theta) {
  return lesser(greater(power(theta), 0x1p-111f), 0x1p127f) * 0x1p-15f;
}

FA_INLINE int32_t compensated_code(float x, float theta, uint32_t random) {
  // A division by a power of two.
  const float missing = (x - theta) * from_bits((254 << 23) - bits_of(unit_of(theta)));
  const float code = lesser(greater(std::floor(missing + fraction(random)), -128.0f), 127.0f);
  return is_finite(missing) ? static_cast<int32_t>(code) : 0;
}

FA_INLINE int32_t split_code(float x, float theta) {
  const int32_t distance = difference(bits_of(x), bits_of(theta));
  const int32_t code = lesser(greater(distance, -(1 << 15)), (1 << 15) - 1);
  const bool same_sign = (bits_of(x) ^ bits_of(theta)) >= 0;
  return (same_sign & is_finite(theta)) ? code : 0;
}

// The float32 weight of a parameter and its residual.
FA_INLINE float compensated_weight(float theta, int32_t code) {
  return fused(static_cast<float>(code), unit_of(theta), theta);
}
FA_INLINE float split_weight(float theta, int32_t code) {
  return from_bits(sum(bits_of(theta), code));
}

// The update from theta to `goal`; an unchanged parameter adds -0.
FA_INLINE float way(float theta, float goal) { return goal == theta ? -0.0f : goal - theta; }

}  // namespace

#endif  // FUNCTIONAL_ADAM_ROUNDING_H_
