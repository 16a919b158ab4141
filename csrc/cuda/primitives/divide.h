// Quotient and remainder by a number known at launch: one multiplication and a shift instead of a division
// (Granlund and Montgomery, "Division by invariant integers using multiplication", PLDI 1994, section 4).
#pragma once

#include <primitives/cuda.h>

namespace cnnkern::cuda {

// Exact for 0 <= n < 2^31 and 1 <= divisor < 2^31.
class Divider {
 public:
  Divider() = default;
  explicit Divider(int64_t divisor) : divisor_(static_cast<uint32_t>(divisor)) {
    while ((uint64_t{1} << shift_) < divisor_) ++shift_;
    multiplier_ = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor_)) / divisor_ + 1);
  }

  __device__ int quotient(int n) const {
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(static_cast<uint32_t>(n)) * multiplier_) >> 32);
    return static_cast<int>((high + static_cast<uint32_t>(n)) >> shift_);
  }
  // n becomes the quotient; the remainder is returned.
  __device__ int split(int& n) const {
    const int q = quotient(n), remainder = n - q * static_cast<int>(divisor_);
    n = q;
    return remainder;
  }
  __host__ __device__ int divisor() const { return static_cast<int>(divisor_); }

 private:
  uint32_t divisor_ = 1, multiplier_ = 1;
  int shift_ = 0;
};

}  // namespace cnnkern::cuda
