// Pointwise (1x1) convolution, stride 1 and no padding: x, w and y are matrices as they lie.
//
//   fprop  y[pixel][k]  = epilogue( sum over c of x[pixel][c] * w[k][c] )
//   dgrad  dx[pixel][c] = sum over k of dy[pixel][k] * w[k][c]
//   wgrad  dw[k][c]     = sum over pixels of dy[pixel][k] * x[pixel][c]
//
// x, y: rows of maps, a pixel stride apart; w: [K][C]. wgrad's pixels are split over the grid as in
// implicit_gemm_wgrad.cu; so are the maps that fprop and dgrad sum over where their tiles are few (implicit_gemm.cu).
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
  return (p.direction == Direction::wgrad ? split : split_of_few)(size.m, size.n, size.k, 1, tile);
}

template <class T, int kIndex> int64_t workspace_bytes(const ConvProblem& p) {
  const Size size = size_of(p);
  return slices_bytes(size.m * size.n, split_of(p, kGemmVariants<T>[kIndex].tile)) +
         (p.direction == Direction::wgrad ? sum_pixels_bytes(p) : 0);
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
  constexpr GemmTile kTile = kGemmVariants<T>[kIndex].tile;
  return split_of(p, kTile).ranges == 1 ? ceil_div(pixels_of(p), kTile.block_m) : 0;
}

// The product, by way of slices where k is split; returns their bytes.
template <class T, Major kMajorA, Major kMajorB, int kIndex>
int64_t run(MatrixProduct<T> product, const Operands& operands, const Call& call) {
  const Size size = size_of(call.problem);
  const Split split = split_of(call.problem, kGemmVariants<T>[kIndex].tile);
  product.m = size.m, product.n = size.n, product.k = size.k, product.range = split.range;
  if (split.ranges > 1) product.sums = static_cast<float*>(operands.workspace);
  multiply<T, kMajorA, kMajorB>(kIndex, product, call);
  if (split.ranges > 1) {
    add_slices<T>({.from = product.sums,
                   .how_many = split.ranges,
                   .rows = size.m,
                   .columns = size.n,
                   .to = product.out,
                   .stride = product.out_stride,
                   .epilogue = product.epilogue},
                  call);
  }
  return slices_bytes(size.m * size.n, split);
}

template <class T, int kIndex> void run_fprop(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  run<T, Major::k, Major::k, kIndex>({.a = static_cast<const T*>(operands.x),
                                      .b = static_cast<const T*>(operands.w),
                                      .a_stride = p.x_stride(),
                                      .b_stride = p.c,
                                      .out = static_cast<T*>(operands.y),
                                      .out_stride = p.y_stride(),
                                      .epilogue = epilogue_of<T>(p, operands),
                                      .statistics = {operands.statistics, p.k}},
                                     operands, call);
}

template <class T, int kIndex> void run_dgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  run<T, Major::k, Major::mn, kIndex>({.a = static_cast<const T*>(operands.y),
                                       .b = static_cast<const T*>(operands.w),
                                       .a_stride = p.y_stride(),
                                       .b_stride = p.c,
                                       .out = static_cast<T*>(operands.x),
                                       .out_stride = p.x_stride()},
                                      operands, call);
}

template <class T, int kIndex> void run_wgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const int64_t bytes = run<T, Major::mn, Major::mn, kIndex>({.a = static_cast<const T*>(operands.y),
                                                              .b = static_cast<const T*>(operands.x),
                                                              .a_stride = p.y_stride(),
                                                              .b_stride = p.x_stride(),
                                                              .out = static_cast<T*>(operands.w),
                                                              .out_stride = p.c},
                                                             operands, call);
  sum_pixels<T>(operands, static_cast<float*>(operands.workspace) + bytes / int64_t{sizeof(float)}, call);
}

template <class T> void append(KernelList& list) {
  const auto name = [](Direction direction, int index) {
    return kernel_name("pointwise", direction, kDTypeOf<T>, tile_text(kGemmVariants<T>[index]));
  };
  for_each_variant<T>([&]<int i>() {
    list.push_back({name(Direction::fprop, i), why_not<T, i>, rather_not<T, i>, workspace_bytes<T, i>, run_fprop<T, i>,
                    partials<T, i>});
    list.push_back(
        {name(Direction::dgrad, i), why_not<T, i>, rather_not<T, i>, workspace_bytes<T, i>, run_dgrad<T, i>});
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
