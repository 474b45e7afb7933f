// Random bits of an element. functional_adam/_storage/noise.py gives the reasons.
#ifndef FUNCTIONAL_ADAM_NOISE_H_
#define FUNCTIONAL_ADAM_NOISE_H_

#include "numbers.h"
#include "step.h"

namespace {

// The bits from an element's place, the same for everything that is rounded.
FA_INLINE uint32_t scrambled(uint32_t place) {
  const uint32_t n = place * 0x9E3779B1u;
  return (n ^ (n >> 15)) * 0x85EBCA77u;
}

FA_INLINE uint32_t mixed_above(uint32_t n) {
  n = (n ^ (n >> 16)) * 0x21F0AAADu;
  return (n ^ (n >> 15)) * 0x735A2D97u;
}

FA_INLINE uint32_t nu_bits(uint32_t n, const Noise& noise) { return n + noise.nu; }
FA_INLINE uint32_t mu_bits(uint32_t n, const Noise& noise) {
  return (n ^ (n >> 15)) * 0xC2B2AE3Du + noise.mu;
}
FA_INLINE uint32_t code_bits(uint32_t n, const Noise& noise) {
  return (n ^ (n >> 17)) * 0x27D4EB2Fu + noise.code;
}
FA_INLINE uint32_t theta_bits(uint32_t n, const Noise& noise) {
  return mixed_above(n ^ noise.theta);
}

// The upper 14 bits as a number inside (0, 1).
FA_INLINE float fraction(uint32_t random) {
  const uint32_t middle = ((random >> 9) & 0x7FFE00u) | 0x3F800100u;
  return from_bits(static_cast<int32_t>(middle)) - 1.0f;
}

}  // namespace

#endif  // FUNCTIONAL_ADAM_NOISE_H_
