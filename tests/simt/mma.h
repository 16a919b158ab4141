// The warp's matrix instructions of sm_80, with the fragments of the PTX ISA ("Warp level matrix instructions").
#pragma once

#include "simt.h"

namespace simt {

enum class Format { bf16, f16, tf32 };

// 4 bytes of a register as float: both halves, or one number whose 13 low bits are not looked at.
float element(const void* from, Format format);

// ldmatrix .m8n8.x4: the running thread gives the address of row lane % 8 of matrix lane / 8.
void load_matrices(uint32_t (&to)[4], Block& block, int64_t row, bool transposed, const Site& at);

// mma m16n8k16, or m16n8k8 for tf32: D[16][8] += A[16][k] B[k][8].
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Format format, const Site& at);

}  // namespace simt
