// dot_tile: one register tile of a GEMM with few columns, the reduction in the lanes.
//
//   y[i][j] = sum over taps t and d < depth of x[i][x_offset[t] + d] * panel[j][panel_offset[t] + d]
//
// brgemm_tile has the columns in its lanes, of which 3 maps fill 3 in 16. Here a lane is an element of the reduction, so
// x and the panel are both read by the vector, and each of the tile's MR x NC sums has an accumulator of its own whose
// lanes are added up once, at the end. Bound: MR * NC FMAs against MR + NC loads a step, 24 against 11 for 3 columns.
#pragma once

#include <algorithm>

#include "../packing.h"
#include "brgemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int kDotColumns = 8;

// Rows of a tile: as many as leave room for the operands of a step, and for a pointer to each row.
constexpr int dot_rows(int columns) { return std::min(12, (kRegisters == 32 ? 24 : 12) / columns); }

struct DotTap { int64_t x, panel; };  // where its run of `depth` elements begins

template <class In, class Out> struct DotTile {
  const DotTap* taps;
  int64_t tap_count;
  int64_t depth;  // elements, a multiple of Step<In>::kDepth
  const In* x;
  int64_t x_row_stride;
  const In* panel;
  int64_t column_stride;
  Out* y;
  int64_t y_row_stride;
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

template <class In, class Out, int MR, int NC>
__attribute__((noinline)) void dot_tile(const DotTile<In, Out>& tile) {
  using A = acc_t<Out>;
  using V = Vec<A>;
  constexpr int kLane = kLanes<A>, kStep = kLane * Step<In>::kDepth;
  V acc[MR * NC];
#pragma GCC unroll 32
  for (int i = 0; i < MR * NC; ++i) acc[i] = V{};
  const auto step = [&](const In* x, const In* w, int lanes) __attribute__((always_inline)) {
    decltype(Step<In>::lanes(w, lanes)) weights[NC];
#pragma GCC unroll 8
    for (int j = 0; j < NC; ++j) weights[j] = Step<In>::lanes(w + j * tile.column_stride, lanes);
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      const auto value = in_register(Step<In>::lanes(x + i * tile.x_row_stride, lanes));
#pragma GCC unroll 8
      for (int j = 0; j < NC; ++j) acc[i * NC + j] = in_register(Step<In>::fma(acc[i * NC + j], value, weights[j]));
    }
  };
  const int rest = static_cast<int>(tile.depth % kStep) / Step<In>::kDepth;  // so that GCC sees that it is no vector
  const int64_t whole = tile.depth - rest * Step<In>::kDepth;
  for (int64_t t = 0; t < tile.tap_count; ++t) {
    const In* x = tile.x + tile.taps[t].x;
    const In* w = tile.panel + tile.taps[t].panel;
#pragma GCC unroll 1
    for (int64_t d = 0; d < whole; d += kStep) step(x + d, w + d, kLane);
    if (rest) step(x + whole, w + whole, rest);
  }
  add_lanes<V, kLane, MR * NC>(acc);
  Out sums[(MR * NC + kLane - 1) / kLane * kLane];
#pragma GCC unroll 8
  for (int i = 0; i * kLane < MR * NC; ++i) store(sums + i * kLane, acc[i]);
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NC; ++j) tile.y[i * tile.y_row_stride + j] = sums[i * NC + j];
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
