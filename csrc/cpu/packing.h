// Weights in the order in which brgemm_tile reads them.
//
// A panel holds the `columns` output maps of one tile width (a whole number of vectors, zeros beyond the last map):
//   panel[d][j],  d over the reduction, j over the columns
// For bf16 with dot-product instructions one element of the panel is a pair of neighbours of the reduction.
#pragma once

#include "simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// 4-byte and 8-byte lanes that are only moved.
template <class E> using Lanes = Vec<std::conditional_t<sizeof(E) == 8, double, float>>;

template <class V, int kLane, int kStep, bool kHigh>
CNNKERN_INLINE V interleave(V a, V b) {
  // Blocks of kStep lanes: the even (low) or odd (high) blocks of a and b, alternating.
  using Mask = Vec<std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t>>;
  Mask mask;
  for (int i = 0; i < kLane; ++i) {
    const int block = i / kStep, in_block = i % kStep;
    const int source = (block & ~1) + (kHigh ? 1 : 0);
    mask[i] = source * kStep + in_block + ((block & 1) ? kLane : 0);
  }
  return __builtin_shuffle(a, b, mask);
}

// Transposes kLane vectors of kLane lanes in registers: log2(kLane) rounds of two-source permutes.
template <class V, int kLane, int kStep = 1>
CNNKERN_INLINE void transpose(V (&rows)[kLane]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLane; ++i) {
    if (i & kStep) continue;
    const V low = interleave<V, kLane, kStep, false>(rows[i], rows[i + kStep]);
    const V high = interleave<V, kLane, kStep, true>(rows[i], rows[i + kStep]);
    rows[i] = low;
    rows[i + kStep] = high;
  }
  if constexpr (kStep * 2 < kLane) transpose<V, kLane, kStep * 2>(rows);
}

// panel[d][j] = source[j * row_stride + d] for d < depth, j < columns; zero up to `width` columns.
// Source elements are In (of which the panel keeps pairs where In is bf16 and Packed a pair) or are widened to Packed.
template <class In, class Packed>
void pack_transposed(const In* source, int64_t row_stride, int columns, int64_t depth, Packed* panel, int width) {
  using E = std::conditional_t<sizeof(Packed) == 8, double, float>;  // moved as a lane of this size
  constexpr int kLane = kLanes<E>;
  constexpr int kPair = std::is_same_v<Packed, uint32_t> ? 2 : 1;  // elements of In per element of the panel
  const int64_t rows = depth / kPair;
  for (int j0 = 0; j0 < width; j0 += kLane) {
    for (int64_t d0 = 0; d0 < rows; d0 += kLane) {
      const int n = static_cast<int>(rows - d0 < kLane ? rows - d0 : kLane);
      Lanes<E> block[kLane] = {};
#pragma GCC unroll 16
      for (int j = 0; j < kLane; ++j) {
        if (j0 + j >= columns) continue;
        const In* p = source + (j0 + j) * row_stride + d0 * kPair;
        if constexpr (kPair == 2) block[j] = reinterpret_cast<Lanes<E>>(load_pairs(p, n));
        else block[j] = load_n(p, n);
      }
      transpose<Lanes<E>, kLane>(block);
      E* out = reinterpret_cast<E*>(panel) + d0 * width + j0;
      if (n == kLane) {
#pragma GCC unroll 16
        for (int d = 0; d < kLane; ++d) store(out + d * width, block[d]);
      } else {
        for (int d = 0; d < n; ++d) store(out + d * width, block[d]);
      }
    }
  }
  if constexpr (kPair == 2) {
    if (depth % 2 == 0) return;
    for (int j = 0; j < width; ++j)  // the partner of an odd last element is zero
      panel[rows * width + j] = j < columns ? source[j * row_stride + depth - 1].bits : 0;
  }
}

// panel[d][j] = source[d * row_stride + j] for d < depth, j < columns; zero up to `width` columns.
template <class In, class Packed>
void pack_rows(const In* source, int64_t row_stride, int columns, int64_t depth, Packed* panel, int width) {
  if constexpr (std::is_same_v<Packed, uint32_t>) {
    for (int64_t d = 0; d < depth; d += 2, panel += width) {
      const In* even = source + d * row_stride;
      const In* odd = even + row_stride;
      const bool last = d + 1 == depth;  // an odd depth is padded with a row of zeros
      for (int j = 0; j < columns; ++j)
        panel[j] = even[j].bits | (last ? 0u : static_cast<uint32_t>(odd[j].bits) << 16);
      for (int j = columns; j < width; ++j) panel[j] = 0;
    }
  } else {
    constexpr int kLane = kLanes<In>;
    for (int64_t d = 0; d < depth; ++d, source += row_stride, panel += width)
      for (int j = 0; j < width; j += kLane) {
        const int n = columns - j < 0 ? 0 : columns - j < kLane ? columns - j : kLane;
        store(panel + j, load_n(source + j, n));
      }
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
