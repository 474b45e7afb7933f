// A check that says where it failed, and random bits that are the same everywhere.
#ifndef FUNCTIONAL_ADAM_TESTS_CHECK_H_
#define FUNCTIONAL_ADAM_TESTS_CHECK_H_

#include <cstdint>
#include <cstdlib>
#include <iostream>

#define CHECK(condition, ...)                                                              \
  do {                                                                                     \
    if (!(condition)) {                                                                    \
      std::cerr << __FILE__ << ":" << __LINE__ << ": not " #condition ": " << __VA_ARGS__ \
                << std::endl;                                                              \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (false)

namespace functional_adam {

// splitmix64, which Sebastiano Vigna has published.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t n = state_ += 0x9E3779B97F4A7C15u;
    n = (n ^ (n >> 30)) * 0xBF58476D1CE4E5B9u;
    n = (n ^ (n >> 27)) * 0x94D049BB133111EBu;
    return n ^ (n >> 31);
  }

  // From 0 to count - 1.
  int64_t below(int64_t count) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(count)); }

  bool coin() { return bits() >> 63 != 0; }

  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

}  // namespace functional_adam

#endif  // FUNCTIONAL_ADAM_TESTS_CHECK_H_
