// Kernel: one CUDA implementation of a convolution in one direction, as data. Pure host code: the list of kernels and
// their answers need no GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../conv_problem.h"

namespace cnnkern::cuda {

// What a choice depends on besides the problem.
struct Flags {
  bool strict = false;         // direct convolution's numerics
  bool deterministic = false;  // bitwise run to run; every kernel here is
  bool tf32 = false;           // float may be multiplied as TF32
  bool unaligned = false;      // an operand does not begin at a multiple of 16 bytes
  int capability = 90;         // of the GPU: 80, 86, 90, ...
};

// Device pointers. x and y are NHWC with the problem's pixel strides, w is KRSC; the direction says which of them is
// written: fprop y, dgrad x, wgrad w and, unless it is null, dbias.
struct Operands {
  void* x = nullptr;
  void* w = nullptr;
  void* y = nullptr;
  const void* scale = nullptr;     // [k]; it and the next four: float, or the problem's dtype where narrow
  const void* shift = nullptr;     // [k]
  const void* x_scale = nullptr;   // [c]
  const void* x_shift = nullptr;   // [c]
  const void* residual = nullptr;  // as y, the problem's dtype
  float* dbias = nullptr;          // [k]
  float* statistics = nullptr;     // fprop: [partials][3][k], see Kernel::partials
  void* workspace = nullptr;       // what workspace_bytes asked for, aligned to 256 bytes
  int64_t residual_pixel_stride = 0;
  struct Narrow { bool scale = false, shift = false, x_scale = false, x_shift = false; } narrow;
};

// For whom and where a kernel is launched.
struct Call {
  const ConvProblem& problem;
  const std::string& kernel;  // its name, for errors
  int device = 0;
  void* stream = nullptr;  // a cudaStream_t
};

struct Kernel {
  std::string name;  // cuda_<family>_<direction>_<dtype>_nhwc_<tile>__<sm>
  // Empty when the kernel can compute the problem, else a clause that says why it cannot.
  std::string (*why_not)(const ConvProblem&, const Flags&);
  // Empty, or a clause that says why a later kernel is the better choice. Null where there is none.
  std::string (*rather_not)(const ConvProblem&);
  // Bytes of scratch memory. Null where there is none.
  int64_t (*workspace_bytes)(const ConvProblem&);
  void (*run)(const Operands&, const Call&);
  // How many partial statistics of y it leaves where they are asked for and the problem has no epilogue: of each map
  // count, mean and sum of squared deviations, each over pixels of its own. Null, or 0: none.
  int64_t (*partials)(const ConvProblem&) = nullptr;
};

inline int64_t partials_of(const Kernel& kernel, const ConvProblem& p) {
  return kernel.partials && p.epilogue == Epilogue{} ? kernel.partials(p) : 0;
}

using KernelList = std::vector<Kernel>;

// Scratch memory that a kernel may ask for; one that would need more refuses, and one that needs none comes last.
constexpr int64_t kMostWorkspace = int64_t{256} << 20;

}  // namespace cnnkern::cuda
