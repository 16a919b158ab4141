// The copy engine of Hopper (PTX ISA, "cp.async.bulk.tensor"; sm_90): one thread has a whole tile copied from a tensor
// in global memory to shared memory, which a barrier counts in bytes, or back. Rows of a tile are 128 bytes; their
// 16-byte pieces are swizzled as primitives/mma_sm90.h reads them. A tile begins at a multiple of 1024.
#pragma once

#include <cuda.h>
#include <primitives/launcher.h>
#include <primitives/mbarrier.h>
#include <primitives/tensor_map.h>

#include <array>

namespace cnnkern::cuda {

// A tensor view as the copy engine reads it. Kernels take it in their parameters, declared __grid_constant__.
using TensorMap = CUtensorMap;

// --- on the host -----------------------------------------------------------------------------------------------------

// A function of the driver, which is not linked against: a machine without a GPU has none.
template <class Function> Function driver_function(const char* name, const Call& call) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found), call);
  if (found != cudaDriverEntryPointSuccess) fail(call, std::string("the driver has no ") + name);
  return reinterpret_cast<Function>(function);
}

inline TensorMap encode(const TensorView& view, const Call& call) {
  const DeviceGuard guard(call.device, call);  // the driver asks for a context
  static const auto encode_box = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled", call);
  static const auto encode_pixels =
      driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col", call);
  constexpr CUtensorMapDataType kTypes[] = {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
                                            CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16};
  const auto type = view.as_tf32 ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 : kTypes[static_cast<int>(view.dtype)];
  const auto rank = static_cast<cuuint32_t>(view.rank);
  void* address = const_cast<void*>(view.address);
  cuuint64_t size[4], stride_bytes[3] = {};
  cuuint32_t box[4], step[4] = {1, 1, 1, 1};
  for (int i = 0; i < view.rank; ++i) {
    size[i] = static_cast<cuuint64_t>(view.size[i]);
    box[i] = static_cast<cuuint32_t>(view.box[i]);
    if (i > 0)
      stride_bytes[i - 1] = static_cast<cuuint64_t>(view.stride[i] * kDTypeSizes[static_cast<int>(view.dtype)]);
  }
  TensorMap map;
  CUresult result;
  if (view.pixels.walked) {
    for (const int i : {0, 1}) step[1 + i] = static_cast<cuuint32_t>(view.pixels.step[i]);
    result = encode_pixels(&map, type, rank, address, size, stride_bytes, view.pixels.lower, view.pixels.upper, box[0],
                           box[1], step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  } else {
    result =
        encode_box(&map, type, rank, address, size, stride_bytes, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
  if (result != CUDA_SUCCESS)
    fail(call, "the driver refuses (" + std::to_string(result) + ") a tensor map of " + to_string(view));
  return map;
}

// The map of a view: kept from an earlier call of this thread, else made. A map says where a tensor lies and nothing of
// what is there, so one that is kept is never out of date.
inline TensorMap tensor_map(const TensorView& view, const Call& call) {
  constexpr size_t kKept = 64;
  struct Entry {
    TensorView view;
    TensorMap map;
  };
  thread_local std::array<Entry, kKept> entries;
  thread_local size_t next = 0;
  for (const Entry& entry : entries) {
    if (entry.view == view) return entry.map;
  }
  const Entry& made = entries[next++ % kKept] = {view, encode(view, call)};
  return made.map;
}

// --- on the device, by one thread ------------------------------------------------------------------------------------

__device__ inline void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box of three dimensions that begins at `at`, into every block of the cluster whose bit is set in `blocks`: to the
// same place there, and counted by the barrier in the same place.
template <class T>
__device__ void load_box(Shared<T> to, const TensorMap& map, const Barrier& counted, int at0, int at1, int at2,
                         int blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to.address()),
      "l"(&map), "r"(counted.address()), "r"(at0), "r"(at1), "r"(at2), "h"(static_cast<uint16_t>(blocks))
      : "memory");
}
// The same into this block.
template <class T>
__device__ void load_box(Shared<T> to, const TensorMap& map, const Barrier& counted, int at0, int at1, int at2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to.address()),
      "l"(&map), "r"(counted.address()), "r"(at0), "r"(at1), "r"(at2)
      : "memory");
}

// Pixels from (image, row, column) on, each moved by a tap's offset, and their maps from `map` on; to several blocks as
// load_box.
template <class T>
__device__ void load_pixels(Shared<T> to, const TensorMap& tensor, const Barrier& counted, int map, int column, int row,
                            int image, int offset_column, int offset_row, int blocks) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(to.address()),
      "l"(&tensor), "r"(counted.address()), "r"(map), "r"(column), "r"(row), "r"(image),
      "h"(static_cast<uint16_t>(offset_column)), "h"(static_cast<uint16_t>(offset_row)),
      "h"(static_cast<uint16_t>(blocks))
      : "memory");
}
template <class T>
__device__ void load_pixels(Shared<T> to, const TensorMap& tensor, const Barrier& counted, int map, int column, int row,
                            int image, int offset_column, int offset_row) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(to.address()),
      "l"(&tensor), "r"(counted.address()), "r"(map), "r"(column), "r"(row), "r"(image),
      "h"(static_cast<uint16_t>(offset_column)), "h"(static_cast<uint16_t>(offset_row))
      : "memory");
}

// From shared memory to the box that begins at `at`. What threads have written there comes before if each of them has
// called fence_copy_engine() and then a barrier.
template <class T>
__device__ void store_box(const TensorMap& map, Shared<T> from, int at0, int at1, int at2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(from.address()), "r"(at0), "r"(at1), "r"(at2)
               : "memory");
}
// Ends a group of this thread's stores.
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until all but the latest kPending of this thread's groups have read what they store.
template <int kPending> __device__ void wait_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// What this thread has written to shared memory comes before what is asked of the copy engine after it.
__device__ inline void fence_copy_engine() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace cnnkern::cuda
