// Tensor cores of Hopper (PTX ISA, "Asynchronous warpgroup level matrix instructions"; sm_90a): a warpgroup, four warps
// of which the first has a multiple of 4 as its number, multiplies D[64][n] += A[64][k] B[k][n] in float, A and B in
// shared memory (primitives/matrix_tile.h), with k = 16 for 16-bit operands and 8 for float read as TF32: 32 bytes.
//
// Thread 32 v + 4 g + t has of D: d[4 j], d[4 j + 1] at row 16 v + g, columns 8 j + 2 t and the next; d[4 j + 2],
// d[4 j + 3] at row 16 v + g + 8.
#pragma once

#include <primitives/matrix_tile.h>

namespace cnnkern::cuda {

// Before the first products, and whenever other instructions have touched the accumulators.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending groups, the latest, are still under way.
template <int kPending> __device__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving accumulators across: at the end of a wait, before they are read.
template <int kElements> __device__ void settle(float (&d)[kElements]) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define CNNKERN_D16(i)                                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7]), "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), "+f"(d[i + 12]),      \
      "+f"(d[i + 13]), "+f"(d[i + 14]), "+f"(d[i + 15])
#define CNNKERN_D64(i) CNNKERN_D16(i), CNNKERN_D16(i + 16), CNNKERN_D16(i + 32), CNNKERN_D16(i + 48)
#define CNNKERN_D128 CNNKERN_D64(0), CNNKERN_D64(64)
#define CNNKERN_D64_TEXT                                                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
  "%62, %63"
#define CNNKERN_D128_TEXT                                                                                    \
  CNNKERN_D64_TEXT                                                                                           \
  ", "                                                                                                       \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "     \
  "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, "   \
  "%121, %122, %123, %124, %125, %126, %127"
#define CNNKERN_WGMMA(INSTRUCTION, D, D_TEXT, A, B, PLUS, ROWS, ...)                                            \
  asm volatile("{\n.reg .pred plus;\nsetp.ne.b32 plus, " PLUS ", 0;\nwgmma.mma_async.sync.aligned." INSTRUCTION \
               " {" D_TEXT "}, " A ", " B ", plus, 1, 1" ROWS ";\n}"                                            \
               : D                                                                                              \
               : "l"(a.bits()), "l"(b.bits()), "r"(static_cast<int>(plus))__VA_OPT__(, ) __VA_ARGS__            \
               : "memory")
#define CNNKERN_WGMMA_16_BITS(TYPES)                                                                                \
  if constexpr (kElements == 64) {                                                                                  \
    CNNKERN_WGMMA("m64n128k16.f32." TYPES, CNNKERN_D64(0), CNNKERN_D64_TEXT, "%64", "%65", "%66", ", %67, %68",     \
                  "n"(static_cast<int>(kRowsA)), "n"(static_cast<int>(kRowsB)));                                    \
  } else {                                                                                                          \
    CNNKERN_WGMMA("m64n256k16.f32." TYPES, CNNKERN_D128, CNNKERN_D128_TEXT, "%128", "%129", "%130", ", %131, %132", \
                  "n"(static_cast<int>(kRowsA)), "n"(static_cast<int>(kRowsB)));                                    \
  }

// d = a b, plus d where it says so; n is 2 kElements, 128 or 256. Between begin_products() and wait_products() the
// operands must not be written, nor d read or written.
template <class T, Rows kRowsA, Rows kRowsB, int kElements>
__device__ void multiply(float (&d)[kElements], MatrixTile a, MatrixTile b, bool plus) {
  static_assert(kElements == 64 || kElements == 128);
  if constexpr (sizeof(T) == 2) {
    if constexpr (kDTypeOf<T> == DType::bf16) CNNKERN_WGMMA_16_BITS("bf16.bf16")
    else CNNKERN_WGMMA_16_BITS("f16.f16")
  } else {
    static_assert(kRowsA == Rows::along_k && kRowsB == Rows::along_k);
    if constexpr (kElements == 64)
      CNNKERN_WGMMA("m64n128k8.f32.tf32.tf32", CNNKERN_D64(0), CNNKERN_D64_TEXT, "%64", "%65", "%66", "");
    else CNNKERN_WGMMA("m64n256k8.f32.tf32.tf32", CNNKERN_D128, CNNKERN_D128_TEXT, "%128", "%129", "%130", "");
  }
}

#undef CNNKERN_WGMMA_16_BITS
#undef CNNKERN_WGMMA
#undef CNNKERN_D128_TEXT
#undef CNNKERN_D64_TEXT
#undef CNNKERN_D128
#undef CNNKERN_D64
#undef CNNKERN_D16

// Hands registers over between warpgroups: kRegisters for each thread of this one, a multiple of 8 (24 to 256).
template <int kRegisters> __device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters> __device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace cnnkern::cuda
