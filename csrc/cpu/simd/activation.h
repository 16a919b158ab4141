// The epilogue's activations on vectors, with the formulas and the NaN propagation of torch.nn.functional.
//
// exp is 2^n * exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; exp(r) - 1 = r + r^2 Q(r), where Q is a minimax fit of
// degree 5 (its own error is 2.6e-10). Working with exp(r) - 1 gives expm1, and from it tanh, with a small relative
// error near 0 too: at most 2 ulp for exp and expm1. Doubles go lane by lane through <cmath>.
#pragma once

#include <cmath>

#include "../../epilogue.h"
#include "vec.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// x = n ln 2 + r:  scale_high * scale_low = 2^n (one factor would overflow at the ends),  expm1_r = exp(r) - 1.
struct ExpParts { F32 expm1_r, scale_high, scale_low; };

CNNKERN_INLINE ExpParts exp_parts(F32 x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(x) in the low bits of the mantissa
  const F32 shifted = x * broadcast(0x1.715476p0f) + kRound;
  const I32 n = reinterpret_cast<I32>(shifted) - reinterpret_cast<I32>(broadcast(kRound));
  const F32 n_float = shifted - kRound;
  const F32 r = (x - n_float * 0x1.62ep-1f) - n_float * 0x1.0bfbe8p-15f;  // ln 2 in two parts, the first of 11 bits
  F32 q = broadcast(0x1.a0332ep-13f);
  q = q * r + 0x1.6d78d8p-10f;
  q = q * r + 0x1.11118ep-7f;
  q = q * r + 0x1.5554aap-5f;
  q = q * r + 0x1.555554p-3f;
  q = q * r + 0.5f;
  const I32 half = n >> 1;
  return {r * r * q + r, reinterpret_cast<F32>((half + 127) << 23), reinterpret_cast<F32>((n - half + 127) << 23)};
}

CNNKERN_INLINE F32 exp(F32 x) {
  const ExpParts parts = exp_parts(min(max(x, broadcast(-104.0f)), broadcast(89.0f)));
  return (parts.expm1_r + 1.0f) * parts.scale_high * parts.scale_low;
}

// exp(x) - 1 for x <= 80, beyond which it stays at its value there.
CNNKERN_INLINE F32 expm1(F32 x) {
  const ExpParts parts = exp_parts(min(max(x, broadcast(-104.0f)), broadcast(80.0f)));
  const F32 scale = parts.scale_high * parts.scale_low;
  return scale * parts.expm1_r + (scale - 1.0f);
}

CNNKERN_INLINE F32 tanh(F32 x) {
  const F32 e = expm1(x + x);
  return e / (e + 2.0f);
}

CNNKERN_INLINE F64 exp(F64 x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

CNNKERN_INLINE F64 expm1(F64 x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::expm1(x[i]);
  return x;
}

CNNKERN_INLINE F64 tanh(F64 x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

// The activations that need exp, out of line: they are rare, and inlined they would crowd the registers of every
// kernel that has an epilogue.
template <class A>
__attribute__((noinline)) Vec<A> activate_by_exp(Vec<A> v, Activation activation, A alpha) {
  switch (activation) {
    case Activation::elu: return v > 0 ? v : broadcast(alpha) * expm1(v);
    case Activation::silu: return v / (exp(-v) + A(1));
    case Activation::sigmoid: return A(1) / (exp(-v) + A(1));
    default: return tanh(v);
  }
}

// act(v); alpha is leaky_relu's slope below 0 and elu's factor.
template <class A>
CNNKERN_INLINE Vec<A> activate(Vec<A> v, Activation activation, A alpha) {
  const Vec<A> zero{}, six = broadcast(A(6));
  switch (activation) {
    case Activation::none: return v;
    case Activation::relu: return max(v, zero);
    case Activation::relu6: return min(max(v, zero), six);
    case Activation::leaky_relu: return v > zero ? v : v * alpha;
    case Activation::hardswish: return v * min(max(v + A(3), zero), six) / six;
    default: return activate_by_exp<A>(v, activation, alpha);
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
