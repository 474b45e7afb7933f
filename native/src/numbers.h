// Floats and their bits, in forms that compilers vectorize.
//
// This file and those that it includes are compiled once per instruction set. Everything in them
// has internal linkage, so that the linker cannot mix up the code of two sets.
#ifndef FUNCTIONAL_ADAM_NUMBERS_H_
#define FUNCTIONAL_ADAM_NUMBERS_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#define FA_INLINE static inline __attribute__((always_inline))

// Stands before a loop whose iterations are independent.
#if defined(__clang__)
#define FA_EACH _Pragma("clang loop vectorize(assume_safety)")
#else
#define FA_EACH _Pragma("GCC ivdep")
#endif

namespace {

constexpr int32_t kInfinite = 0x7F800000;  // the bits of NaN, without the sign, are larger
constexpr int32_t kSign = INT32_MIN;

FA_INLINE int32_t bits_of(float x) {
  int32_t n;
  std::memcpy(&n, &x, sizeof n);
  return n;
}

FA_INLINE float from_bits(int32_t n) {
  float x;
  std::memcpy(&x, &n, sizeof x);
  return x;
}

// a * b + c, rounded once if the processor can; XLA's compiler does the same.
FA_INLINE float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// The smaller of two numbers, neither NaN. (fmin would have to handle NaN.)
FA_INLINE float lesser(float a, float b) { return a < b ? a : b; }
FA_INLINE float greater(float a, float b) { return a > b ? a : b; }
FA_INLINE int32_t lesser(int32_t a, int32_t b) { return a < b ? a : b; }
FA_INLINE int32_t greater(int32_t a, int32_t b) { return a > b ? a : b; }

// Sums of bits that may overflow 32 bits.
FA_INLINE int32_t sum(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
FA_INLINE int32_t difference(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b));
}
FA_INLINE int32_t shifted(int32_t n, int left) {
  return static_cast<int32_t>(static_cast<uint32_t>(n) << left);
}

FA_INLINE int32_t size_bits(float x) { return bits_of(x) & ~kSign; }
FA_INLINE bool is_finite(float x) { return size_bits(x) < kInfinite; }
FA_INLINE bool is_nan(float x) { return size_bits(x) > kInfinite; }
FA_INLINE float with_sign(float size, float of) {
  return from_bits((bits_of(size) & ~kSign) | (bits_of(of) & kSign));
}

// 2**(exponent - 127), 0 for an exponent of 0.
FA_INLINE float power_of(int32_t exponent) { return from_bits(shifted(exponent, 23)); }

// The power of two at or below |x|; 0 for subnormals, infinity also for NaN.
FA_INLINE float power(float x) { return from_bits(bits_of(x) & kInfinite); }

// ---- bfloat16, as its bits ----

FA_INLINE float widened(int32_t half) { return from_bits(shifted(half, 16)); }

// Rounds to nearest, ties to even. x must be a result of arithmetic: then a NaN has the first bit
// of its mantissa set and stays NaN when the other bits are dropped.
FA_INLINE int32_t bfloat16(float x) {
  const int32_t size = lesser(size_bits(x), kInfinite | 0x400000);
  const int32_t rounded = size + 0x7FFF + ((size >> 16) & 1);
  return static_cast<int32_t>(static_cast<uint32_t>(rounded | (bits_of(x) & kSign)) >> 16);
}

}  // namespace

#endif  // FUNCTIONAL_ADAM_NUMBERS_H_
