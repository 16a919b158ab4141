// A kernel's name by the grammar of csrc/README.md, and clauses that several kernels answer with.
#pragma once

#include <string>
#include <string_view>

#include "kernel.h"

namespace cnnkern::cuda {

// cuda_<family>_<direction>_<dtype>_nhwc_<tile>__<sm>
inline std::string kernel_name(std::string_view family, Direction direction, DType dtype, std::string_view tile,
                               std::string_view sm = "sm80") {
  std::string name = "cuda_";
  name += family;
  name += '_';
  name += kDirectionNames[static_cast<int>(direction)];
  name += '_';
  name += kDTypeNames[static_cast<int>(dtype)];
  name += "_nhwc_";
  name += tile;
  name += "__";
  return name += sm;
}

// Why a kernel that computes pixels in 32 bits and elements in 64 cannot take a problem; empty if it can.
inline std::string too_many_pixels(const ConvProblem& p) {
  const int64_t most = int64_t{1} << 31;
  return p.n * p.h * p.w >= most || p.n * p.p() * p.q() >= most ? "its pixels are counted in 32 bits" : "";
}

// Why vectors of `elements` maps cannot be read and written at once; empty if they can.
inline std::string not_in_vectors(const ConvProblem& p, int64_t elements, const Flags& flags) {
  if (flags.unaligned) return "an operand does not begin at a multiple of 16 bytes";
  for (const int64_t stride : {p.c, p.k, p.c_per_group(), p.x_stride(), p.y_stride()}) {
    if (stride % elements) return "maps and pixel strides are no multiples of " + std::to_string(elements);
  }
  return "";
}

}  // namespace cnnkern::cuda
