// Direct convolution for few output maps, such as those of the heads that end in a class, a box or an image.
//
//   y[n,p,q,k] = sum over r of < x[n, p*sh - pt + r*dh, q*sw - pl ...], w[k,r,...] >,  runs of s*c neighbours
//
// A GEMM with k columns would leave most lanes of a vector empty, so the reduction is in the lanes (microkernels/dot.h):
// a tile of pixels x k sums reads vectors of x and of w where they lie, KRSC. Bound: reading x where the filter is 1x1,
// else FMA, 2*gemm_m*gemm_n*gemm_k flops.
#include "dot_rows.h"
#include "gemm_operands.h"
#include "naming.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

// The filters, in the type that the dot products take.
template <class T> const GemmIn<T>* stage_filters(const T* w, int64_t count) {
  if constexpr (std::is_same_v<GemmIn<T>, T>) {
    return w;
  } else {
    GemmIn<T>* out = scratch<GemmIn<T>>(Scratch::packed, count);
    std::transform(w, w + count, out, [](T value) { return to_acc(value); });
    return out;
  }
}

template <class T> void few_maps_fprop(const ConvProblem& p, const Operands& operands) {
  const int64_t filter = p.r * p.s * p.c;
  Lattice lattice{.rows = p.p(), .cols = p.q(), .in_step_h = p.stride_h, .in_step_w = p.stride_w, .taps = {}};
  for (int64_t r = 0; r < p.r; ++r)
    for (int64_t s = 0; s < p.s; ++s)
      lattice.taps.push_back({r * p.dilation_h - p.pad_top, s * p.dilation_w - p.pad_left, (r * p.s + s) * p.c});
  const EpilogueArgs<T> epilogue = epilogue_args<T>(p, operands, 0);
  DotRows<T, GemmIn<T>, T> rows{.x = static_cast<const T*>(operands.x),
                                .in_h = p.h,
                                .in_w = p.w,
                                .x_pixel_stride = p.x_stride(),
                                .depth = p.c,
                                .w = stage_filters(static_cast<const T*>(operands.w), p.k * filter),
                                .w_row_stride = filter,
                                .y = static_cast<T*>(operands.y),
                                .out_h = p.p(),
                                .out_w = p.q(),
                                .y_pixel_stride = p.y_stride(),
                                .columns = static_cast<int>(p.k),
                                .epilogue = p.epilogue == Epilogue{} ? nullptr : &epilogue};
  int64_t images = p.n;
  if (p.pointwise() && !p.strided()) {  // all pixels are one row
    rows.in_w = rows.out_w = lattice.cols = p.n * p.h * p.w;
    rows.in_h = rows.out_h = lattice.rows = images = 1;
  }
  constexpr int64_t kGrain = 1 << 17;  // multiplications that are worth a thread
  parallel_for(images * lattice.rows * lattice.cols, kGrain / (p.k * filter) + 1, [&](int64_t begin, int64_t end) {
    std::vector<DotTap> dots;
    while (begin < end) {
      const int64_t row = begin / lattice.cols, j = begin % lattice.cols;
      const int64_t last = std::min(lattice.cols, j + end - begin);
      rows.run(lattice, p.s, row / lattice.rows, row % lattice.rows, j, last, dots);
      begin += last - j;
    }
  });
}

std::string why_not(const ConvProblem& p) {
  if (p.groups != 1) return "it computes one group";
  if (p.k > kDotColumns) return "its tiles have at most 8 output maps";
  return "";
}

// Vector steps of a pixel here and in a GEMM, whose vectors are of maps. Adding up a sum's lanes costs as much as 3
// steps; a GEMM's tile of a 1x1 filter as much as 8 more. On one Zen 4 core 28x28 pixels of 64 maps take 4.0 times less
// than in a GEMM for 1 output map and 1.4 times less for 8, of 8 maps 1.6 times less for 2 and as much for 4.
template <class T> std::string rather_not(const ConvProblem& p) {
  constexpr int64_t kDepth = Step<GemmIn<T>>::kDepth, kLane = kLanes<T>;
  const int64_t run = p.s * p.c;
  if (!kMasksLoads<T> && run % kLane) return "parts of a vector go through memory";
  const int64_t dot_steps = p.r * ((run + kLane * kDepth - 1) / (kLane * kDepth));
  const int64_t gemm_steps = (p.k + kLane - 1) / kLane * ((p.r * run + kDepth - 1) / kDepth) + (p.pointwise() ? 8 : 0);
  if (p.k * (9 * dot_steps + 24) > 8 * gemm_steps) return "adding up the lanes of short sums takes longest";
  return "";
}

template <class T> void append(KernelList& list) {
  const std::string tile = std::to_string(dot_rows(3)) + "x3";
  list.push_back(
      {kernel_name("direct", Direction::fprop, kDTypeOf<T>, tile), why_not, rather_not<T>, few_maps_fprop<T>});
}

}  // namespace

void append_direct_few_maps(KernelList& list) {
  append<bf16>(list);
#if !defined(__AVX512BF16__)
  append<float>(list);
  append<double>(list);
  append<f16>(list);
#endif
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
