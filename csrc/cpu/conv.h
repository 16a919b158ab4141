// Tensors -> ConvProblem -> kernel: the three directions of a convolution on tensors of any layout.
#pragma once

#include <array>
#include <string_view>

#include "../conv_problem.h"
#include "../tensor.h"

namespace cnnkern::cpu {

struct Geometry {
  std::array<int64_t, 2> stride;    // vertical, horizontal
  std::array<int64_t, 4> padding;   // top, left, bottom, right
  std::array<int64_t, 2> dilation;  // vertical, horizontal
  int64_t groups;

  // From these nine numbers in this order.
  static Geometry of(const std::array<int64_t, 9>& g) {
    return {{g[0], g[1]}, {g[2], g[3], g[4], g[5]}, {g[6], g[7]}, g[8]};
  }
};

struct Choice {
  int64_t flags;            // memo.h
  std::string_view kernel;  // empty: the memo's
};

// The tensors of act(scale * x + shift), through which x is read; null: absent.
struct PrologueTensors {
  AtenTensorHandle scale = nullptr, shift = nullptr;  // [c], in the convolution's dtype or its accumulator's
  Activation activation = Activation::none;
  float alpha = 0;
};

// The tensors of y = act(scale * conv + shift + residual); null: absent.
struct EpilogueTensors {
  AtenTensorHandle scale = nullptr, shift = nullptr;  // [k], in the convolution's dtype or its accumulator's
  AtenTensorHandle residual = nullptr;                // [n, k, p, q]
  Activation activation = Activation::none;
  float alpha = 0;
};

// All throw std::runtime_error where sizes or dtypes do not fit or the kernel that is named cannot compute the problem.

// y [n, k, p, q]: channels_last if x or w is, as in torch.
OwnedTensor conv_fprop(AtenTensorHandle x, AtenTensorHandle w, const EpilogueTensors& epilogue,
                       const PrologueTensors& prologue, const Geometry& geometry, const Choice& choice);

// conv(x, w) + bias, of what torch's convolution takes: bias has x's dtype or is null, and w has elements.
OwnedTensor conv_plain(AtenTensorHandle x, AtenTensorHandle w, AtenTensorHandle bias, const Geometry& geometry,
                       const Choice& choice);

// dx [x_size].
OwnedTensor conv_dgrad(AtenTensorHandle dy, AtenTensorHandle w, const std::array<int64_t, 4>& x_size,
                       const Geometry& geometry, bool channels_last, const Choice& choice);

// dw [w_size], and db [k], or of no elements if not `bias`.
struct WeightGradients { OwnedTensor dw, db; };
WeightGradients conv_wgrad(AtenTensorHandle dy, AtenTensorHandle x, const std::array<int64_t, 4>& w_size,
                           const PrologueTensors& prologue, const Geometry& geometry, bool bias, bool channels_last,
                           const Choice& choice);

// Both of them, as a training step needs them: dy is copied at most once. dx is laid out as y is, dw as w.
struct Gradients {
  OwnedTensor dx;
  WeightGradients weights;
};
struct GradientsAsked {
  bool bias;
  Choice dgrad, wgrad;
};
Gradients conv_backward(AtenTensorHandle dy, AtenTensorHandle x, AtenTensorHandle w, const Geometry& geometry,
                        const GradientsAsked& asked);

// The epilogue and the prologue that these tensors make.
Epilogue epilogue_of(const EpilogueTensors& tensors);
Prologue prologue_of(const PrologueTensors& tensors);

// Throws std::runtime_error for a name that is no activation.
Activation activation_named(std::string_view name);

// The problem of these tensors, in NHWC. Throws std::runtime_error where it is no convolution.
ConvProblem conv_problem(Direction direction, DType dtype, const int64_t* x_sizes, const int64_t* w_sizes,
                         const Geometry& geometry);

}  // namespace cnnkern::cpu
