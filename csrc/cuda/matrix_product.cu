// Matrix products by the tiles of kGemmVariants: gemm.h's main loop without any address arithmetic but rows and
// columns.
//
// Bound: 2*m*n*k flop; bytes of a, b and out once. See pointwise.cu.
#include <primitives/launcher.h>

#include "gemm_sources.h"
#include "matrix_product.h"

namespace cnnkern::cuda {
namespace {

template <class T> struct Params {
  MatrixProduct<T> product;
  Divider tiles_n, tiles_m;
};

template <Major kMajor, class T> __device__ auto source_of(const T* matrix, int64_t stride, int first, int64_t size) {
  const int left = static_cast<int>(size) - first;
  if constexpr (kMajor == Major::k) return RowsOfMatrix<T>{matrix + first * stride, stride, left};
  else return ColumnsOfMatrix<T>{matrix + first, stride, left};
}

template <class T, Major kMajorA, Major kMajorB, int kIndex>
__global__ void __launch_bounds__(kGemmVariants<T>[kIndex].tile.threads(), kGemmVariants<T>[kIndex].tile.resident)
    matrix_product(const Params<T> params) {
  using Product = Gemm<T, kGemmVariants<T>[kIndex], kMajorA, kMajorB>;
  constexpr GemmTile kTile = Product::kTile;
  constexpr int kVector = Product::kVector;
  const MatrixProduct<T>& o = params.product;

  int range = static_cast<int>(blockIdx.x);
  const int n0 = params.tiles_n.split(range) * kTile.block_n, m0 = params.tiles_m.split(range) * kTile.block_m;
  const int begin = range * static_cast<int>(o.range);
  const int end = std::min(begin + static_cast<int>(o.range), static_cast<int>(o.k));
  typename Product::Sums sums;
  Product::multiply(sums, source_of<kMajorA>(o.a, o.a_stride, m0, o.m), source_of<kMajorB>(o.b, o.b_stride, n0, o.n),
                    RangeCursor<kTile.block_k>{begin, end}, (end - begin + kTile.block_k - 1) / kTile.block_k);

  Product::store(sums, [&](int row, int column, const float (&some)[kVector]) {
    row += m0;
    column += n0;
    if (row >= o.m || column >= o.n) return;
    if (o.sums) return store_floats(o.sums + (range * o.m + row) * o.n + column, some);
    if constexpr (kMajorB == Major::k)
      store_vector<kVector>(o.out + row * o.out_stride + column, o.epilogue(some, row, column));
    else store_vector<kVector>(o.out + row * o.out_stride + column, FusedEpilogue<T>{}(some, row, column));
  });
  if constexpr (kMajorB == Major::k) {
    if (o.statistics.partials)
      store_statistics<T, Product>(sums, o.statistics, m0, static_cast<int>(o.m), n0, static_cast<int>(o.n) - n0);
  }
}

}  // namespace

template <class T, Major kMajorA, Major kMajorB> void multiply(int index, MatrixProduct<T> product, const Call& call) {
  for_each_variant<T>([&]<int kIndex>() {
    if (kIndex != index) return;
    using Product = Gemm<T, kGemmVariants<T>[kIndex], kMajorA, kMajorB>;
    constexpr GemmTile kTile = Product::kTile;
    if (product.range == 0) product.range = product.k;
    const int64_t tiles_m = ceil_div(product.m, kTile.block_m), tiles_n = ceil_div(product.n, kTile.block_n);
    const Grid grid{.x = tiles_m * tiles_n * ceil_div(product.k, product.range),
                    .threads = kTile.threads(),
                    .shared_bytes = Product::kSharedBytes};
    const Params<T> o{product, Divider(tiles_n), Divider(tiles_m)};
    launch(matrix_product<T, kMajorA, kMajorB, kIndex>, grid, o, call);
  });
}

#define CNNKERN_INSTANTIATE(T)                                                                     \
  template void multiply<T, Major::k, Major::k>(int, MatrixProduct<T>, const Call&);   /* fprop */ \
  template void multiply<T, Major::k, Major::mn>(int, MatrixProduct<T>, const Call&);  /* dgrad */ \
  template void multiply<T, Major::mn, Major::mn>(int, MatrixProduct<T>, const Call&); /* wgrad */
CNNKERN_INSTANTIATE(float)
CNNKERN_INSTANTIATE(bf16)
CNNKERN_INSTANTIATE(f16)
#undef CNNKERN_INSTANTIATE

}  // namespace cnnkern::cuda
