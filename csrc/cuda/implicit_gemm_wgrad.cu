// Implicit GEMM, wgrad: the gradient of a filter as a matrix product over all pixels.
//
//   wgrad  dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * prologue(x[n, p*u - pad + r*l, q*u - pad + s*l, c])
//
// x, y: NHWC with pixel strides; dw: [K][R][S][C/groups]. gemm_m: maps of y, of one group; gemm_n: taps and maps of x
// together, as dw has them, so that a filter with few maps fills the tiles too; gemm_k: pixels of y, in steps of
// block_k.
//
// A filter is small and has few tiles, so pixels are split over the grid: a block has one tile of one range of pixels,
// writes it to that range's slice of the workspace in float, and slices.cu adds the slices in order: the same bits from
// every run. With one range there are no slices. Both operands lie in memory with gemm_m and gemm_n as neighbours,
// which ldmatrix transposes, for 16-bit types, on the way to the registers.
//
// Bound: as fprop, and of the slices 8 bytes of each element of dw per range. ResNet's 3x3 with 256 maps at 14x14,
// N=256, in bf16: 59 Gflop, 53 MB and 7 slices of 2.4 MB: 125 us at 0.6 of 790 TFLOP/s, 8 us for the slices.
#include <primitives/launcher.h>

#include "gemm_sources.h"
#include "gemm_variants.h"
#include "kernel_list.h"
#include "slices.h"

