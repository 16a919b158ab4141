// The second stage of a weight gradient: what the blocks of the first have summed, slice by slice in the workspace, is
// added in a fixed order, so that the bits are the same from every run.
//
//   slices [splits][taps x maps, then the sums of dbias], float  ->  dw[map][tap], dbias
//
// A block has 32 neighbouring sums; each of its 16 warps adds every 16th slice, and the first adds what they have.
// Bound: the slices are read once, mostly from L2.
#pragma once

#include <primitives/divide.h>
#include <primitives/launcher.h>
#include <primitives/shared.h>

namespace cnnkern::cuda {

template <class T> struct SlicesParams {
  const float* slices;
  T* dw;
  float* dbias;             // null: the slices have no sums of it
  int splits, taps, count;  // count: sums of a slice
  Divider maps;
};

constexpr int kSliceLanes = 32, kSliceParts = 16;

template <class T> __global__ void __launch_bounds__(kSliceLanes* kSliceParts) add_tap_slices(const SlicesParams<T> o) {
  const Shared<float> parts = shared_memory<float>();
  const int lane = threadIdx.x % kSliceLanes, part = threadIdx.x / kSliceLanes;
  const int64_t i = int64_t{blockIdx.x} * kSliceLanes + lane;
  float sum = 0;
  if (i < o.count) {
#pragma unroll 4
    for (int split = part; split < o.splits; split += kSliceParts) sum += o.slices[int64_t{split} * o.count + i];
  }
  parts.store(threadIdx.x, sum);
  __syncthreads();  // the first warp reads what all have written
  if (part > 0 || i >= o.count) return;
  sum = 0;
#pragma unroll
  for (int p = 0; p < kSliceParts; ++p) sum += parts.load(p * kSliceLanes + lane);
  int row = static_cast<int>(i);
  const int map = o.maps.split(row);
  if (row < o.taps) o.dw[int64_t{map} * o.taps + row] = from_float<T>(sum);
  else o.dbias[i - int64_t{o.taps} * o.maps.divisor()] = sum;
}

// A slice has less than 2^31 sums; `biases` of dbias, unless that is null.
template <class T>
void run_add_tap_slices(const float* slices, int64_t splits, int64_t taps, int64_t maps, void* dw, float* dbias,
                        int64_t biases, const Call& call) {
  const int64_t count = taps * maps + (dbias ? biases : 0);
  const SlicesParams<T> o{.slices = slices,
                          .dw = static_cast<T*>(dw),
                          .dbias = dbias,
                          .splits = static_cast<int>(splits),
                          .taps = static_cast<int>(taps),
                          .count = static_cast<int>(count),
                          .maps = Divider(maps)};
  const Grid grid{.x = (count + kSliceLanes - 1) / kSliceLanes,
                  .threads = kSliceLanes * kSliceParts,
                  .shared_bytes = kSliceLanes * kSliceParts * static_cast<int>(sizeof(float))};
  launch(add_tap_slices<T>, grid, o, call);
}

}  // namespace cnnkern::cuda
