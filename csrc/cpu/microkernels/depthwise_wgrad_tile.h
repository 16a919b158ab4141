// depthwise_wgrad_tile: what 7 neighbouring pixels of a few rows of dy add to the filters of a depthwise convolution.
//
//   sums[f][s][k] += sum over i, t of in[line i * U + f][column t * U + s][k] * dy[row i][pixel t][k]
//   i < kRows,  t < 7,  f, s < S
//
// in    the input column that pixel 0 meets at tap 0, in the line that row 0 meets there
// sums  [vector of k][S][S][lanes] in the accumulator's type
//
// A step takes one vector of k and walks along the input columns with the S * S sums in registers, and of each row of
// dy the few pixels that meet the column. So every element is loaded once: for a 3x3 at stride 1 and two rows 50 loads
// for 126 FMAs, and 9 + 6 + 1 registers: all that AVX2 has.
#pragma once

#include "group_tile.h"

namespace cnnkern::cpu::CNNKERN_ISA {

template <class T> struct DepthwiseWgradTile {
  const T* in;
  int64_t in_pixel_stride, in_line_stride;
  uint32_t lines, columns;  // bits: which of those that the tile reads lie inside the image
  const T* dy;
  int64_t dy_pixel_stride, dy_row_stride;
  int count;  // the pixels of a row of dy that exist
  acc_t<T>* sums;
  int64_t maps;  // at least one vector; the last vector overlaps the one before it
  int64_t vector_begin, vector_end;
  int64_t ahead_in, ahead_dy;  // from here to what the next band of rows reads, to be fetched meanwhile; 0: nothing
};

// kInside: every line, column and pixel of the tile exists.
template <class T, int S, int U, int kRows, bool kInside>
__attribute__((noinline)) void depthwise_wgrad_tile(const DepthwiseWgradTile<T> tile) {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Tap = Taps<S, U, false, 0>;
  constexpr int kLane = kLanes<T>, kLines = (kRows - 1) * U + S;
  for (int64_t vector = tile.vector_begin; vector < tile.vector_end; ++vector) {
    const int64_t k = vector_start<A>(vector, tile.maps);
    const T *in = tile.in + k, *dy = tile.dy + k;
    A* sums = tile.sums + vector * S * S * kLane;
    if (tile.ahead_in) {
      for (int l = 0; l < kRows * U; ++l)
        for (int j = 0; j < kTilePixels * U; ++j)
          __builtin_prefetch(in + tile.ahead_in + l * tile.in_line_stride + j * tile.in_pixel_stride, 0, 2);
      for (int i = 0; i < kRows; ++i)
        for (int t = 0; t < kTilePixels; ++t)
          __builtin_prefetch(dy + tile.ahead_dy + i * tile.dy_row_stride + t * tile.dy_pixel_stride, 0, 2);
    }
    V sum[S][S], gradient[kRows][kTilePixels];
#pragma GCC unroll 8
    for (int f = 0; f < S; ++f)
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) sum[f][s] = load(sums + (f * S + s) * kLane);
#pragma GCC unroll 32
    for (int j = 0; j < Tap::kColumns; ++j, in = next_pixel(in, tile.in_pixel_stride)) {
      if (j % U == 0 && j / U < kTilePixels) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i)
          gradient[i][j / U] =
              in_register(kInside || j / U < tile.count ? load(dy + i * tile.dy_row_stride) : broadcast(A(0)));
        dy = next_pixel(dy, tile.dy_pixel_stride);
      }
      if (!kInside && !(tile.columns >> j & 1)) continue;
#pragma GCC unroll 8
      for (int l = 0; l < kLines; ++l) {
        if (!kInside && !(tile.lines >> l & 1)) continue;
        const V value = in_register(load(in + l * tile.in_line_stride));
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          const int f = l - i * U;
          if (f < 0 || f >= S) continue;
#pragma GCC unroll 8
          for (int t = 0; t < kTilePixels; ++t) {
            if (Tap::uses(j, t)) sum[f][Tap::uses(j, t) ? Tap::tap(j, t) : 0] += value * gradient[i][t];
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int f = 0; f < S; ++f)
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) store(sums + (f * S + s) * kLane, sum[f][s]);
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
