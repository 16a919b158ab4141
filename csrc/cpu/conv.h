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
};

struct Choice {
  int64_t flags;            // memo.h
  std::string_view kernel;  // empty: the memo's
};

// The tensors of y = act(scale * conv + shift + residual); null: absent.
struct EpilogueTensors {
  AtenTensorHandle scale, shift;  // [k], in the convolution's dtype or its accumulator's
  AtenTensorHandle residual;      // [n, k, p, q]
  Activation activation;
  float alpha;
};

// All throw std::runtime_error where sizes or dtypes do not fit or the kernel that is named cannot compute the problem.

// y [n, k, p, q]: channels_last if x or w is, as in torch.
OwnedTensor conv_fprop(AtenTensorHandle x, AtenTensorHandle w, const EpilogueTensors& epilogue,
                       const Geometry& geometry, const Choice& choice);

// dx [x_size].
OwnedTensor conv_dgrad(AtenTensorHandle dy, AtenTensorHandle w, const std::array<int64_t, 4>& x_size,
                       const Geometry& geometry, bool channels_last, const Choice& choice);

// dw [w_size], and db [k], or of no elements if not `bias`.
struct WeightGradients { OwnedTensor dw, db; };
WeightGradients conv_wgrad(AtenTensorHandle dy, AtenTensorHandle x, const std::array<int64_t, 4>& w_size,
                           const Geometry& geometry, bool bias, bool channels_last, const Choice& choice);

// The epilogue that these tensors make.
Epilogue epilogue_of(const EpilogueTensors& tensors);

// Throws std::runtime_error for a name that is no activation.
Activation activation_named(std::string_view name);

// The problem of these tensors, in NHWC. Throws std::runtime_error where it is no convolution.
ConvProblem conv_problem(Direction direction, DType dtype, const int64_t* x_sizes, const int64_t* w_sizes,
                         const Geometry& geometry);

}  // namespace cnnkern::cpu
