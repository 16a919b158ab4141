// brgemm_tile: one register tile of a batch-reduce GEMM, the core of every dense convolution here.
//
//   y[i][j] = epilogue( sum over taps t and d < depth of rows[t][i][x_offset[t] + d] * panel[tap_offset[t] + d][j] )
//
// rows    one pointer per tap and tile row, so that padding (a row of zeros), stride, dilation and tiles that span
//         image rows cost nothing in the loop (the indirection of arXiv 1907.02129); off the border one per tile row
// panel   packed weights, [depth of all taps][NV vectors], see packing.h
//
// The idea is LIBXSMM's batch reduce (arXiv 1906.06440): the sum over filter taps stays in registers, so y is written
// once. Bound: one FMA vector per tile element and step; a 6x4 tile needs 10 loads for 24 FMAs. Measured on one Zen 4
// core with the panel in L2: 117 GFLOP/s fp32 in AVX-512 and in AVX2, the core's FMA peak.
#pragma once

#include <limits>

#include "../../epilogue.h"
#include "../simd/activation.h"
#include "../simd/vec.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// The epilogue's operands; scale and shift per column, residual rows like y's.
template <class Out> struct EpilogueArgs {
  const acc_t<Out>* scale = nullptr;
  const acc_t<Out>* shift = nullptr;
  const Out* residual = nullptr;
  int64_t residual_pixel_stride = 0;
  Activation activation = Activation::none;
  acc_t<Out> alpha = 0;
};

// What one step of the reduction multiplies: a scalar of x with a vector of weights, or for bf16 where the processor
// has the instruction, two neighbours of each at once (vdpbf16ps). lanes: n elements, kDepth in each lane of a vector.
template <class In> struct Step {
  using Packed = In;
  using V = Vec<acc_t<In>>;
  static constexpr int kDepth = 1;
  static CNNKERN_INLINE V weights(const Packed* p) { return load(p); }
  static CNNKERN_INLINE V value(const In* p) { return broadcast(to_acc(*p)); }
  static CNNKERN_INLINE V lanes(const In* p, int n) { return load_n(p, n); }
  static CNNKERN_INLINE V fma(V acc, V a, V b) { return acc + a * b; }
};
#if defined(__AVX512BF16__)
template <> struct Step<bf16> {
  using Packed = uint32_t;  // two neighbouring bf16 of the reduction
  static constexpr int kDepth = 2;
  static CNNKERN_INLINE U32 weights(const Packed* p) { return *reinterpret_cast<const U32*>(p); }
  static CNNKERN_INLINE U32 value(const bf16* p) {
    uint32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return pair - U32{};
  }
  static CNNKERN_INLINE U32 lanes(const bf16* p, int n) { return load_bits(p, n); }
  static CNNKERN_INLINE F32 fma(F32 acc, U32 a, U32 b) {
    return reinterpret_cast<F32>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
};
#endif

template <class In, class Out> struct Tile {
  int64_t taps;
  const In* const* rows;  // [taps][tile rows], or [tile rows] with rows_per_tap 0
  int64_t rows_per_tap;
  const int64_t* x_offsets;                // [taps], elements of x
  const int64_t* tap_offsets;              // [taps], in vectors' rows of the panel
  int64_t depth;                           // elements of x per tap, a multiple of Step<In>::kDepth
  const typename Step<In>::Packed* panel;  // [total depth / kDepth][NV * lanes]
  Out* y;                                  // at the tile's first column
  int64_t y_pixel_stride;
  const int64_t* pixels;  // [tile rows], pixel of y (and of the residual) of each row
  int fetch_rows;         // rows of y to fetch into the cache meanwhile: 0, or the tile's
  int64_t column;         // the tile's first column, an index into scale, shift and residual
  int columns;            // <= NV * lanes, the columns that exist
};

// The epilogue without its activation, for n columns of one pixel.
template <class Out>
CNNKERN_INLINE Vec<acc_t<Out>> affine(Vec<acc_t<Out>> v, const EpilogueArgs<Out>& e, int64_t column, int64_t pixel,
                                      int n) {
  if (e.scale) v = v * load_n(e.scale + column, n);
  if (e.shift) v = v + load_n(e.shift + column, n);
  if (e.residual) v = v + load_n(e.residual + pixel * e.residual_pixel_stride + column, n);
  return v;
}

// Writes a tile that needs more than ReLU: out of line and in a loop, so that the common tail stays short.
template <class In, class Out>
__attribute__((noinline)) void store_activated(const Tile<In, Out>& tile, const EpilogueArgs<Out>& epilogue, int rows,
                                               int vectors, const acc_t<Out>* sums) {
  constexpr int kLane = kLanes<Out>;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < vectors; ++j) {
      const int n = j == vectors - 1 ? tile.columns - j * kLane : kLane;
      const auto v =
          affine<Out>(load(sums + (i * vectors + j) * kLane), epilogue, tile.column + j * kLane, tile.pixels[i], n);
      store_n(tile.y + tile.pixels[i] * tile.y_pixel_stride + j * kLane,
              activate(v, epilogue.activation, epilogue.alpha), n);
    }
  }
}

