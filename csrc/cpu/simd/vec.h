// Vectors of the instruction set that this file is compiled for, on GCC's and Clang's vector types.
//
// Vec<float> and Vec<double> are registers: +, -, * and comparisons are the language's own, and a * b + c contracts to
// one FMA. Storage types (bf16, f16) are widened by load and rounded to nearest even by store; arithmetic is always in
// acc_t<T>. Every load and store is unaligned; the _n forms touch only the first n elements in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../isa.h"

namespace cnnkern::cpu::CNNKERN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class T> struct Traits { using acc = T; };
template <> struct Traits<bf16> { using acc = float; };
template <> struct Traits<f16> { using acc = float; };
template <class T> using acc_t = typename Traits<T>::acc;

template <class T> struct VecType {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T> using Vec = typename VecType<T>::type;
// Lanes of an accumulator vector: the number of T elements that one step of a loop handles.
template <class T> constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(acc_t<T>));

using F32 = Vec<float>;
using F64 = Vec<double>;
using I32 = Vec<int32_t>;
using U32 = Vec<uint32_t>;
constexpr int kHalfBytes = kVectorBytes / 2;
typedef uint16_t U16Half __attribute__((vector_size(kHalfBytes), aligned(2), may_alias));

template <class A> CNNKERN_INLINE Vec<A> broadcast(A value) { return value - Vec<A>{}; }

// A loaded vector that stays in its register: GCC else repeats the load in every FMA that uses it.
template <class V> CNNKERN_INLINE V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// --- scalar conversions ---------------------------------------------------------------------------------------------

CNNKERN_INLINE float to_acc(float v) { return v; }
CNNKERN_INLINE double to_acc(double v) { return v; }
CNNKERN_INLINE float to_acc(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}
CNNKERN_INLINE float to_acc(f16 v) {
  _Float16 half;
  std::memcpy(&half, &v.bits, sizeof half);
  return static_cast<float>(half);
}

template <class T> CNNKERN_INLINE T from_acc(acc_t<T> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    if (v != v) return bf16{static_cast<uint16_t>((bits >> 16) | 0x0040)};  // a NaN stays a NaN
    return bf16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  } else if constexpr (std::is_same_v<T, f16>) {
    const _Float16 half = static_cast<_Float16>(v);
    f16 out;
    std::memcpy(&out.bits, &half, sizeof half);
    return out;
  } else {
    return v;
  }
}

// --- full vectors ---------------------------------------------------------------------------------------------------

CNNKERN_INLINE F32 load(const float* p) { return *reinterpret_cast<const F32*>(p); }
CNNKERN_INLINE F64 load(const double* p) { return *reinterpret_cast<const F64*>(p); }
CNNKERN_INLINE void store(float* p, F32 v) { *reinterpret_cast<F32*>(p) = v; }
CNNKERN_INLINE void store(double* p, F64 v) { *reinterpret_cast<F64*>(p) = v; }

// The 16 bits of each element of a storage type, in a vector of half the accumulator's size, and back.
template <class T> CNNKERN_INLINE F32 widen(U16Half bits) {
  if constexpr (std::is_same_v<T, bf16>) return reinterpret_cast<F32>(__builtin_convertvector(bits, U32) << 16);
#if defined(__AVX512F__)
  return reinterpret_cast<F32>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(bits)));
#elif defined(__F16C__)
  return reinterpret_cast<F32>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(bits)));
#else
  F32 out;
  for (int i = 0; i < kLanes<float>; ++i) out[i] = to_acc(f16{bits[i]});
  return out;
#endif
}
#if defined(__AVX512BF16__)
CNNKERN_INLINE U16Half round_bf16(F32 v) {
  return reinterpret_cast<U16Half>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
}
#else
CNNKERN_INLINE U16Half round_bf16(F32 v) {
  const U32 bits = reinterpret_cast<U32>(v);
  const U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U32 nan = (bits >> 16) | 0x0040;
  const U32 is_nan = reinterpret_cast<U32>(v != v);
  return __builtin_convertvector((rounded & ~is_nan) | (nan & is_nan), U16Half);
}
#endif
template <class T> CNNKERN_INLINE U16Half narrow(F32 v) {
  if constexpr (std::is_same_v<T, bf16>) return round_bf16(v);
#if defined(__AVX512F__)
  return reinterpret_cast<U16Half>(_mm512_cvtps_ph(reinterpret_cast<__m512>(v), 0));
#elif defined(__F16C__)
  return reinterpret_cast<U16Half>(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), 0));
#else
  U16Half out;
  for (int i = 0; i < kLanes<float>; ++i) out[i] = from_acc<f16>(v[i]).bits;
  return out;
#endif
}

