// The host twin of csrc/cuda/primitives/mma_sm80.h.
#pragma once

#include <primitives/shared.h>

#include "../mma.h"

namespace cnnkern::cuda {

template <class T> constexpr int kMmaK = 32 / static_cast<int>(sizeof(T));

template <class T>
void load_matrices(uint32_t (&to)[4], Shared<T> row, simt::Site at = simt::Site::current()) {
  simt::load_matrices(to, row.block(), row.offset(), /*transposed=*/false, at);
}

template <class T>
void load_matrices_transposed(uint32_t (&to)[4], Shared<T> row, simt::Site at = simt::Site::current()) {
  static_assert(sizeof(T) == 2);
  simt::load_matrices(to, row.block(), row.offset(), /*transposed=*/true, at);
}

template <class T>
constexpr simt::Format kFormat = sizeof(T) == 4           ? simt::Format::tf32
                                 : std::is_same_v<T, f16> ? simt::Format::f16
                                                          : simt::Format::bf16;

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site at = simt::Site::current()) {
  simt::mma(d, a, b, kFormat<T>, at);
}

template <class T>
void mma_half(float (&d)[4], const uint32_t (&a)[2], uint32_t b, simt::Site at = simt::Site::current()) {
  static_assert(sizeof(T) == 2);
  simt::mma(d, {a[0], a[1], 0, 0}, {b, 0}, kFormat<T>, at);  // the other half of k is 0
}

}  // namespace cnnkern::cuda
