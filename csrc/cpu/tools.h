// The kernels that are no single convolution, as a table of functions with one copy per instruction set: each of
// their namespaces has a `const Tools& tools()`.
//
// Tensors are NHWC and dense. Functions that take a DType read and write that type and accumulate in f32 (f64 for f64).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../conv_problem.h"

namespace cnnkern::cpu {

// Pooling of n images of h x w pixels with c maps by windows of r x s into p x q pixels. The output size is given, as
// torch's ceil_mode has rules of its own for it; windows are cut off at the image's borders.
struct PoolShape {
  int64_t n = 1, c = 1, h = 1, w = 1, p = 1, q = 1;
  int64_t r = 1, s = 1;
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  bool count_include_pad = true;  // average pooling: divide by the window's size with its padding
};

// y = act_pw(scale_pw * conv1x1(act_dw(scale_dw * depthwise(x) + shift_dw)) + shift_pw). Null: that operand is absent.
struct SeparableOperands {
  const void* x = nullptr;          // [n, h, w, c]
  const void* dw_weight = nullptr;  // [c, r, s]
  const void* pw_weight = nullptr;  // [k, c]
  void* y = nullptr;                // [n, p, q, k]
  const void* dw_scale = nullptr;   // [c], accumulator's type, as all four
  const void* dw_shift = nullptr;
  const void* pw_scale = nullptr;  // [k]
  const void* pw_shift = nullptr;
};

struct PrologueOperands {
  const void* x = nullptr;  // [pixels][c]
  int64_t x_pixel_stride = 0;
  const void* scale = nullptr;  // [c], accumulator's type, as shift; null: absent
  const void* shift = nullptr;
  void* t = nullptr;  // [pixels][c], may be x where that is dense
};

struct Tools {
  // t = act(scale * x + shift)
  void (*prologue)(const Prologue& prologue, DType dtype, const PrologueOperands& operands, int64_t pixels, int64_t c);

  // y[o, j, g, i] = x[o, g, j, i] for o < outer, g < groups, j < channels / groups, i < inner, on elements of
  // element_size bytes. NHWC: outer = n * h * w, inner = 1. NCHW: outer = n, inner = h * w.
  void (*channel_shuffle)(const void* x, void* y, int64_t outer, int64_t channels, int64_t groups, int64_t inner,
                          size_t element_size);

  // indices: [n, p, q, c], the maximum's place h * W + w in its image plane; NaN counts as the largest, as in torch.
  void (*max_pool2d)(const PoolShape& shape, DType dtype, const void* x, void* y, int64_t* indices);
  void (*max_pool2d_backward)(const PoolShape& shape, DType dtype, const void* dy, const int64_t* indices, void* dx);
  void (*avg_pool2d)(const PoolShape& shape, DType dtype, const void* x, void* y);
  void (*avg_pool2d_backward)(const PoolShape& shape, DType dtype, const void* dy, void* dx);
  // x: [n, pixels, c] -> y: [n, c]
  void (*global_avg_pool2d)(int64_t n, int64_t pixels, int64_t c, DType dtype, const void* x, void* y);

  // `depthwise` and `pointwise` are the fprop problems of the two steps, with their epilogues; pointwise is a dense 1x1
  // on depthwise's output. Empty when the pair can be run fused, else a sentence that says why it cannot.
  const char* (*separable_why_not)(const ConvProblem& depthwise, const ConvProblem& pointwise);
  // Empty, or a sentence that says why the two convolutions one after the other are faster.
  const char* (*separable_rather_not)(const ConvProblem& depthwise, const ConvProblem& pointwise);
  void (*separable)(const ConvProblem& depthwise, const ConvProblem& pointwise, const SeparableOperands& operands);
};

}  // namespace cnnkern::cpu
