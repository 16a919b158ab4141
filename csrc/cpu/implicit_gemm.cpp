// Implicit GEMM: the columns of im2col are never written; tiles read x through one pointer per pixel and tap.
//
//   fprop  y[n,p,q,k] = sum over r,s,c of x[n, p*sh - pt + r*dh, q*sw - pl + s*dw, c] * w[k,r,s,c]
//   dgrad  the same loop over dy: pixels of dx whose coordinates agree modulo the stride see the same taps, so each of
//          the sh*sw classes is a lattice of its own, with the weights packed once as [r,s][k][c]
//   wgrad  dw[k,r,s,c] = sum over pixels of dy[.,k] * x[.,c], a GEMM that reduces over pixels
//
// x and y NHWC with pixel strides, w KRSC. Groups run one after another, each dense. Bound: FMA, 2*gemm_m*gemm_n*gemm_k
// flops, wherever K and C fill vectors.
#include "implicit_gemm.h"

#include "gemm_operands.h"
#include "naming.h"
#include "wgrad_gemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

// Floor and remainder that are right for negative numerators.
int64_t floor_mod(int64_t a, int64_t b) { return (a % b + b) % b; }
int64_t floor_div(int64_t a, int64_t b) { return (a - floor_mod(a, b)) / b; }

}  // namespace

// Tap r reaches row h of dx from dy's row (h + pt - r*dh) / sh.
Lattice dgrad_lattice(const ConvProblem& p, int64_t a, int64_t b, int64_t rows_per_tap) {
  Lattice lattice{.rows = (p.h - a + p.stride_h - 1) / p.stride_h,
                  .cols = (p.w - b + p.stride_w - 1) / p.stride_w,
                  .in_step_h = 1,
                  .in_step_w = 1,
                  .first_h = a,
                  .first_w = b,
                  .step_h = p.stride_h,
                  .step_w = p.stride_w,
                  .taps = {}};
  for (int64_t r = 0; r < p.r; ++r)
    for (int64_t s = 0; s < p.s; ++s) {
      const int64_t h = a + p.pad_top - r * p.dilation_h, w = b + p.pad_left - s * p.dilation_w;
      if (floor_mod(h, p.stride_h) || floor_mod(w, p.stride_w)) continue;
      lattice.taps.push_back({floor_div(h, p.stride_h), floor_div(w, p.stride_w), (r * p.s + s) * rows_per_tap});
    }
  return lattice;
}

template <class T> void gemm_fprop(const ConvProblem& p, const Operands& operands) {
  using In = GemmIn<T>;
  const int64_t cg = p.c_per_group(), kg = p.k_per_group(),
                rows_per_tap = round_up(cg, Step<In>::kDepth) / Step<In>::kDepth;
  Lattice lattice{.rows = p.p(), .cols = p.q(), .in_step_h = p.stride_h, .in_step_w = p.stride_w, .taps = {}};
  for (int64_t r = 0; r < p.r; ++r)
    for (int64_t s = 0; s < p.s; ++s)
      lattice.taps.push_back(
          {r * p.dilation_h - p.pad_top, s * p.dilation_w - p.pad_left, (r * p.s + s) * rows_per_tap});
  for (int64_t g = 0; g < p.groups; ++g) {
    const Pixels<T> x =
        stage_pixels(static_cast<const T*>(operands.x) + g * cg, p.n * p.h * p.w, cg, p.x_stride(), Scratch::local);
    PackFilters<T> pack;
    pack.w = static_cast<const T*>(operands.w) + g * kg * p.r * p.s * cg;
    pack.taps = p.r * p.s;
    pack.depth = cg;
    const Gemm<In, T> gemm{.images = p.n,
                           .x = x.data,
                           .in_h = p.h,
                           .in_w = p.w,
                           .x_pixel_stride = x.stride,
                           .depth = x.depth,
                           .packed_depth = p.r * p.s * rows_per_tap,
                           .y = static_cast<T*>(operands.y) + g * kg,
                           .out_h = p.p(),
                           .out_w = p.q(),
                           .y_pixel_stride = p.y_stride(),
                           .columns = kg,
                           .epilogue = epilogue_args<T>(p, operands, g * kg),
                           .pack = &pack};
    gemm.run({&lattice, 1});
  }
}