namespace cnnkern::cuda {
namespace {

template <class T> struct Params {
  const T *dy, *x;
  T* dw;          // null where there are slices
  float* slices;  // [ranges][K][R][S][C/groups]
  Affine<T> prologue;
  int64_t slice;  // elements
  int dy_stride, x_stride, h, w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  int pixels, range;  // of y: all, and of one range, a multiple of block_k
  int maps, columns;  // of a group: K, and R * S * C
  int x_maps;         // of a group
  Divider p, q, s, c;
  Divider tiles_n, tiles_m, groups;
};

template <class T, int kIndex> using ProductOf = Gemm<T, kGemmVariants<T>[kIndex], Major::mn, Major::mn>;

template <class T, int kIndex>
__global__ void __launch_bounds__(kGemmVariants<T>[kIndex].tile.threads(), kGemmVariants<T>[kIndex].tile.resident)
    implicit_gemm_wgrad(const Params<T> o) {
  using Product = ProductOf<T, kIndex>;
  constexpr GemmTile kTile = Product::kTile;
  constexpr int kVector = Product::kVector;

  int rest = static_cast<int>(blockIdx.x);
  const int n0 = o.tiles_n.split(rest) * kTile.block_n, m0 = o.tiles_m.split(rest) * kTile.block_m;
  const int group = o.groups.split(rest), range = rest;
  const int begin = range * o.range, end = std::min(begin + o.range, o.pixels);

  const ColumnsOfMatrix<T> left{o.dy + (group * o.maps + m0), o.dy_stride, o.maps - m0};
  const TapsOfPixels<T> right{.image = o.x,
                              .stride = o.x_stride,
                              .height = o.h,
                              .width = o.w,
                              .stride_h = o.stride_h,
                              .stride_w = o.stride_w,
                              .pad_top = o.pad_top,
                              .pad_left = o.pad_left,
                              .dilation_h = o.dilation_h,
                              .dilation_w = o.dilation_w,
                              .p = o.p,
                              .q = o.q,
                              .s = o.s,
                              .maps = o.c,
                              .first = n0,
                              .columns = o.columns,
                              .map = group * o.x_maps,
                              .prologue = o.prologue};
  typename Product::Sums sums;
  const int steps = (end - begin + kTile.block_k - 1) / kTile.block_k;
  Product::multiply(sums, left, right, RangeCursor<kTile.block_k>{begin, end}, steps);

  Product::store(sums, [&](int row, int column, const float (&some)[kVector]) {
    if (m0 + row >= o.maps || n0 + column >= o.columns) return;
    const int64_t at = (int64_t{group} * o.maps + m0 + row) * o.columns + n0 + column;
    if (o.dw) store_vector<kVector>(o.dw + at, FusedEpilogue<T>{}(some, 0, 0));
    else store_floats(o.slices + (range * o.slice + at), some);
  });
}

Split split_of(const ConvProblem& p, const GemmTile& tile) {
  return split(p.k_per_group(), p.r * p.s * p.c_per_group(), p.n * p.p() * p.q(), p.groups, tile);
}

template <class T, int kIndex> std::string rather_not(const ConvProblem& p) {
  return rather_not_variant<T>(kIndex, [&](const GemmTile& tile) {
    const Split split = split_of(p, tile);
    const int64_t columns = p.r * p.s * p.c_per_group();
    return expected_time(tile, p.k_per_group(), columns, p.groups * split.ranges) * static_cast<double>(split.range);
  });
}

template <class T, int kIndex> int64_t workspace_bytes(const ConvProblem& p) {
  return slices_bytes(p, split_of(p, kGemmVariants<T>[kIndex].tile)) + sum_pixels_bytes(p);
}

template <class T, int kIndex> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (workspace_bytes<T, kIndex>(p) > kMostWorkspace) return "its slices do not fit the workspace";
  return why_not_gemm<T>(kGemmVariants<T>[kIndex], p, flags);
}

template <class T, int kIndex> void run(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  constexpr GemmTile kTile = kGemmVariants<T>[kIndex].tile;
  const Split split = split_of(p, kTile);
  const int64_t columns = p.r * p.s * p.c_per_group();
  const int64_t tiles_m = ceil_div(p.k_per_group(), kTile.block_m), tiles_n = ceil_div(columns, kTile.block_n);
  auto* slices = static_cast<float*>(operands.workspace);
  auto* dw = static_cast<T*>(operands.w);
  const Params<T> o{.dy = static_cast<const T*>(operands.y),
                    .x = static_cast<const T*>(operands.x),
                    .dw = split.ranges == 1 ? dw : nullptr,
                    .slices = slices,
                    .prologue = prologue_of<T>(p, operands),
                    .slice = p.k * columns,
                    .dy_stride = narrow(p.y_stride()),
                    .x_stride = narrow(p.x_stride()),
                    .h = narrow(p.h),
                    .w = narrow(p.w),
                    .stride_h = narrow(p.stride_h),
                    .stride_w = narrow(p.stride_w),
                    .pad_top = narrow(p.pad_top),
                    .pad_left = narrow(p.pad_left),
                    .dilation_h = narrow(p.dilation_h),
                    .dilation_w = narrow(p.dilation_w),
                    .pixels = narrow(p.n * p.p() * p.q()),
                    .range = narrow(split.range),
                    .maps = narrow(p.k_per_group()),
                    .columns = narrow(columns),
                    .x_maps = narrow(p.c_per_group()),
                    .p = Divider(p.p()),
                    .q = Divider(p.q()),
                    .s = Divider(p.s),
                    .c = Divider(p.c_per_group()),
                    .tiles_n = Divider(tiles_n),
                    .tiles_m = Divider(tiles_m),
                    .groups = Divider(p.groups)};
  const Grid grid{.x = tiles_m * tiles_n * p.groups * split.ranges,
                  .threads = kTile.threads(),
                  .shared_bytes = ProductOf<T, kIndex>::kSharedBytes};
  launch(implicit_gemm_wgrad<T, kIndex>, grid, o, call);
  if (split.ranges > 1) add_slices(slices, p.k * columns, split.ranges, dw, call);
  sum_pixels<T>(operands, slices + slices_bytes(p, split) / int64_t{sizeof(float)}, call);
}

template <class T> void append(KernelList& list) {
  for_each_variant<T>([&]<int kIndex>() {
    list.push_back({kernel_name("implicit_gemm", Direction::wgrad, kDTypeOf<T>, tile_text(kGemmVariants<T>[kIndex])),
                    why_not<T, kIndex>, rather_not<T, kIndex>, workspace_bytes<T, kIndex>, run<T, kIndex>});
  });
}

}  // namespace

void append_implicit_gemm_wgrad(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
