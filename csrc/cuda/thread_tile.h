// Prologue and epilogue of a tile of pixels x maps that one thread holds in registers.
//
// What depends on the call is asked once per tile and not once per value, and an activation that is more than two
// comparisons is in the machine code once: the pixels pass through it in turn.
#pragma once

#include <primitives/epilogue.h>

#include <limits>
#include <string>

namespace cnnkern::cuda {

// The activations that are a clamp; NaN passes through.
struct Clamp {
  float low, high;
  __device__ float operator()(float v) const { return v < low ? low : v > high ? high : v; }
};
__host__ __device__ constexpr bool is_clamp(Activation a) {
  return a == Activation::none || a == Activation::relu || a == Activation::relu6;
}
__host__ __device__ constexpr Clamp clamp_of(Activation a) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return {a == Activation::none ? -kInfinity : 0, a == Activation::relu6 ? 6 : kInfinity};
}

// use<activation>(): what is inside is compiled for each of them, and asks once.
template <class Use> __device__ void with_activation(Activation activation, Use use) {
  switch (activation) {
    case Activation::none: return use.template operator()<Activation::none>();
    case Activation::relu: return use.template operator()<Activation::relu>();
    case Activation::relu6: return use.template operator()<Activation::relu6>();
    case Activation::leaky_relu: return use.template operator()<Activation::leaky_relu>();
    case Activation::elu: return use.template operator()<Activation::elu>();
    case Activation::hardswish: return use.template operator()<Activation::hardswish>();
    case Activation::silu: return use.template operator()<Activation::silu>();
    case Activation::sigmoid: return use.template operator()<Activation::sigmoid>();
    case Activation::tanh: return use.template operator()<Activation::tanh>();
  }
}

template <int N> __device__ void activate_each(float (&v)[N], Activation activation, float alpha) {
  with_activation(activation, [&]<Activation kActivation>() {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = activate(v[i], kActivation, alpha);
  });
}

// Every pixel moves to the place of the one before it, the first to the last: what is done to each in turn is then in
// the machine code once, and the tile stays in registers.
template <int kPixels, int kMaps> __device__ void rotate(float (&tile)[kPixels][kMaps]) {
#pragma unroll
  for (int i = 0; i < kMaps; ++i) {
    const float first = tile[0][i];
#pragma unroll
    for (int p = 0; p + 1 < kPixels; ++p) tile[p][i] = tile[p + 1][i];
    tile[kPixels - 1][i] = first;
  }
}

template <int kPixels, int kMaps>
__device__ void activate_tile(float (&tile)[kPixels][kMaps], Activation activation, float alpha) {
  if (activation == Activation::none) return;
  if (is_clamp(activation)) {
    const Clamp clamp = clamp_of(activation);
#pragma unroll
    for (int p = 0; p < kPixels; ++p)
#pragma unroll
      for (int i = 0; i < kMaps; ++i) tile[p][i] = clamp(tile[p][i]);
    return;
  }
#pragma unroll 1
  for (int turn = 0; turn < kPixels; ++turn) {
    activate_each(tile[0], activation, alpha);
    rotate(tile);
  }
}

inline std::string why_no_clamp(const Prologue& prologue) {
  return is_clamp(prologue.activation) ? "" : "its prologue's activation is neither relu nor relu6";
}

}  // namespace cnnkern::cuda
