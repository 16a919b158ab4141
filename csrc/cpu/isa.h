// Every file of kernels is compiled once per instruction set, with its flags and with CNNKERN_ISA naming a namespace
// of its own: generic, avx2, avx512 or avx512_bf16. All that such a file defines lives in that namespace, so that no
// AVX-512 copy of an inline function can be merged into an AVX2 path by the linker (seen in numpy #25274).
#pragma once

#ifndef CNNKERN_ISA
#error "define CNNKERN_ISA as the namespace of this instruction set"
#endif

#define CNNKERN_STRINGIFY_(x) #x
#define CNNKERN_STRINGIFY(x) CNNKERN_STRINGIFY_(x)
#define CNNKERN_ISA_NAME CNNKERN_STRINGIFY(CNNKERN_ISA)

#define CNNKERN_INLINE inline __attribute__((always_inline))
