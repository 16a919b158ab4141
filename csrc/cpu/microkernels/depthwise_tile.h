// depthwise_tile: 7 neighbouring pixels of two rows of a depthwise convolution.
//
//   out[i][t][k] = sum over f, s of in[line(i, f)][column(t, s)][k] * w[f][s][k]
//   i < 2,  t < 7,  f, s < S
//
// in   the first line and column that the tile reads
// w    packed [vector of k][S][S][lanes]
//
// A step takes one vector of k, whose S * S weights stay in registers, and walks along the input columns. An input
// meets all its weights at once, so it is loaded once, and an output is complete when the last column that it reads has
// gone by. For a 3x3 at stride 1 that is 45 loads for 126 FMAs, and 9 weights, 6 sums and the input are all the 16
// registers that AVX2 has. None is left for an epilogue or to round to 16 bits: there group_tile is faster. Bound: FMA
// units.
#pragma once

#include "group_tile.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int kDepthwiseRows = 2;

template <class T> struct DepthwiseTile {
  const T* in;
  int64_t in_pixel_stride, in_line_stride;
  uint32_t lines, columns;  // bits: which of those that the tile reads lie inside the image
  const T* w;
  int64_t maps;  // at least one vector; the last vector overlaps the one before it
  int64_t vector_begin, vector_end;
  T* out;
  int64_t out_pixel_stride;
  int64_t row_pixels;  // from one output row to the next
  int rows, count;     // output rows, and outputs in each, that exist
  bool fetches;        // the lines that the next rows read beyond these, meanwhile
};

// Lines, Columns: which inputs the tile's rows and their pixels read. kInside: all of them, and every output, exist.
template <class T, class Lines, class Columns, bool kInside>
__attribute__((noinline)) void depthwise_tile(const DepthwiseTile<T> tile) {
  using V = Vec<T>;
  constexpr int S = Columns::S, kLane = kLanes<T>;
  for (int64_t vector = tile.vector_begin; vector < tile.vector_end; ++vector) {
    const int64_t k = vector_start<T>(vector, tile.maps);
    const T* in = tile.in + k;
    T* out = tile.out + k;
    if (tile.fetches && vector % kVectorsPerLine == 0) {
      for (int l = 0; l < Lines::kNewColumns; ++l)
        for (int j = Columns::kColumns - Columns::kNewColumns; j < Columns::kColumns; ++j)
          __builtin_prefetch(in + (Lines::kColumns + l) * tile.in_line_stride + j * tile.in_pixel_stride, 0, 2);
    }
    const T* w = tile.w + vector * S * S * kLane;
    V weights[S][S], sum[kDepthwiseRows][kTilePixels];
#pragma GCC unroll 8
    for (int f = 0; f < S; ++f)
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) weights[f][s] = in_register(load(w + (f * S + s) * kLane));
#pragma GCC unroll 32
    for (int j = 0; j < Columns::kColumns; ++j, in = next_pixel(in, tile.in_pixel_stride)) {
#pragma GCC unroll 8
      for (int t = 0; t < kTilePixels; ++t) {
        if (kInside || !Columns::starts(j, t)) continue;
#pragma GCC unroll 2
        for (int i = 0; i < kDepthwiseRows; ++i) sum[i][t] = V{};
      }
      if (kInside || (tile.columns >> j & 1)) {
#pragma GCC unroll 8
        for (int l = 0; l < Lines::kColumns; ++l) {
          if (!kInside && !(tile.lines >> l & 1)) continue;
          const V value = in_register(load(in + l * tile.in_line_stride));
#pragma GCC unroll 2
          for (int i = 0; i < kDepthwiseRows; ++i) {
            if (!Lines::uses(l, i)) continue;
#pragma GCC unroll 8
            for (int t = 0; t < kTilePixels; ++t) {
              if (!Columns::uses(j, t)) continue;
              const V product =
                  value *
                  weights[Lines::uses(l, i) ? Lines::tap(l, i) : 0][Columns::uses(j, t) ? Columns::tap(j, t) : 0];
              if (kInside && Columns::starts(j, t) && Lines::starts(l, i)) sum[i][t] = product;
              else sum[i][t] += product;
            }
          }
        }
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTilePixels; ++t) {
        if (!Columns::ends(j, t) || (!kInside && t >= tile.count)) continue;
#pragma GCC unroll 2
        for (int i = 0; i < kDepthwiseRows; ++i) {
          if (kInside || i < tile.rows) store(out + i * tile.row_pixels * tile.out_pixel_stride, sum[i][t]);
        }
        out = next_pixel(out, tile.out_pixel_stride);
      }
    }
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
