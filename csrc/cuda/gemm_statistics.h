// The epilogue's batch statistics: of every column of a block's tile of sums, over its rows, for moments.h to merge.
#pragma once

#include <algorithm>

#include "gemm.h"
#include "moments.h"

namespace cnnkern::cuda {

// Partial statistics [partials][3][maps]: those of all of a tensor's maps in one row of tiles each. Null: not wanted.
struct Statistics {
  float* partials = nullptr;
  int64_t maps = 0;
};

// Over the lanes that have the other rows of this lane's columns.
__device__ inline float sum_of_lanes(float v) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) v += __shfl_xor_sync(0xffffffff, v, lanes);
  return v;
}

// Of the values that are written, which are the sums rounded to T: of the tile whose first row is `first_row` of
// `rows`, and whose first column is map `first_map`, the first of `columns`.
//
// A warp goes over the registers of its part of the tile twice, for the mean and for the deviations from it; then a
// thread for each column merges what the warps below each other have found. The first barrier says that the slabs of
// the sums' way to memory have been read, the second that all warps' parts are there.
template <class T, class Product>
__device__ void store_statistics(const typename Product::Sums& sums, const Statistics& statistics, int first_row,
                                 int rows, int first_map, int columns) {
  using Sums = typename Product::Sums;
  constexpr GemmTile kTile = Product::kTile;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, warp_row = warp / kTile.warps_n;
  const int there = std::clamp(rows - first_row - warp_row * kTile.warp_m(), 0, kTile.warp_m());
  const auto count = static_cast<float>(there), share = 1 / static_cast<float>(std::max(there, 1));
  const Shared<Moments> parts = shared_memory<Moments>();
  const auto value = [&](int i, int j) { return to_float(from_float<T>(sums.at(i, j))); };
  __syncthreads();
#pragma unroll
  for (int j = 0; j < Sums::kOwnColumns; ++j) {
    float sum = 0, m2 = 0;
#pragma unroll
    for (int i = 0; i < Sums::kOwnRows; ++i) sum += Sums::row(i) < there ? value(i, j) : 0;
    const float mean = sum_of_lanes(sum) * share;
#pragma unroll
    for (int i = 0; i < Sums::kOwnRows; ++i) {
      const float deviation = Sums::row(i) < there ? value(i, j) - mean : 0;
      m2 += deviation * deviation;
    }
    m2 = sum_of_lanes(m2);
    const int column = warp % kTile.warps_n * kTile.warp_n() + Sums::column(j);
    if (thread % 32 < 4) parts.store(warp_row * kTile.block_n + column, {count, mean, m2});
  }
  __syncthreads();
  float* const to = statistics.partials + int64_t{first_row / kTile.block_m} * 3 * statistics.maps + first_map;
  for (int column = thread; column < std::min(kTile.block_n, columns); column += kTile.threads()) {
    Moments all = parts.load(column);
#pragma unroll
    for (int i = 1; i < kTile.warps_m; ++i) all.merge(parts.load(i * kTile.block_n + column));
    store_moments(to + column, statistics.maps, all);
  }
}

}  // namespace cnnkern::cuda
