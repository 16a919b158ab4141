// wgrad_tile: one register tile of a weight gradient, an outer product summed over pixels.
//
//   dw[i][j] (+)= sum over pairs of dy[dy_pixel[pair]][i] * x[x_pixel[pair]][j]
//
// dy  packed [pixels][MR], x [pixels][x_stride], of which NV vectors are used; a pair is an output pixel and the input
// pixel that the tap reads for it, so pixels in the padding are not in the list and stride and dilation cost nothing.
// Bound: MR * NV FMAs against MR + NV loads and two indices a pair; the tile of dw is read and written once per call.
#pragma once

#include "../simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA {

struct PixelPair { int32_t dy, x; };

template <class A, int MR, int NV>
__attribute__((noinline)) void wgrad_tile(int64_t pairs, const PixelPair* pair, const A* dy, const A* x,
                                          int64_t x_stride, A* dw, int64_t dw_row_stride, int columns,
                                          bool accumulate) {
  using V = Vec<A>;
  constexpr int kLane = kLanes<A>;
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
#pragma GCC unroll 1
  for (int64_t n = 0; n < pairs; ++n) {
    const A* a = dy + static_cast<int64_t>(pair[n].dy) * MR;
    const A* b = x + pair[n].x * x_stride;
    V row[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) row[j] = load(b + j * kLane);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const V value = broadcast(a[i]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[i][j] += value * row[j];
    }
  }
  const int last = columns - (NV - 1) * kLane;
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const int n = j == NV - 1 ? last : kLane;
      A* out = dw + i * dw_row_stride + j * kLane;
      store_n(out, accumulate ? acc[i][j] + load_n(out, n) : acc[i][j], n);
    }
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
