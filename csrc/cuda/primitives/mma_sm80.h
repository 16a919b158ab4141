// Tensor cores from sm_80 on (PTX ISA, "Warp level matrix multiply-accumulate"): a warp multiplies D[16][8] += A[16][k]
// B[k][8], in float, with k = 16 for 16-bit operands and 8 for float, whose 13 low bits are not looked at (TF32).
//
// Fragments, for lane = 4 g + t:
//   A   four registers of 4 bytes: rows g, g + 8, g, g + 8; bytes 4 t.. of the first, first, second, second half of k
//   B   two registers: column g; bytes 4 t.. of the first and the second half of k
//   D   d[0], d[1]: row g, columns 2 t, 2 t + 1;  d[2], d[3]: row g + 8
// So 8 rows of 16 bytes of k are what load_matrices brings, for every type alike.
#pragma once

#include <primitives/shared.h>

namespace cnnkern::cuda {

template <class T> constexpr int kMmaK = 32 / static_cast<int>(sizeof(T));  // 32 bytes

// Four 8x8 matrices of 16-bit elements (8 rows of 16 bytes); lane l gives the address of row l % 8 of matrix l / 8.
// Lane 4 g + t gets bytes 4 t.. of row g of each.
template <class T> __device__ void load_matrices(uint32_t (&to)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row.address())
               : "memory");
}

// The same, each matrix transposed: lane 4 g + t gets elements (2 t, g) and (2 t + 1, g). For 16-bit types.
template <class T> __device__ void load_matrices_transposed(uint32_t (&to)[4], Shared<T> row) {
  static_assert(sizeof(T) == 2);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row.address())
               : "memory");
}

// d += a b of one warp; T says how the registers of a and b are read.
template <class T> __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// The same of half as many k, the first 8: two registers of a, one of b. For 16-bit types.
template <class T> __device__ void mma_half(float (&d)[4], const uint32_t (&a)[2], uint32_t b);

#define CNNKERN_MMA(T, SHAPE_AND_TYPES)                                                                      \
  template <> __device__ inline void mma<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned." SHAPE_AND_TYPES                                                         \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                          \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                        \
  }
CNNKERN_MMA(bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
CNNKERN_MMA(f16, "m16n8k16.row.col.f32.f16.f16.f32")
CNNKERN_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef CNNKERN_MMA

#define CNNKERN_MMA_HALF(T, SHAPE_AND_TYPES)                                                                \
  template <> __device__ inline void mma_half<T>(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {       \
    asm volatile("mma.sync.aligned." SHAPE_AND_TYPES " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(b));                                                           \
  }
CNNKERN_MMA_HALF(bf16, "m16n8k8.row.col.f32.bf16.bf16.f32")
CNNKERN_MMA_HALF(f16, "m16n8k8.row.col.f32.f16.f16.f32")
#undef CNNKERN_MMA_HALF

}  // namespace cnnkern::cuda
