// The host twin of csrc/cuda/primitives/mma_sm90.h.
#pragma once

#include <primitives/matrix_tile.h>

#include "../sm90.h"

namespace cnnkern::cuda {

static_assert(kSwizzledRow == simt::kRowBytes);

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
