// wgrad_tile: one register tile of a weight gradient, an outer product summed over pixels.
//
//   sums[i][j] (+)= sum over pairs of a[pair.a + i] * b[pair.b + j],   i < MR, j < NV vectors
//
// a, b  the two operands; a pair holds the offsets of an output pixel and of the input pixel that the tap reads for it,
//       so pixels in the padding are not in the list, and stride, dilation and any layout in memory cost nothing.
// Each pair also fetches one cache line of `next`, which later tiles read, into L2, so that memory and FMAs overlap;
// null: there is nothing left to fetch, and the loop is 2% faster without.
// Bound: MR * NV FMAs against MR + NV loads and two offsets a pair; the sums are read and written once per call.
#pragma once

#include <type_traits>

#include "../simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int64_t kCacheLine = 64;

struct PixelPair { int32_t a, b; };

// The most rows of a tile with NV vectors whose sums stay in registers.
constexpr int wgrad_rows(int vectors) { return vectors == 1 ? 12 : (kRegisters - 1) / vectors - 1; }

template <class A, int MR, int NV>
__attribute__((noinline)) void wgrad_tile(int64_t pairs, const PixelPair* pair, const A* a, const A* b,
                                          const char* next, A* sums, int64_t row_stride, int columns, bool accumulate) {
  using V = Vec<A>;
  constexpr int kLane = kLanes<A>;
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  const auto sum = [&](auto fetches) __attribute__((always_inline)) {
#pragma GCC unroll 1
    for (int64_t n = 0; n < pairs; ++n) {
      const A* values = a + pair[n].a;
      const A* vectors = b + pair[n].b;
      if constexpr (fetches) __builtin_prefetch(next + n * kCacheLine, 0, 2);
      V row[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) row[j] = load(vectors + j * kLane);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const V value = broadcast(values[i]);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) acc[i][j] += value * row[j];
      }
    }
  };
  if (next) sum(std::true_type{});
  else sum(std::false_type{});
  const int last = columns - (NV - 1) * kLane;
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const int n = j == NV - 1 ? last : kLane;
      A* out = sums + i * row_stride + j * kLane;
      store_n(out, accumulate ? acc[i][j] + load_n(out, n) : acc[i][j], n);
    }
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
