// Pointwise (1x1) convolution, stride 1 and no padding: x, w and y are matrices as they lie.
//
//   fprop  y[pixel][k]  = epilogue( sum over c of x[pixel][c] * w[k][c] )
//   dgrad  dx[pixel][c] = sum over k of dy[pixel][k] * w[k][c]
//   wgrad  dw[k][c]     = sum over pixels of dy[pixel][k] * x[pixel][c]
//
// x, y: rows of maps, a pixel stride apart; w: [K][C]. wgrad's pixels are split over the grid as in
// implicit_gemm_wgrad.cu.
//
// Bound: bytes of x, w and y once, or 2*N*H*W*K*C flop. ResNet's 1x1 from 256 to 64 maps at 56x56, N=256, in bf16: 26
// Gflop and 514 MB, on an H200 120 us at 4.3 TB/s against 33 us at 790 TFLOP/s.
#include "kernel_list.h"
#include "matrix_product.h"
#include "slices.h"

namespace cnnkern::cuda {
namespace {

int64_t pixels_of(const ConvProblem& p) { return p.n * p.h * p.w; }

// m, n and k of the product.
struct Size { int64_t m, n, k; };

Size size_of(const ConvProblem& p) {
  switch (p.direction) {
    case Direction::fprop: return {pixels_of(p), p.k, p.c};
    case Direction::dgrad: return {pixels_of(p), p.c, p.k};
    case Direction::wgrad: break;
  }
  return {p.k, p.c, pixels_of(p)};
}

Split split_of(const ConvProblem& p, const GemmTile& tile) {
  const Size size = size_of(p);
  return p.direction == Direction::wgrad ? split(size.m, size.n, size.k, 1, tile) : Split{size.k, 1};
}

template <class T, int kIndex> int64_t workspace_bytes(const ConvProblem& p) {
  return slices_bytes(p, split_of(p, kGemmVariants<T>[kIndex].tile)) + sum_pixels_bytes(p);
}

template <class T, int kIndex> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (!p.pointwise() || p.strided()) return "its filter is not 1x1 with stride 1 and no padding";
  if (p.groups > 1) return "it has groups";
  if (has_prologue(p)) return "it has no prologue";
  if (p.direction == Direction::wgrad && workspace_bytes<T, kIndex>(p) > kMostWorkspace)
    return "its slices do not fit the workspace";
  return why_not_gemm<T>(kGemmVariants<T>[kIndex], p, flags);
}

template <class T, int kIndex> std::string rather_not(const ConvProblem& p) {
  const Size size = size_of(p);
  return rather_not_variant<T>(kIndex, [&](const GemmTile& tile) {
    const Split split = split_of(p, tile);
    return expected_time(tile, size.m, size.n, split.ranges) * static_cast<double>(split.range);
  });
}

template <class T, int kIndex> int64_t partials(const ConvProblem& p) {
  return ceil_div(pixels_of(p), kGemmVariants<T>[kIndex].tile.block_m);
}

template <class T, int kIndex> void run_fprop(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  multiply<T, Major::k, Major::k>(kIndex,
                                  {.a = static_cast<const T*>(operands.x),
                                   .b = static_cast<const T*>(operands.w),
                                   .a_stride = p.x_stride(),
                                   .b_stride = p.c,
                                   .m = pixels_of(p),
                                   .n = p.k,
                                   .k = p.c,
                                   .out = static_cast<T*>(operands.y),
                                   .out_stride = p.y_stride(),
                                   .epilogue = epilogue_of<T>(p, operands),
                                   .statistics = {operands.statistics, p.k}},
                                  call);
}

template <class T, int kIndex> void run_dgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  multiply<T, Major::k, Major::mn>(kIndex,
                                   {.a = static_cast<const T*>(operands.y),
                                    .b = static_cast<const T*>(operands.w),
                                    .a_stride = p.y_stride(),
                                    .b_stride = p.c,
                                    .m = pixels_of(p),
                                    .n = p.c,
                                    .k = p.k,
                                    .out = static_cast<T*>(operands.x),
                                    .out_stride = p.x_stride()},
                                   call);
}

template <class T, int kIndex> void run_wgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const Split split = split_of(p, kGemmVariants<T>[kIndex].tile);
  auto* slices = static_cast<float*>(operands.workspace);
  auto* dw = static_cast<T*>(operands.w);
  multiply<T, Major::mn, Major::mn>(kIndex,
                                    {.a = static_cast<const T*>(operands.y),
                                     .b = static_cast<const T*>(operands.x),
                                     .a_stride = p.y_stride(),
                                     .b_stride = p.x_stride(),
                                     .m = p.k,
                                     .n = p.c,
                                     .k = pixels_of(p),
                                     .out = dw,
                                     .out_stride = p.c,
                                     .sums = split.ranges > 1 ? slices : nullptr,
                                     .range = split.range},
                                    call);
  if (split.ranges > 1) add_slices(slices, p.k * p.c, split.ranges, dw, call);
  sum_pixels<T>(operands, slices + slices_bytes(p, split) / int64_t{sizeof(float)}, call);
}

template <class T> void append(KernelList& list) {
  const auto name = [](Direction direction, int index) {
    return kernel_name("pointwise", direction, kDTypeOf<T>, tile_text(kGemmVariants<T>[index]));
  };
  for_each_variant<T>([&]<int i>() {
    list.push_back(
        {name(Direction::fprop, i), why_not<T, i>, rather_not<T, i>, nullptr, run_fprop<T, i>, partials<T, i>});
    list.push_back({name(Direction::dgrad, i), why_not<T, i>, rather_not<T, i>, nullptr, run_dgrad<T, i>});
    list.push_back(
        {name(Direction::wgrad, i), why_not<T, i>, rather_not<T, i>, workspace_bytes<T, i>, run_wgrad<T, i>});
  });
}

}  // namespace

void append_pointwise(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
