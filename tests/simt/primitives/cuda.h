// The host twin of csrc/cuda/primitives/cuda.h: the CUDA language as far as kernels use it, on simt.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../simt.h"

#undef __launch_bounds__
#define __launch_bounds__(...)

#define threadIdx (simt::self().thread_index)
#define blockIdx (simt::self().block_index)
#define blockDim (simt::current_launch.block)
#define gridDim (simt::current_launch.grid)

inline void __syncthreads(simt::Site at = simt::Site::current()) {
  simt::Block& block = *simt::self().block;
  block.barriers[0].sync(block.live, true, "__syncthreads", at);
}

inline void __syncwarp(unsigned mask = 0xffffffff, simt::Site at = simt::Site::current()) {
  static constexpr simt::Meeting::Operation kOperation{"__syncwarp", nullptr, /*orders_memory=*/true};
  simt::meet_warp(mask, nullptr, kOperation, at);
}

namespace simt {

struct Shuffle {
  uint64_t value;
  int source;    // lane
  bool missing;  // nobody is there
};

inline void perform_shuffle(void* const* deposits) {
  uint64_t values[32];
  for (int lane = 0; lane < 32; ++lane) {
    if (deposits[lane]) values[lane] = static_cast<Shuffle*>(deposits[lane])->value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!deposits[lane]) continue;
    auto& shuffle = *static_cast<Shuffle*>(deposits[lane]);
    shuffle.missing = !deposits[shuffle.source];
    shuffle.value = values[shuffle.source];
  }
}

template <class T> T shuffle(unsigned mask, T value, int source, const Site& at) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  static constexpr Meeting::Operation kOperation{"a shuffle", perform_shuffle};
  Shuffle mine{0, source, false};
  std::memcpy(&mine.value, &value, sizeof value);
  meet_warp(mask, &mine, kOperation, at);
  if (mine.missing)
    fail(Fault::divergence, "shuffles a value from lane " + std::to_string(source) + ", which takes no part", at);
  std::memcpy(static_cast<void*>(&value), &mine.value, sizeof value);
  return value;
}

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site at = simt::Site::current()) {
  const int lane = simt::self().lane;
  return simt::shuffle(mask, value, (lane & -width) | (source & (width - 1)), at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, simt::Site at = simt::Site::current()) {
  const int lane = simt::self().lane, source = lane ^ lanes;
  return simt::shuffle(mask, value, source < (lane & -width) + width ? source : lane, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, simt::Site at = simt::Site::current()) {
  const int lane = simt::self().lane, source = lane + static_cast<int>(lanes);
  return simt::shuffle(mask, value, source < (lane & -width) + width ? source : lane, at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, simt::Site at = simt::Site::current()) {
  const int lane = simt::self().lane, source = lane - static_cast<int>(lanes);
  return simt::shuffle(mask, value, source >= (lane & -width) ? source : lane, at);
}

// Of two numbers where one is a NaN, the other, as on a GPU.
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
  if constexpr (std::is_floating_point_v<A>) return std::fmin(a, b);
  return b < a ? b : a;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
  if constexpr (std::is_floating_point_v<A>) return std::fmax(a, b);
  return a < b ? b : a;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
