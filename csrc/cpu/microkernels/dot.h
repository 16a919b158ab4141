// dot_tile: one register tile of a GEMM with few pixels or few maps, the reduction in the lanes.
//
//   y[i][j] = epilogue( sum over taps t and d < depth of x[i][x_offset[t] + d] * w[j][w_offset[t] + d] )
//
// brgemm_tile has the maps in its lanes, of which 3 maps fill 3 in 16, and wants them packed. Here a lane is an element
// of the reduction, so pixels and filters are both read by the vector, where they lie, and each of the tile's MR x NC
// sums has an accumulator of its own whose lanes are added up once, at the end. Bound: MR * NC FMAs against MR + NC
// loads a step, 24 against 11 for 3 maps.
#pragma once

#include <algorithm>

#include "../packing.h"
#include "brgemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int kDotColumns = 8;
constexpr int kDotSums = kRegisters == 32 ? 24 : 12;  // as many as leave room for the operands of a step

// Rows of a tile of so many columns: few enough to have a pointer to each.
constexpr int dot_rows(int columns) { return std::min(12, kDotSums / columns); }

struct DotTap { int64_t x, w; };  // where its run of `depth` elements begins

// X and W may differ where one of them was widened before: Step<X>::fma takes both.
template <class X, class W, class Out> struct DotTile {
  const DotTap* taps;
  int64_t tap_count;
  int64_t depth;
  const X* x;
  int64_t x_row_stride;
  const W* w;
  int64_t w_row_stride;
  Out* y;
  int64_t y_row_stride;
  const EpilogueArgs<Out>* epilogue;  // null: none
  int64_t pixel, column;              // of y[0][0], indices into the epilogue's operands
};

// Adds up the lanes of each of kCount vectors: sum i ends in lane i % kLane of vector i / kLane.
template <class V, int kLane, int kCount, int kStep = 1> CNNKERN_INLINE void add_lanes(V* v) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; i += 2) {
    const V a = v[i], b = i + 1 < kCount ? v[i + 1] : V{};
    v[i / 2] = interleave<V, kLane, kStep, false>(a, b) + interleave<V, kLane, kStep, true>(a, b);
  }
  if constexpr (kStep * 2 < kLane) add_lanes<V, kLane, (kCount + 1) / 2, kStep * 2>(v);
}

// The epilogue of a tile's sums, which lie one after another; out of line, so that the tail without it stays short.
template <class Out>
__attribute__((noinline)) void finish_sums(const EpilogueArgs<Out>& e, int rows, int columns, int64_t pixel,
                                           int64_t column, acc_t<Out>* sums) {
  acc_t<Out>* sum = sums;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j, ++sum) {
      if (e.scale) *sum *= e.scale[column + j];
      if (e.shift) *sum += e.shift[column + j];
      if (e.residual) *sum += to_acc(e.residual[(pixel + i) * e.residual_pixel_stride + column + j]);
    }
  for (acc_t<Out>* at = sums; at < sum; at += kLanes<Out>) store(at, activate(load(at), e.activation, e.alpha));
}

template <class X, class W, class Out, int MR, int NC>
__attribute__((noinline)) void dot_tile(const DotTile<X, W, Out>& tile) {
  using A = acc_t<Out>;
  using V = Vec<A>;
  constexpr int kLane = kLanes<A>, kStep = kLane * Step<X>::kDepth;
  V acc[MR * NC];
#pragma GCC unroll 32
  for (int i = 0; i < MR * NC; ++i) acc[i] = V{};
  const auto step = [&](const X* x, const W* w, int count) __attribute__((always_inline)) {
    decltype(Step<W>::lanes(w, count)) weights[NC];
#pragma GCC unroll 8
    for (int j = 0; j < NC; ++j) weights[j] = Step<W>::lanes(w + j * tile.w_row_stride, count);
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      const auto value = in_register(Step<X>::lanes(x + i * tile.x_row_stride, count));
#pragma GCC unroll 8
      for (int j = 0; j < NC; ++j) acc[i * NC + j] = in_register(Step<X>::fma(acc[i * NC + j], value, weights[j]));
    }
  };
  const int rest = static_cast<int>(tile.depth % kStep);  // an int, so that GCC sees that it is no vector
  const int64_t whole = tile.depth - rest;
  for (int64_t t = 0; t < tile.tap_count; ++t) {
    const X* x = tile.x + tile.taps[t].x;
    const W* w = tile.w + tile.taps[t].w;
#pragma GCC unroll 1
    for (int64_t d = 0; d < whole; d += kStep) step(x + d, w + d, kStep);
    if (rest) step(x + whole, w + whole, rest);
  }
  add_lanes<V, kLane, MR * NC>(acc);
  constexpr int kVectors = (MR * NC + kLane - 1) / kLane;
  if (tile.epilogue) {
    A sums[kVectors * kLane];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) store(sums + i * kLane, acc[i]);
    finish_sums<Out>(*tile.epilogue, MR, NC, tile.pixel, tile.column, sums);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) acc[i] = load(sums + i * kLane);
  }
  Out sums[kVectors * kLane];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) store(sums + i * kLane, acc[i]);
  Out* y = tile.y;
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i, y += tile.y_row_stride) std::copy_n(sums + i * NC, NC, y);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
