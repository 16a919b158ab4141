// What one warp does with a step of k that lies in shared memory: its part of the product, on tensor cores or on CUDA
// cores, with the sums in registers. Both have
//   multiply(a, b)     sums += a b, with a [warp_m][block_k] and b [block_k][warp_n] at the warp's place in the tiles
//   slab(i, write)     calls write(row, column, sums), a vector, for this thread's sums of the warp's rows 32 i.. + 31
//   at(i, j)           one of this thread's sums, at row(i) and column(j) of the warp's part: kOwnRows x kOwnColumns of
//                      them. The other rows of its columns are those of the lanes with the same lane % 4.
#pragma once

#include <primitives/mma_sm80.h>

#include "gemm_slab.h"
#include "gemm_tile.h"

namespace cnnkern::cuda {

// A fragment [16][kMmaK] of A from row m and column k on.
template <Major kMajor, class T, int kRows, int kColumns>
__device__ void load_a(uint32_t (&to)[4], SharedTile<T, kRows, kColumns> tile, int m, int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kMajor == Major::k) {
    load_matrices(to, tile.at(m + lane % 16, k + lane / 16 * kWidest<T>));
  } else if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(to, tile.at(k + lane % 8 + lane / 16 * 8, m + lane / 8 % 2 * 8));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[i] = tile.at(k + lane % 4 + i / 2 * 4, m + lane / 4 + i % 2 * 8).template as<uint32_t>().load();
  }
}

// Two fragments [kMmaK][8] of B from row k and column n on.
template <Major kMajor, class T, int kRows, int kColumns>
__device__ void load_b(uint32_t (&to)[2][2], SharedTile<T, kRows, kColumns> tile, int k, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t all[4];
  if constexpr (kMajor == Major::k) {
    load_matrices(all, tile.at(n + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * kWidest<T>));
  } else if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(all, tile.at(k + lane % 16, n + lane / 16 * 8));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      all[i] = tile.at(k + lane % 4 + i % 2 * 4, n + lane / 4 + i / 2 * 8).template as<uint32_t>().load();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i / 2][i % 2] = all[i];
}

// Fragments of 16 rows and of 8 columns; every element that is loaded is used warp_n / 8 or warp_m / 16 times.
template <class T, GemmTile kTile, Major kMajorA, Major kMajorB> class TensorCores {
  static constexpr int kRows = kTile.warp_m() / 16, kColumns = kTile.warp_n() / 8;
  static_assert(kTile.warp_m() % kSlab == 0 && kColumns % 2 == 0 && kTile.block_k % kMmaK<T> == 0);

 public:
  static constexpr int kOwnRows = 2 * kRows, kOwnColumns = 2 * kColumns;
  static __device__ int row(int i) { return i * 8 + static_cast<int>(threadIdx.x) % 32 / 4; }
  static __device__ int column(int j) { return j / 2 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + j % 2; }
  __device__ float at(int i, int j) const { return sums_[i / 2][j / 2][i % 2 * 2 + j % 2]; }

  template <class TileA, class TileB> __device__ void multiply(TileA a, TileB b) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int m = warp / kTile.warps_n * kTile.warp_m(), n = warp % kTile.warps_n * kTile.warp_n();
#pragma unroll
    for (int k = 0; k < kTile.block_k; k += kMmaK<T>) {
      uint32_t left[kRows][4], right[kColumns / 2][2][2];
#pragma unroll
      for (int i = 0; i < kRows; ++i) load_a<kMajorA>(left[i], a, m + 16 * i, k);
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j) load_b<kMajorB>(right[j], b, k, n + 16 * j);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) mma<T>(sums_[i][j], left[i], right[j / 2][j % 2]);
      }
    }
  }

  template <class Write> __device__ void slab(int index, Write write) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i / 2 != index) continue;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          write(i % 2 * 16 + e * 4 + lane / 4, j * 8 + lane % 4 * 2,
                Vector<float, 2>{sums_[i][j][e], sums_[i][j][e + 1]});
      }
    }
  }

 private:
  float sums_[kRows][kColumns][4] = {};
};

// Lanes as 8 x 4, each with an outer product of its own for every k. Where k is the neighbour, a lane reads 4 k of a
// row and its rows are 8 (columns: 4) apart, else it reads 4 neighbouring rows of one k: either way 16 bytes, which
// neighbouring lanes find in different banks, and 16 multiplications for each load.
template <class T, GemmTile kTile, Major kMajorA, Major kMajorB> class CudaCores {
  static_assert(sizeof(T) == 4);
  static constexpr int kLanesM = 8, kLanesN = 4;
  static constexpr int kRows = kTile.warp_m() / kLanesM, kColumns = kTile.warp_n() / kLanesN;
  static_assert(kTile.warp_m() % kSlab == 0 && kTile.warp_n() % 16 == 0);

 public:
  static constexpr int kOwnRows = kRows, kOwnColumns = kColumns;
  static __device__ int row(int i) { return place<kMajorA, kLanesM>(i, static_cast<int>(threadIdx.x) / 4 % 8); }
  static __device__ int column(int j) { return place<kMajorB, kLanesN>(j, static_cast<int>(threadIdx.x) % 4); }
  __device__ float at(int i, int j) const { return sums_[i][j]; }

  template <class TileA, class TileB> __device__ void multiply(TileA a, TileB b) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
    const int m = warp / kTile.warps_n * kTile.warp_m(), n = warp % kTile.warps_n * kTile.warp_n();
#pragma unroll 1  // or all loads of a step would be held at once
    for (int k = 0; k < kTile.block_k; k += 4) {
      float left[kRows][4], right[kColumns][4];
      load<kMajorA, kLanesM>(left, a, m, thread / 4 % 8, k);
      load<kMajorB, kLanesN>(right, b, n, thread % 4, k);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kColumns; ++j) sums_[i][j] += left[i][e] * right[j][e];
        }
      }
    }
  }

  template <class Write> __device__ void slab(int index, Write write) const {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i / 4 != index) continue;
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        write(place<kMajorA, kLanesM>(i, thread / 4 % 8) % kSlab, place<kMajorB, kLanesN>(j, thread % 4),
              Vector<float, 1>{sums_[i][j]});
    }
  }

 private:
  // The row (column) of the warp that is a lane's i-th.
  template <Major kMajor, int kLanes> static __device__ int place(int i, int lane) {
    return kMajor == Major::k ? lane + kLanes * i : i / 4 * 4 * kLanes + 4 * lane + i % 4;
  }

  template <Major kMajor, int kLanes, int kCount, class Tile>
  static __device__ void load(float (&to)[kCount][4], Tile tile, int begin, int lane, int k) {
    constexpr bool kRowsOfK = kMajor == Major::k;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {  // i: a row, with 4 k; or a k of 4 rows
      const int first = begin + place<kMajor, kLanes>(kRowsOfK ? i : i / 4 * 4, lane);
      const Vector<float, 4> four =
          (kRowsOfK ? tile.at(first, k) : tile.at(k + i % 4, first)).template load_vector<4>();
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (kRowsOfK) to[i][e] = four[e];
        else to[i / 4 * 4 + e][i % 4] = four[e];
      }
    }
  }

  float sums_[kRows][kColumns] = {};
};

}  // namespace cnnkern::cuda
