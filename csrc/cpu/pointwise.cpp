// Pointwise (1x1) convolution: a plain GEMM, y[pixel][k] = sum over c of x[pixel][c] * w[k][c].
//
// The implicit GEMM with one tap: no padding, so no pixel is masked and no tile skips a tap. A stride only spaces the
// rows of x; dgrad writes zeros to the pixels between. Bound: FMA for C and K of 64 and more, else bytes of x and y.
#include "implicit_gemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {

void append_pointwise(KernelList& list) {
  append_gemm_family(
      list, "pointwise",
      [](const ConvProblem& p) { return std::string(p.pointwise() ? "" : "the filter is not 1x1 without padding"); },
      nullptr);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
