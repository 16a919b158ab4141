// Where an operand of Hopper's tensor cores lies (PTX ISA, "wgmma", "Matrix descriptor format").
//
// It lies in rows of 128 bytes in blocks of 8, from a multiple of 1024 bytes on, with the 16-byte pieces of row i at
// piece (its number) xor (i % 8): the 128-byte swizzle, as the copy engine writes it (primitives/tma.h).
#pragma once

#include <primitives/shared.h>

namespace cnnkern::cuda {

constexpr int kSwizzledRow = 128;  // bytes

// How an operand's rows of 128 bytes run: along gemm_k, or along gemm_m or gemm_n (only for 16-bit types).
enum class Rows : int { along_k, along_mn };

// Where an operand of one instruction begins.
class MatrixTile {
 public:
  // block_bytes: from 128 bytes of gemm_m or gemm_n to the next 128; 0 for rows along gemm_k, which have none.
  template <class T>
  __device__ explicit MatrixTile(Shared<T> at, int block_bytes = 0)
      : bits_(field(at.address()) | field(static_cast<uint32_t>(block_bytes)) << 16 | field(8 * kSwizzledRow) << 32 |
              kSwizzle128) {}
  // The tile `bytes` further on, a multiple of 16: 32 for the next k of rows along gemm_k, whole rows else.
  __device__ MatrixTile operator+(int bytes) const {
    MatrixTile next = *this;
    next.bits_ += static_cast<uint32_t>(bytes) >> 4;
    return next;
  }
  __device__ uint64_t bits() const { return bits_; }

 private:
  static constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;

  // A field takes 18 bits of an address; in a cluster the block's rank stands above them.
  __device__ static constexpr uint64_t field(uint32_t bytes) { return (bytes & 0x3ffff) >> 4; }

  uint64_t bits_;
};

}  // namespace cnnkern::cuda
