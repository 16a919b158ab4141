// How sums get from the registers, where tensor cores leave two neighbours a lane, to memory in whole vectors.
#pragma once

#include <primitives/shared.h>

namespace cnnkern::cuda {

constexpr int kSlab = 32;  // rows of sums that a warp passes through shared memory at a time

// Rows are 8 banks apart, modulo 32, so that the pairs of 4 rows, which a lane 4 g + t puts at (g, 2 t), do not meet.
template <int kColumns> constexpr int slab_stride() { return kColumns + 8; }
template <int kColumns> constexpr int slab_bytes() { return kSlab * slab_stride<kColumns>() * 4; }

// Calls write(row, column, sums) for every kVector neighbouring sums of a slab of one warp, so that neighbouring lanes
// have neighbouring vectors: whole sectors of memory. fill(put) calls put(row, column, sums) for those that this thread
// has. The slab at `offset` in shared memory is the warp's alone.
template <int kColumns, int kVector, class Fill, class Write>
__device__ void through_slab(int offset, Fill fill, Write write) {
  constexpr int kStride = slab_stride<kColumns>(), kVectors = kColumns / kVector, kAtOnce = kVector < 4 ? kVector : 4;
  const Shared<float> slab = shared_memory<float>(offset);
  fill([&]<int kCount>(int row, int column, const Vector<float, kCount>& some) {
    slab.template store_vector<kCount>(row * kStride + column, some);
  });
  __syncwarp();  // the slab is full
#pragma unroll 4
  for (int j = 0; j < kVectors; ++j) {
    const int v = j * 32 + static_cast<int>(threadIdx.x) % 32, row = v / kVectors, column = v % kVectors * kVector;
    float some[kVector];
#pragma unroll
    for (int i = 0; i < kVector; i += kAtOnce) {
      const Vector<float, kAtOnce> part = slab.template load_vector<kAtOnce>(row * kStride + column + i);
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) some[i + e] = part[e];
    }
    write(row, column, some);
  }
  __syncwarp();  // read before the next slab is put there
}

// Neighbouring floats, 16 bytes at once where there are that many.
template <int kCount> __device__ void store_floats(float* to, const float (&some)[kCount]) {
  constexpr int kAtOnce = kCount < 4 ? kCount : 4;
#pragma unroll
  for (int i = 0; i < kCount; i += kAtOnce) {
    Vector<float, kAtOnce> part;
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) part[e] = some[i + e];
    store_vector<kAtOnce>(to + i, part);
  }
}

}  // namespace cnnkern::cuda