template <class In, class Out, int MR, int NV>
__attribute__((noinline)) void brgemm_tile(const Tile<In, Out>& tile, const EpilogueArgs<Out>& epilogue) {
  using A = acc_t<Out>;
  using V = Vec<A>;
  constexpr int kLane = kLanes<A>, kLine = 64 / sizeof(Out);
  constexpr bool kFetches = MR * NV * kLane > 16 * kLine;  // fewer lines wait in the store queue without harm
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  for (int64_t t = 0; t < tile.taps; ++t) {
    if constexpr (kFetches) {
      for (int64_t i = t; i < tile.fetch_rows; i += tile.taps) {
        const Out* y = tile.y + tile.pixels[i] * tile.y_pixel_stride;
#pragma GCC unroll 8
        for (int j = 0; j < NV * kLane; j += kLine) __builtin_prefetch(y + j, 1, 2);
      }
    }
    const In* a[MR];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) a[i] = tile.rows[t * tile.rows_per_tap + i] + tile.x_offsets[t];
    const auto* b = tile.panel + tile.tap_offsets[t] * (NV * kLane);
#pragma GCC unroll 1
    for (int64_t d = 0; d < tile.depth; d += Step<In>::kDepth) {
      decltype(Step<In>::weights(b)) weights[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) weights[j] = Step<In>::weights(b + j * kLane);
      b += NV * kLane;
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const auto value = Step<In>::value(a[i] + d);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) acc[i][j] = Step<In>::fma(acc[i][j], value, weights[j]);
      }
    }
  }
  if (epilogue.activation > Activation::relu) {
    A sums[MR * NV * kLane];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) store(sums + (i * NV + j) * kLane, acc[i][j]);
    return store_activated(tile, epilogue, MR, NV, sums);
  }
  // For all the compiler knows a store may change any of these, so they are read before the first one.
  const EpilogueArgs<Out> e = epilogue;
  const int64_t column = tile.column;
  const int last = tile.columns - (NV - 1) * kLane;
  const auto lanes = [last](int j) { return j == NV - 1 ? last : kLane; };
  int64_t pixels[MR];
  Out* y[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) pixels[i] = tile.pixels[i], y[i] = tile.y + pixels[i] * tile.y_pixel_stride;
  if (e.scale) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const V scale = load_n(e.scale + column + j * kLane, lanes(j));
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) acc[i][j] = acc[i][j] * scale;
    }
  }
  if (e.shift) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const V shift = load_n(e.shift + column + j * kLane, lanes(j));
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) acc[i][j] = acc[i][j] + shift;
    }
  }
  if (e.residual) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j)
        acc[i][j] += load_n(e.residual + pixels[i] * e.residual_pixel_stride + column + j * kLane, lanes(j));
  }
  const V floor = e.activation == Activation::relu ? V{} : broadcast(-std::numeric_limits<A>::infinity());
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) store_n(y[i] + j * kLane, max(acc[i][j], floor), lanes(j));
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
