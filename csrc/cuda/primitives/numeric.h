// Storage types and vectors of them. Everything is summed in float.
#pragma once

#include <primitives/cuda.h>

#include <bit>

#include "../../conv_problem.h"

namespace cnnkern::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T> constexpr DType kDTypeOf = DType::f32;
template <> constexpr DType kDTypeOf<bf16> = DType::bf16;
template <> constexpr DType kDTypeOf<f16> = DType::f16;

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(bf16 v) { return __bfloat162float(v); }
__device__ inline float to_float(f16 v) { return __half2float(v); }

// Rounded to the nearest, ties to even.
template <class T> __device__ T from_float(float v);
template <> __device__ inline float from_float<float>(float v) { return v; }
template <> __device__ inline bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }
template <> __device__ inline f16 from_float<f16>(float v) { return __float2half_rn(v); }

// N elements that are loaded and stored at once: their address is a multiple of their size.
template <class T, int N> struct alignas(sizeof(T) * N) Vector {
  T at[N];
  __device__ T& operator[](int i) { return at[i]; }
  __device__ const T& operator[](int i) const { return at[i]; }
};

// As many elements as the widest access has: 16 bytes.
template <class T> constexpr int kWidest = 16 / static_cast<int>(sizeof(T));

template <int N, class T> __device__ Vector<T, N> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}
template <int N, class T> __device__ void store_vector(T* to, const Vector<T, N>& v) {
  *reinterpret_cast<Vector<T, N>*>(to) = v;
}

// The same elements in registers of 4 bytes. The compiler takes vectors of 16-bit elements apart, one to a register:
// what waits for its use waits as this.
template <class T, int N> struct Packed {
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  uint32_t words[N / kPerWord];

  Packed() = default;
  __device__ explicit Packed(const Vector<T, N>& v) : Packed(std::bit_cast<Packed>(v)) {}
  __device__ T operator[](int i) const {
    if constexpr (kPerWord == 1) return std::bit_cast<T>(words[i]);
    else return std::bit_cast<T>(static_cast<uint16_t>(words[i / kPerWord] >> 16 * (i % kPerWord)));
  }
};

}  // namespace cnnkern::cuda
