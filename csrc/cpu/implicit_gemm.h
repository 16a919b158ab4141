// The three directions of a dense (or, group by group, grouped) convolution as GEMMs, for the families that are special
// cases of them.
#pragma once

#include "../kernel.h"
#include "conv_gemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {

template <class T> void gemm_fprop(const ConvProblem& problem, const Operands& operands);
template <class T> void gemm_dgrad(const ConvProblem& problem, const Operands& operands);
template <class T> void gemm_wgrad(const ConvProblem& problem, const Operands& operands);

// The pixels of dx whose coordinates are (a, b) modulo the stride, as points that read dy. `rows_per_tap`: rows of the
// packed weights that a tap (r, s) has, at (r * p.s + s) * rows_per_tap.
Lattice dgrad_lattice(const ConvProblem& p, int64_t a, int64_t b, int64_t rows_per_tap);

// The register tile in a kernel's name: the widest that the engine picks from.
#if defined(__AVX512F__)
#define CNNKERN_GEMM_TILE "6x64"
#elif defined(__AVX__)
#define CNNKERN_GEMM_TILE "6x16"
#else
#define CNNKERN_GEMM_TILE "6x8"
#endif

// Appends `family` in all directions for the dtypes that this instruction set's build computes.
void append_gemm_family(KernelList& list, const char* family, std::string (*why_not)(const ConvProblem&),
                        std::string (*rather_not)(const ConvProblem&));

}  // namespace cnnkern::cpu::CNNKERN_ISA
