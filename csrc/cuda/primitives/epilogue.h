// What is done to a sum before it is written (csrc/epilogue.h):  y = act(scale[k] * sum + shift[k] + residual).
#pragma once

#include <primitives/numeric.h>

#include "../kernel.h"

namespace cnnkern::cuda {

// act(v), with the formulas and the NaN propagation of torch.nn.functional.
__device__ inline float activate(float v, Activation activation, float alpha) {
  switch (activation) {
    case Activation::none: return v;
    case Activation::relu: return v < 0 ? 0 : v;
    case Activation::relu6: return v < 0 ? 0 : v > 6 ? 6 : v;
    case Activation::leaky_relu: return v > 0 ? v : v * alpha;
    case Activation::elu: return v > 0 ? v : alpha * expm1f(v);
    case Activation::hardswish: return v * (v + 3 < 0 ? 0 : v + 3 > 6 ? 6 : v + 3) / 6;
    case Activation::silu: return v / (1 + expf(-v));
    case Activation::sigmoid: return 1 / (1 + expf(-v));
    case Activation::tanh: return tanhf(v);
  }
  return v;
}

// One value per map, in float or in the tensors' own type T; null where there is none.
template <class T> class Channels {
 public:
  Channels() = default;
  Channels(const void* values, bool narrow) : values_(values), narrow_(narrow) {}
  __device__ explicit operator bool() const { return values_ != nullptr; }
  __device__ float operator[](int k) const {
    return narrow_ ? to_float(static_cast<const T*>(values_)[k]) : static_cast<const float*>(values_)[k];
  }

 private:
  const void* values_ = nullptr;
  bool narrow_ = false;
};

// The operands of an epilogue or, without a residual, of a prologue; a part of a kernel's parameters.
template <class T> struct Affine {
  Channels<T> scale, shift;
  Activation activation = Activation::none;
  float alpha = 0;

  // act(scale[k] * v + shift[k] + residual)
  __device__ float operator()(float v, int k, float residual = 0) const {
    if (scale) v *= scale[k];
    if (shift) v += shift[k];
    return activate(v + residual, activation, alpha);
  }
};

template <class T> struct FusedEpilogue {
  Affine<T> affine;
  const T* residual = nullptr;  // [pixel][k] with a pixel stride
  int64_t residual_pixel_stride = 0;

  // y of N neighbouring maps from k on of one pixel. The residual is aligned as y is.
  template <int N> __device__ Vector<T, N> operator()(const float (&sums)[N], int64_t pixel, int k) const {
    Vector<T, N> added{}, y;
    if (residual) added = load_vector<N>(residual + pixel * residual_pixel_stride + k);
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = from_float<T>(affine(sums[i], k + i, residual ? to_float(added[i]) : 0));
    return y;
  }
};

// The epilogue of a call, and the prologue that x is read through.
template <class T> FusedEpilogue<T> epilogue_of(const ConvProblem& p, const Operands& o) {
  return {{{o.scale, o.narrow.scale}, {o.shift, o.narrow.shift}, p.epilogue.activation, p.epilogue.alpha},
          static_cast<const T*>(o.residual),
          o.residual_pixel_stride};
}
template <class T> Affine<T> prologue_of(const ConvProblem& p, const Operands& o) {
  return {{o.x_scale, o.narrow.x_scale}, {o.x_shift, o.narrow.x_shift}, p.prologue.activation, p.prologue.alpha};
}

}  // namespace cnnkern::cuda
