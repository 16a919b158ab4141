// Operands of a convolution in the type that the GEMM computes in.
//
// fp32 and fp64 are read where they lie. bf16 is too, in the avx512_bf16 build, whose dot products take pairs, so an
// odd number of maps is copied with one of zeros behind it. Elsewhere bf16 and fp16 are widened to fp32, once.
#pragma once

#include "../kernel.h"
#include "conv_gemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {

#if defined(__AVX512BF16__)
template <class T> using GemmIn = T;
#else
template <class T> using GemmIn = acc_t<T>;
#endif
template <class T> using GemmPacked = typename Step<GemmIn<T>>::Packed;

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

template <class T> struct Pixels {
  const GemmIn<T>* data;
  int64_t stride;  // elements from pixel to pixel
  int64_t depth;   // maps, a multiple of what a step takes
};

template <class T> Pixels<T> stage_pixels(const T* source, int64_t pixels, int64_t depth, int64_t stride,
                                          Scratch slot) {
  using In = GemmIn<T>;
  const int64_t even = round_up(depth, Step<In>::kDepth);
  if constexpr (std::is_same_v<In, T>) {
    if (even == depth) return {source, stride, depth};
  }
  In* out = scratch<In>(slot, pixels * even);
  parallel_for(pixels, std::max<int64_t>(1, 16384 / even), [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const T* from = source + pixel * stride;
      In* to = out + pixel * even;
      if constexpr (std::is_same_v<In, T>) {
        std::copy_n(from, depth, to);
        std::fill(to + depth, to + even, In{});
      } else {
        constexpr int kLane = kLanes<T>;
        for (int64_t d = 0; d < depth; d += kLane) {
          const int n = static_cast<int>(std::min<int64_t>(kLane, depth - d));
          store_n(to + d, load_n(from + d, n), n);
        }
      }
    }
  });
  return {out, even, even};
}

// Weights of one group, KRSC, packed for fprop: column k of the panel is filter k, its taps one after another.
template <class T> struct PackFilters final : Gemm<GemmIn<T>, T>::Pack {
  const T* w;
  int64_t taps, depth;  // depth: maps of a tap in memory
  void operator()(int64_t first, int count, GemmPacked<T>* panel, int width) const override {
    const T* source = w + first * taps * depth;
    constexpr int kStep = Step<GemmIn<T>>::kDepth;
    if (depth % kStep == 0) return pack_transposed(source, taps * depth, count, taps * depth, panel, width);
    for (int64_t t = 0; t < taps; ++t, panel += round_up(depth, kStep) / kStep * width)
      pack_transposed(source + t * depth, taps * depth, count, depth, panel, width);
  }
};

// Weights of one group packed for dgrad: row (tap, k) of the panel is a run of maps of filter k.
template <class T> struct PackMaps final : Gemm<GemmIn<T>, T>::Pack {
  const T* w;
  int64_t taps, filters, maps;
  void operator()(int64_t first, int count, GemmPacked<T>* panel, int width) const override {
    const int64_t rows = round_up(filters, Step<GemmIn<T>>::kDepth) / Step<GemmIn<T>>::kDepth;
    for (int64_t t = 0; t < taps; ++t, panel += rows * width)
      pack_rows(w + t * maps + first, taps * maps, count, filters, panel, width);
  }
};

template <class T> EpilogueArgs<T> epilogue_args(const ConvProblem& problem, const Operands& operands,
                                                 int64_t first_map) {
  using A = acc_t<T>;
  EpilogueArgs<T> args;
  if (operands.scale) args.scale = static_cast<const A*>(operands.scale) + first_map;
  if (operands.shift) args.shift = static_cast<const A*>(operands.shift) + first_map;
  if (operands.residual) args.residual = static_cast<const T*>(operands.residual) + first_map;
  args.residual_pixel_stride = operands.residual_pixel_stride;
  args.activation = problem.epilogue.activation;
  args.alpha = problem.epilogue.alpha;
  return args;
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