template <class T> void gemm_dgrad(const ConvProblem& p, const Operands& operands) {
  using In = GemmIn<T>;
  const int64_t cg = p.c_per_group(), kg = p.k_per_group(),
                rows_per_tap = round_up(kg, Step<In>::kDepth) / Step<In>::kDepth;
  std::vector<Lattice> lattices;
  for (int64_t a = 0; a < std::min(p.stride_h, p.h); ++a)
    for (int64_t b = 0; b < std::min(p.stride_w, p.w); ++b) lattices.push_back(dgrad_lattice(p, a, b, rows_per_tap));
  for (int64_t g = 0; g < p.groups; ++g) {
    const Pixels<T> dy =
        stage_pixels(static_cast<const T*>(operands.y) + g * kg, p.n * p.p() * p.q(), kg, p.y_stride(), Scratch::local);
    PackMaps<T> pack;
    pack.w = static_cast<const T*>(operands.w) + g * kg * p.r * p.s * cg;
    pack.taps = p.r * p.s;
    pack.filters = kg;
    pack.maps = cg;
    const Gemm<In, T> gemm{.images = p.n,
                           .x = dy.data,
                           .in_h = p.p(),
                           .in_w = p.q(),
                           .x_pixel_stride = dy.stride,
                           .depth = dy.depth,
                           .packed_depth = p.r * p.s * rows_per_tap,
                           .y = static_cast<T*>(operands.x) + g * cg,
                           .out_h = p.h,
                           .out_w = p.w,
                           .y_pixel_stride = p.x_stride(),
                           .columns = cg,
                           .epilogue = {},
                           .pack = &pack};
    gemm.run(lattices);
  }
}

template <class T> void gemm_wgrad(const ConvProblem& p, const Operands& operands) {
  using A = acc_t<T>;
  const int64_t cg = p.c_per_group(), kg = p.k_per_group(), filter = p.r * p.s * cg;
  T* w = static_cast<T*>(operands.w);
  A* dw;
  if constexpr (std::is_same_v<A, T>) dw = w;
  else dw = scratch<A>(Scratch::local, p.k * filter);
  WgradGemm<T> gemm{.images = p.n,
                    .dy = dense_rows(static_cast<const T*>(operands.y), p.p(), p.q(), kg, p.y_stride()),
                    .x = dense_rows(static_cast<const T*>(operands.x), p.h, p.w, cg, p.x_stride()),
                    .in_step_h = p.stride_h,
                    .in_step_w = p.stride_w,
                    .taps = {},
                    .dw = nullptr,
                    .dw_row_stride = filter,
                    .dbias = nullptr};
  if (p.pointwise()) {  // only the pixels that a strided 1x1 filter reads
    gemm.x.height = p.p(), gemm.x.width = p.q(), gemm.in_step_h = gemm.in_step_w = 1;
    gemm.x.pixel_stride *= p.stride_w, gemm.x.row_stride *= p.stride_h;
  }
  for (int64_t r = 0; r < p.r; ++r)
    for (int64_t s = 0; s < p.s; ++s)
      gemm.taps.push_back({r * p.dilation_h - p.pad_top, s * p.dilation_w - p.pad_left, (r * p.s + s) * cg});
  for (int64_t g = 0; g < p.groups; ++g) {
    gemm.dy.data = static_cast<const T*>(operands.y) + g * kg;
    gemm.x.data = static_cast<const T*>(operands.x) + g * cg;
    gemm.dw = dw + g * kg * filter;
    gemm.dbias = operands.dbias ? static_cast<A*>(operands.dbias) + g * kg : nullptr;
    gemm.run();
  }
  if constexpr (!std::is_same_v<A, T>) {
    for (int64_t i = 0; i < p.k * filter; ++i) w[i] = from_acc<T>(dw[i]);
  }
}

template <class T>
void append_directions(KernelList& list, const char* family, std::string (*why_not)(const ConvProblem&),
                       std::string (*rather_not)(const ConvProblem&)) {
  const auto name = [&](Direction direction) { return kernel_name(family, direction, kDTypeOf<T>, CNNKERN_GEMM_TILE); };
  list.push_back({name(Direction::fprop), why_not, rather_not, gemm_fprop<T>});
  list.push_back({name(Direction::dgrad), why_not, rather_not, gemm_dgrad<T>});
  list.push_back({name(Direction::wgrad), why_not, rather_not, gemm_wgrad<T>});
}

void append_gemm_family(KernelList& list, const char* family, std::string (*why_not)(const ConvProblem&),
                        std::string (*rather_not)(const ConvProblem&)) {
#if defined(__AVX512BF16__)
  append_directions<bf16>(list, family, why_not, rather_not);
#else
  append_directions<float>(list, family, why_not, rather_not);
  append_directions<double>(list, family, why_not, rather_not);
  append_directions<bf16>(list, family, why_not, rather_not);
  append_directions<f16>(list, family, why_not, rather_not);
#endif
}

void append_implicit_gemm(KernelList& list) {
  append_gemm_family(list, "implicit_gemm", [](const ConvProblem&) { return std::string(); }, nullptr);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