CNNKERN_INLINE F32 load(const bf16* p) { return widen<bf16>(*reinterpret_cast<const U16Half*>(p)); }
CNNKERN_INLINE F32 load(const f16* p) { return widen<f16>(*reinterpret_cast<const U16Half*>(p)); }
CNNKERN_INLINE void store(bf16* p, F32 v) { *reinterpret_cast<U16Half*>(p) = narrow<bf16>(v); }
CNNKERN_INLINE void store(f16* p, F32 v) { *reinterpret_cast<U16Half*>(p) = narrow<f16>(v); }

// --- past the caches ------------------------------------------------------------------------------------------------

// An aligned vector goes to memory without the read of its cache line that an ordinary store begins with, and without
// putting others out of the caches. Other vectors, and types that are rounded on the way, are stored as ever.
template <class T> CNNKERN_INLINE void stream(T* p, Vec<acc_t<T>> v) {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    if (reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0) {
#if defined(__AVX512F__)
      return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX__)
      return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#else
      return _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
#endif
    }
  }
#endif
  store(p, v);
}

// Orders what was streamed before whatever the thread stores next: before other threads may read it.
CNNKERN_INLINE void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// --- the first n elements, 0 <= n <= lanes --------------------------------------------------------------------------

#if defined(__AVX512F__)
CNNKERN_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
#elif defined(__AVX2__)
// AVX2 masks moves of 4 and 8 bytes; parts of a vector of 16-bit elements go through memory.
template <class T> CNNKERN_INLINE __m256i first_lanes(int n) {
  if constexpr (sizeof(T) == 8) return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// Whether load_n and store_n are one move; else parts of a vector go through memory.
#if defined(__AVX512F__)
template <class T> constexpr bool kMasksLoads = true;
#elif defined(__AVX2__)
template <class T> constexpr bool kMasksLoads = sizeof(T) >= 4;
#else
template <class T> constexpr bool kMasksLoads = false;
#endif

template <class T> CNNKERN_INLINE Vec<acc_t<T>> load_n(const T* p, int n) {
  if (n == kLanes<T>) return load(p);
#if defined(__AVX512F__)
  const __mmask16 first = first_lanes(n);
  if constexpr (std::is_same_v<T, float>) return reinterpret_cast<F32>(_mm512_maskz_loadu_ps(first, p));
  else if constexpr (std::is_same_v<T, double>) return reinterpret_cast<F64>(_mm512_maskz_loadu_pd(first, p));
  else return widen<T>(reinterpret_cast<U16Half>(_mm256_maskz_loadu_epi16(first, p)));
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return reinterpret_cast<F32>(_mm256_maskload_ps(p, first_lanes<T>(n)));
  if constexpr (std::is_same_v<T, double>) return reinterpret_cast<F64>(_mm256_maskload_pd(p, first_lanes<T>(n)));
#endif
  T buffer[kLanes<T>] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T> CNNKERN_INLINE void store_n(T* p, Vec<acc_t<T>> v, int n) {
  if (n == kLanes<T>) return store(p, v);
#if defined(__AVX512F__)
  const __mmask16 first = first_lanes(n);
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, first, reinterpret_cast<__m512>(v));
  else if constexpr (std::is_same_v<T, double>) return _mm512_mask_storeu_pd(p, first, reinterpret_cast<__m512d>(v));
  else return _mm256_mask_storeu_epi16(p, first, reinterpret_cast<__m256i>(narrow<T>(v)));
#elif defined(__AVX2__)
  const __m256i first = first_lanes<T>(n);
  if constexpr (std::is_same_v<T, float>) return _mm256_maskstore_ps(p, first, reinterpret_cast<__m256>(v));
  if constexpr (std::is_same_v<T, double>) return _mm256_maskstore_pd(p, first, reinterpret_cast<__m256d>(v));
#endif
  T buffer[kLanes<T>];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

#if defined(__AVX512BF16__)
// n pairs of neighbours, each in a lane; p has the alignment of one element.
CNNKERN_INLINE U32 load_pairs(const bf16* p, int n) {
  if (n == kLanes<float>) return reinterpret_cast<U32>(_mm512_loadu_si512(p));
  return reinterpret_cast<U32>(_mm512_maskz_loadu_epi32(first_lanes(n), p));
}

// n elements, n <= 2 * lanes, as pairs; the partner of an odd last one is zero.
CNNKERN_INLINE U32 load_bits(const bf16* p, int n) {
  if (n == 2 * kLanes<float>) return reinterpret_cast<U32>(_mm512_loadu_si512(p));
  return reinterpret_cast<U32>(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p));
}
#endif

// --- lane-wise minimum and maximum: NaN in `v` stays NaN -----------------------------------------------------------

template <class V> CNNKERN_INLINE V max(V v, V bound) { return v < bound ? bound : v; }
template <class V> CNNKERN_INLINE V min(V v, V bound) { return v > bound ? bound : v; }

template <class A> CNNKERN_INLINE A sum(Vec<A> v) {
  A total = 0;
  for (int i = 0; i < kLanes<A>; ++i) total += v[i];
  return total;
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
