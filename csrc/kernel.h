// Kernel: one implementation of a convolution in one direction, as data.
//
// A kernel's name is <backend>_<family>_<direction>_<dtype>_<layout>_<tile>__<isa or sm>,
// e.g. cpu_pointwise_fprop_f32_nhwc_6x64__avx512 (csrc/README.md has the grammar).
#pragma once

#include <string>
#include <vector>

#include "conv_problem.h"

namespace cnnkern {

// Operands in the kernels' own layout: x and y NHWC with the problem's pixel strides, w KRSC dense.
// The direction says which of them is written: fprop y; dgrad x; wgrad w (and dbias, unless null).
// scale, shift and dbias have k elements of the accumulator's type (f64 for f64, else f32);
// residual has y's shape and dtype.
struct Operands {
  void* x = nullptr;
  void* w = nullptr;
  void* y = nullptr;
  const void* scale = nullptr;
  const void* shift = nullptr;
  const void* residual = nullptr;
  int64_t residual_pixel_stride = 0;  // elements
  void* dbias = nullptr;
};

struct Kernel {
  std::string name;
  // Empty when the kernel can compute the problem, else a sentence that says why it cannot.
  std::string (*why_not)(const ConvProblem&);
  // Empty, or a sentence that says why a later kernel is the better choice; a kernel that is asked for by name
  // runs all the same. Null where there is none.
  std::string (*rather_not)(const ConvProblem&);
  void (*run)(const ConvProblem&, const Operands&);
};

using KernelList = std::vector<Kernel>;

}  // namespace cnnkern
