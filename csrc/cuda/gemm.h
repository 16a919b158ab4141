// A block's matrix product: D[block_m][block_n] = sum over k of A[m][k] B[k][n], in steps of block_k through shared
// memory. It knows nothing of convolutions: where elements of A and B come from is a source's business
// (gemm_sources.h), what becomes of a sum a writer's.
//
// A source has
//   Place<T> at(int i, int row, int column, cursor)   where an element of this step's tile is, if there is one: row and
//                                                     column of the tile; i numbers the thread's own rows, for what
//                                                     a source keeps of each
//   float read(const T* from, int column, cursor)     its value, with the prologue
// and a cursor walks along k: next().
#pragma once

#include <primitives/copy.h>
#include <primitives/grid.h>

#include <algorithm>
#include <type_traits>

#include "gemm_warp.h"

namespace cnnkern::cuda {

// An element's address, and whether there is one; where there is none it is zero and nothing is read.
template <class T> struct Place {
  const T* from;
  bool valid;
};

// How elements are brought: 16 bytes at once past the registers, or one by one, which takes any size, alignment and
// prologue.
enum class Loads : int8_t { vectors, elements };

// A kernel's tile, what it multiplies with, and how it loads.
struct GemmVariant {
  GemmTile tile;
  Math math;
  Loads loads;
};

template <class T, GemmVariant kVariant, Major kMajorA, Major kMajorB> class Gemm {
 public:
  static constexpr GemmTile kTile = kVariant.tile;
  static constexpr int kVector = kVariant.loads == Loads::vectors ? kWidest<T> : 1;  // elements stored at once

 private:
  template <Major kMajor, int kSize>
  using TileOf = SharedTile<T, kMajor == Major::k ? kSize : kTile.block_k, kMajor == Major::k ? kTile.block_k : kSize>;

 public:
  using TileA = TileOf<kMajorA, kTile.block_m>;
  using TileB = TileOf<kMajorB, kTile.block_n>;
  using Sums = std::conditional_t<kVariant.math == Math::tensor_cores, TensorCores<T, kTile, kMajorA, kMajorB>,
                                  CudaCores<T, kTile, kMajorA, kMajorB>>;
  static constexpr int kThreads = kTile.threads();

  // Which rows of a tile a thread brings: kCount of them, kStep apart from kStep's remainder on.
  template <class Tile> struct Rows {
    static constexpr int kStep = kThreads / Tile::kChunks, kCount = Tile::kRows / kStep;
    static_assert(kThreads % Tile::kChunks == 0 && Tile::kRows % kStep == 0);
    static __device__ int row(int i) { return static_cast<int>(threadIdx.x) / Tile::kChunks + i * kStep; }
    static __device__ int column() { return static_cast<int>(threadIdx.x) % Tile::kChunks * Tile::kChunk; }
  };
  static constexpr int kRowsA = Rows<TileA>::kCount, kRowsB = Rows<TileB>::kCount;

  static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
  static constexpr int kSlabBytes = slab_bytes<kTile.warp_n()>();
  static constexpr int kSharedBytes = std::max(kTile.stages * kStageBytes, kThreads / 32 * kSlabBytes);
  static_assert(kSharedBytes <= kSharedOfEveryGpu);

  // sums += the product over `steps` steps of the cursor.
  //
  // One barrier a step does two things. It makes the copies of this step, for which each thread has waited, visible to
  // all; and since a thread comes to it only after the step before, all have read that step's stage, which is the one
  // that the copies started next overwrite.
  template <class SourceA, class SourceB, class Cursor>
  static __device__ void multiply(Sums& sums, const SourceA& a, const SourceB& b, Cursor cursor, int steps) {
#pragma unroll
    for (int step = 0; step < kTile.stages - 1; ++step) {
      if (step < steps) fetch(a, b, cursor, step);
      commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
      wait_copies<kTile.stages - 2>();
      __syncthreads();
      const int ahead = step + kTile.stages - 1;
      if (ahead < steps) fetch(a, b, cursor, ahead % kTile.stages);
      commit_copies();  // an empty group keeps the count of those under way
      const int stage = step % kTile.stages * kStageBytes;
      sums.multiply(TileA(stage), TileB(stage + TileA::kBytes));
    }
    wait_copies<0>();
    __syncthreads();  // the stages' memory becomes the slabs'
  }

  // Calls write(row, column, sums) for every kVector neighbouring sums of the block's tile.
  template <class Write> static __device__ void store(const Sums& sums, Write write) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int m = warp / kTile.warps_n * kTile.warp_m(), n = warp % kTile.warps_n * kTile.warp_n();
#pragma unroll
    for (int i = 0; i < kTile.warp_m() / kSlab; ++i) {
      through_slab<kTile.warp_n(), kVector>(
          warp * kSlabBytes, [&](auto put) { sums.slab(i, put); },
          [&](int row, int column, const float (&some)[kVector]) { write(m + i * kSlab + row, n + column, some); });
    }
  }

 private:
  // Starts the copies of the cursor's step into a stage.
  template <class SourceA, class SourceB, class Cursor>
  static __device__ void fetch(const SourceA& a, const SourceB& b, Cursor& cursor, int stage) {
    fetch_tile(a, cursor, TileA(stage * kStageBytes));
    fetch_tile(b, cursor, TileB(stage * kStageBytes + TileA::kBytes));
    cursor.next();
  }

  template <class Source, class Cursor, class Tile>
  static __device__ void fetch_tile(const Source& source, const Cursor& cursor, Tile tile) {
    const int column = Rows<Tile>::column();
#pragma unroll
    for (int i = 0; i < Rows<Tile>::kCount; ++i) {
      const int row = Rows<Tile>::row(i);
      if constexpr (kVariant.loads == Loads::vectors) {
        const Place<T> place = source.at(i, row, column, cursor);
        copy_async<16>(tile.at(row, column), place.from, place.valid);
      } else {
        Vector<T, Tile::kChunk> some;
#pragma unroll
        for (int e = 0; e < Tile::kChunk; ++e) {
          const Place<T> place = source.at(i, row, column + e, cursor);
          some[e] = place.valid ? from_float<T>(source.read(place.from, column + e, cursor)) : from_float<T>(0);
        }
        tile.at(row, column).template store_vector<Tile::kChunk>(0, some);
      }
    }
  }
};

}  // namespace cnnkern::cuda
