// group_wgrad_tile: what rows of x and dy add to one row of S filter taps, for one vector of output maps of a grouped
// convolution and all input maps d of their groups.
//
//   sums[s][d][k] += sum over pairs of rows and columns i of in[i][first(k) + d] * dy[(i + pad - s) / U][k]
//
// in    rows of x, [column][maps of the groups], each with the row of dy that meets it at the filter's row
// dy    [column][lanes], with zeros on both sides for the columns that do not exist
// sums  [S][G][lanes];  first(k): the first map of k's group
//
// A step walks along columns of x. Each of 4 values is formed once (one map of every group, spread over the lanes of
// its group) and meets the up to S pixels of dy that see its column, which stay in registers from column to column. With
// 12 sums of a 3x3 that is 16 registers, and as many independent sums as hide the latency of two FMAs a cycle. Bound: FMA units;
// 7 columns at stride 1 take 84 FMAs, 28 values and 9 loads.
#pragma once

#include <vector>

#include "group_tile.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int kWgradMaps = 4;  // d at a time

template <class A> struct FilterRow {
  struct Pair { const A *in, *dy; };  // rows, at their column 0
  std::vector<Pair> pairs;
  int64_t in_stride;  // from column to column of x
  int64_t columns;    // of x
  int64_t pad, group;
};

// Map d of each lane's group; in: at the first map of the vector, or with kGroup == 0, where all lanes share a group, at
// the first of those maps.
template <int kGroup, class A> CNNKERN_INLINE Vec<A> map_of_group(const A*& in, int d) {
  if constexpr (kGroup == 0) {
    return broadcast(in[d]);
  } else {
    LaneIndex<A> places;
#pragma GCC unroll 16
    for (int l = 0; l < kLanes<A>; ++l) places[l] = l / kGroup * kGroup + d;
    in = next_pixel(in, 0);  // so that each d loads the vector again: there is no register to keep it in
    return __builtin_shuffle(load(in), places);
  }
}

// Columns [first, first + 7 * U) of x, of which those beyond the image are left out.
template <class A, int S, int U, int kPhase, int kGroup, int kFirst>
CNNKERN_INLINE void add_columns(const FilterRow<A>& row, const A* in, const A* dy, int64_t first,
                                Vec<A> (&sum)[kWgradMaps][S]) {
  using Tap = Taps<S, U, true, kPhase>;
  constexpr int kSteps = kTilePixels * U, kPixels = Tap::kBack + (kPhase + kSteps - 1) / U + 1;
  const int64_t count = row.columns - first;
  in += first * row.in_stride;
  dy += Tap::first_column(first, row.pad) * kLanes<A>;
  Vec<A> gradient[kPixels];
#pragma GCC unroll 16
  for (int t = 0; t < kSteps; ++t, in = next_pixel(in, row.in_stride)) {
    if (t == count) break;
#pragma GCC unroll 16
    for (int j = 0; j < kPixels; ++j) {
      const bool first_use = Tap::uses(j, t) && (t == 0 || !Tap::uses(j, t - 1));
      if (first_use) gradient[j] = in_register(load(dy + j * kLanes<A>));
    }
#pragma GCC unroll 4
    for (int b = 0; b < kWgradMaps; ++b) {
      const auto value = in_register(map_of_group<kGroup>(in, kFirst + b));
#pragma GCC unroll 16
      for (int j = 0; j < kPixels; ++j) {
        if (Tap::uses(j, t)) sum[b][Tap::uses(j, t) ? Tap::tap(j, t) : 0] += value * gradient[j];
      }
    }
  }
}

// kWgradMaps of d, from d on, which are map kFirst and its neighbours for map_of_group.
template <class A, int S, int U, int kPhase, int kGroup, int kFirst>
CNNKERN_INLINE void add_maps(const FilterRow<A>& row, int64_t d, A* sums) {
  constexpr int kLane = kLanes<A>;
  const int64_t group = kGroup ? kGroup : row.group;
  Vec<A> sum[kWgradMaps][S];
#pragma GCC unroll 4
  for (int b = 0; b < kWgradMaps; ++b)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) sum[b][s] = load(sums + (s * group + b) * kLane);
  for (const auto& [in, dy] : row.pairs) {
    for (int64_t first = 0; first < row.columns; first += kTilePixels * U)
      add_columns<A, S, U, kPhase, kGroup, kFirst>(row, in + d, dy, first, sum);
  }
#pragma GCC unroll 4
  for (int b = 0; b < kWgradMaps; ++b)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) store(sums + (s * group + b) * kLane, sum[b][s]);
}

// kGroup: the maps of a group of which a vector has several, else 0. kPhase: pad % U.
template <class A, int S, int U, int kPhase, int kGroup>
__attribute__((noinline)) void group_wgrad_tile(const FilterRow<A>& row, A* sums) {
  constexpr int kStep = kWgradMaps * kLanes<A>;
  if constexpr (kGroup == 0) {
    for (int64_t d = 0; d < row.group; d += kWgradMaps, sums += kStep) add_maps<A, S, U, kPhase, 0, 0>(row, d, sums);
  } else {
    add_maps<A, S, U, kPhase, kGroup, 0>(row, 0, sums);
    if constexpr (kGroup > kWgradMaps) add_maps<A, S, U, kPhase, kGroup, kWgradMaps>(row, 0, sums + kStep);
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
