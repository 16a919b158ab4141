// im2col: the textbook convolution, and the baseline that the others are measured against.
//
//   columns[pixel][r*s*c] = the patch of x under the filter at that output pixel (zeros in the padding)
//   fprop  y = columns * w^T          dgrad  columns = dy * w, then added back to the pixels they came from (col2im)
//   wgrad  dw = dy^T * columns
//
// One image and group at a time, so that the columns, r*s times the size of x, stay bounded. x and y NHWC, w KRSC.
// Bound: writing and reading the columns, 2*p*q*r*s*c values an image, on top of the GEMM.
#include "im2col.h"

#include "gemm_operands.h"
#include "implicit_gemm.h"
#include "naming.h"
#include "wgrad_gemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

template <class T> void im2col_fprop(const ConvProblem& p, const Operands& operands) {
  using In = GemmIn<T>;
  const int64_t cg = p.c_per_group(), kg = p.k_per_group(), filter = p.r * p.s * cg, pixels = p.p() * p.q();
  const int64_t depth = round_up(filter, Step<In>::kDepth);
  const Lattice lattice{.rows = 1, .cols = pixels, .in_step_h = 1, .in_step_w = 1, .taps = {{0, 0, 0}}};
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t g = 0; g < p.groups; ++g) {
      const T* x = static_cast<const T*>(operands.x) + n * p.h * p.w * p.x_stride() + g * cg;
      PackFilters<T> pack;
      pack.w = static_cast<const T*>(operands.w) + g * kg * filter;
      pack.taps = 1;
      pack.depth = filter;
      EpilogueArgs<T> epilogue = epilogue_args<T>(p, operands, g * kg);
      if (epilogue.residual) epilogue.residual += n * pixels * epilogue.residual_pixel_stride;
      const Gemm<In, T> gemm{.images = 1,
                             .x = write_columns<T, In>(p, x, 1, cg, depth),
                             .in_h = 1,
                             .in_w = pixels,
                             .x_pixel_stride = depth,
                             .depth = depth,
                             .packed_depth = depth / Step<In>::kDepth,
                             .y = static_cast<T*>(operands.y) + n * pixels * p.y_stride() + g * kg,
                             .out_h = 1,
                             .out_w = pixels,
                             .y_pixel_stride = p.y_stride(),
                             .columns = kg,
                             .epilogue = epilogue,
                             .pack = &pack};
      gemm.run({&lattice, 1});
    }
}

template <class T> void im2col_dgrad(const ConvProblem& p, const Operands& operands) {
  using In = GemmIn<T>;
  using A = acc_t<T>;
  const int64_t cg = p.c_per_group(), kg = p.k_per_group(), filter = p.r * p.s * cg, pixels = p.p() * p.q();
  const Lattice lattice{.rows = 1, .cols = pixels, .in_step_h = 1, .in_step_w = 1, .taps = {{0, 0, 0}}};
  T* columns = scratch<T>(Scratch::columns, pixels * filter);
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t g = 0; g < p.groups; ++g) {
      const T* source = static_cast<const T*>(operands.y) + n * pixels * p.y_stride() + g * kg;
      const Pixels<T> dy = stage_pixels(source, pixels, kg, p.y_stride(), Scratch::local);
      PackMaps<T> pack;
      pack.w = static_cast<const T*>(operands.w) + g * kg * filter;
      pack.taps = 1;
      pack.filters = kg;
      pack.maps = filter;
      const Gemm<In, T> gemm{.images = 1,
                             .x = dy.data,
                             .in_h = 1,
                             .in_w = pixels,
                             .x_pixel_stride = dy.stride,
                             .depth = dy.depth,
                             .packed_depth = dy.depth / Step<In>::kDepth,
                             .y = columns,
                             .out_h = 1,
                             .out_w = pixels,
                             .y_pixel_stride = filter,
                             .columns = filter,
                             .epilogue = {},
                             .pack = &pack};
      gemm.run({&lattice, 1});
      T* dx = static_cast<T*>(operands.x) + n * p.h * p.w * p.x_stride() + g * cg;
      // A row of dx gathers from the output rows that read it, so that no two threads add to one pixel.
      parallel_for(p.h, 1, [&](int64_t begin, int64_t end) {
        std::vector<A> row(p.w * cg);
        for (int64_t h = begin; h < end; ++h) {
          std::fill(row.begin(), row.end(), A{});
          for (int64_t r = 0; r < p.r; ++r) {
            const int64_t reached = h + p.pad_top - r * p.dilation_h;
            if (reached < 0 || reached % p.stride_h || reached / p.stride_h >= p.p()) continue;
            for (int64_t q = 0; q < p.q(); ++q) {
              const T* patch = columns + (reached / p.stride_h * p.q() + q) * filter + r * p.s * cg;
              for (int64_t s = 0; s < p.s; ++s) {
                const int64_t w = q * p.stride_w - p.pad_left + s * p.dilation_w;
                if (w < 0 || w >= p.w) continue;
                for (int64_t c = 0; c < cg; ++c) row[w * cg + c] += to_acc(patch[s * cg + c]);
              }
            }
          }
          for (int64_t w = 0; w < p.w; ++w)
            for (int64_t c = 0; c < cg; ++c) dx[(h * p.w + w) * p.x_stride() + c] = from_acc<T>(row[w * cg + c]);
        }
      });
    }
}

template <class T> void im2col_wgrad(const ConvProblem& p, const Operands& operands) {
  using A = acc_t<T>;
  const int64_t cg = p.c_per_group(), kg = p.k_per_group(), filter = p.r * p.s * cg, pixels = p.p() * p.q();
  T* w = static_cast<T*>(operands.w);
  A* dw;
  if constexpr (std::is_same_v<A, T>) dw = w;
  else dw = scratch<A>(Scratch::local, p.k * filter);
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t g = 0; g < p.groups; ++g) {
      const T* x = static_cast<const T*>(operands.x) + n * p.h * p.w * p.x_stride() + g * cg;
      const T* dy = static_cast<const T*>(operands.y) + n * pixels * p.y_stride() + g * kg;
      const WgradGemm<T> gemm{
          .images = 1,
          .dy = dense_rows(dy, p.p(), p.q(), kg, p.y_stride()),
          .x = dense_rows<T>(write_columns<T, T>(p, x, 1, cg, filter), p.p(), p.q(), filter, filter),
          .in_step_h = 1,
          .in_step_w = 1,
          .taps = {{0, 0, 0}},
          .dw = dw + g * kg * filter,
          .dw_row_stride = filter,
          .dbias = operands.dbias ? static_cast<A*>(operands.dbias) + g * kg : nullptr,
          .accumulate = n > 0};
      gemm.run();
    }
  if constexpr (!std::is_same_v<A, T>) {
    for (int64_t i = 0; i < p.k * filter; ++i) w[i] = from_acc<T>(dw[i]);
  }
}

std::string fits_any(const ConvProblem&) { return ""; }

template <class T> void append(KernelList& list) {
  const auto name = [](Direction direction) {
    return kernel_name("im2col", direction, kDTypeOf<T>, CNNKERN_GEMM_TILE);
  };
  list.push_back({name(Direction::fprop), fits_any, nullptr, im2col_fprop<T>});
  list.push_back({name(Direction::dgrad), fits_any, nullptr, im2col_dgrad<T>});
  list.push_back({name(Direction::wgrad), fits_any, nullptr, im2col_wgrad<T>});
}

}  // namespace

void append_im2col(KernelList& list) {
  append<bf16>(list);
#if !defined(__AVX512BF16__)
  append<float>(list);
  append<double>(list);
  append<f16>(list);
#endif
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
