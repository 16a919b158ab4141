// A product of two matrices in memory, as pointwise convolution is one and im2col comes down to.
#pragma once

#include <primitives/epilogue.h>

#include "gemm_statistics.h"
#include "gemm_variants.h"

namespace cnnkern::cuda {

// out[m][n] = epilogue(sum over k of a[m][k] b[n][k]); where the major of a (b) is mn, it lies as [k][m] ([k][n]).
// If `sums` is there it gets the sums instead, in float, of each range of k: [ceil(k / range)][m][n].
template <class T> struct MatrixProduct {
  const T *a = nullptr, *b = nullptr;
  int64_t a_stride = 0, b_stride = 0;  // elements from row to row, in memory
  int64_t m = 0, n = 0, k = 0;
  T* out = nullptr;
  int64_t out_stride = 0;
  FusedEpilogue<T> epilogue;
  Statistics statistics;  // of n over m, where b lies as [n][k]
  float* sums = nullptr;
  int64_t range = 0;  // 0: all of k
};

// Runs a product on variant `index` of kGemmVariants<T>. Without `sums` there is one range.
template <class T, Major kMajorA, Major kMajorB> void multiply(int index, MatrixProduct<T> product, const Call& call);

}  // namespace cnnkern::cuda
