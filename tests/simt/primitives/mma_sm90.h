// The host twin of csrc/cuda/primitives/mma_sm90.h.
#pragma once

#include <primitives/shared.h>

#include "../sm90.h"

namespace cnnkern::cuda {

constexpr int kSwizzledRow = simt::kRowBytes;

enum class Rows : int { along_k, along_mn };

// The same bits as on the GPU: simt::multiply reads them.
class MatrixTile {
 public:
  template <class T> explicit MatrixTile(Shared<T> at, int block_bytes = 0) {
    bits_ = static_cast<uint64_t>(at.offset() & 0x3ffff) >> 4 | static_cast<uint64_t>(block_bytes >> 4) << 16 |
            uint64_t{8 * kSwizzledRow >> 4} << 32 | uint64_t{1} << 62;
  }
  MatrixTile operator+(int bytes) const {
    MatrixTile next = *this;
    next.bits_ += static_cast<uint32_t>(bytes) >> 4;
    return next;
  }
  uint64_t bits() const { return bits_; }

 private:
  uint64_t bits_;
};

inline void begin_products(simt::Site at = simt::Site::current()) { simt::begin_products(at); }
inline void commit_products(simt::Site at = simt::Site::current()) { simt::commit_products(at); }
template <int kPending> void wait_products(simt::Site at = simt::Site::current()) { simt::wait_products(kPending, at); }
template <int kElements> void settle(float (&)[kElements]) {}

template <class T, Rows kRowsA, Rows kRowsB, int kElements>
void multiply(float (&d)[kElements], MatrixTile a, MatrixTile b, bool plus, simt::Site at = simt::Site::current()) {
  static_assert(kElements == 64 || kElements == 128);
  constexpr simt::Format kFormat = sizeof(T) == 4           ? simt::Format::tf32
                                   : std::is_same_v<T, f16> ? simt::Format::f16
                                                            : simt::Format::bf16;
  simt::multiply(
      {d, 2 * kElements, a.bits(), b.bits(), kRowsA == Rows::along_k, kRowsB == Rows::along_k, plus, kFormat}, at);
}

template <int kRegisters> void take_registers() { static_assert(kRegisters % 8 == 0 && kRegisters <= 256); }
template <int kRegisters> void give_registers() { static_assert(kRegisters % 8 == 0 && kRegisters >= 24); }

}  // namespace cnnkern::cuda
