// The tile of a matrix product that a block makes, and how its operands lie in shared memory.
#pragma once

#include <primitives/shared.h>

#include <string>

namespace cnnkern::cuda {

// A block multiplies [block_m][block_k] by [block_k][block_n], steps of k being under way in stages - 1 copies, and
// warps_m x warps_n warps share the sums. `resident` blocks are to fit a multiprocessor, which bounds their registers.
struct GemmTile {
  int block_m, block_n, block_k, warps_m, warps_n, stages, resident;

  constexpr int threads() const { return 32 * warps_m * warps_n; }
  constexpr int warp_m() const { return block_m / warps_m; }
  constexpr int warp_n() const { return block_n / warps_n; }
  std::string to_string() const {
    return std::to_string(block_m) + "x" + std::to_string(block_n) + "x" + std::to_string(block_k);
  }
};

// Which index of an operand neighbours in memory differ in: that of the sum, or the row (column) of the product.
enum class Major : int8_t { k, mn };

// What multiplies.
enum class Math : int8_t { tensor_cores, cuda_cores };

// [kRows][kColumns] elements in chunks of 16 bytes, the unit of a copy and of a row of ldmatrix.
//
// Bank conflicts: a line of 128 bytes, that is all 32 banks, has 8 chunks. ldmatrix reads the same chunk of 8 rows one
// below the other, which without more would be the same 4 banks 8 times (4 or 2 times where a line holds 2 or 4 rows).
// So a chunk's place in its line is its number xor the number of the line, modulo the chunks of a row: 8 rows then
// cover 8 different places. Copies write whole lines, in another order. The float fragments that ldmatrix cannot
// transpose are read by words instead, a lane 4 g + t taking element g of row t: 2 chunks of each of 4 rows, so there
// the rows are set off by 2 chunks.
template <class T, int kRows_, int kColumns_> class SharedTile {
 public:
  static constexpr int kRows = kRows_, kColumns = kColumns_, kChunk = kWidest<T>, kChunks = kColumns / kChunk;
  static constexpr int kBytes = kRows * kColumns * static_cast<int>(sizeof(T));
  static_assert(kChunks == 2 || kChunks == 4 || kChunks % 8 == 0);

  __device__ explicit SharedTile(int offset) : at_(shared_memory<T>(offset)) {}

  __device__ Shared<T> at(int row, int column) const {
    return at_ + (row * kColumns + ((column / kChunk) ^ turn(row)) * kChunk + column % kChunk);
  }

 private:
  static __device__ int turn(int row) {
    if constexpr (kChunks >= 8) return sizeof(T) == 4 && kChunks > 8 ? row % 4 * 2 : row % 8;
    else return row / (8 / kChunks) % kChunks;
  }

  Shared<T> at_;
};

}  // namespace cnnkern::cuda
