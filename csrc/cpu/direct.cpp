// Direct convolution for few input maps, such as the 3-channel stem of most networks.
//
//   y[n,p,q,k] = sum over r of < xp[n, p*sh + r*dh, q*sw ...], w[k,r,...] >,  runs of s*c neighbours
//
// x is copied into xp with its padding around it, at once or, in wgrad, a chunk of rows at a time. In NHWC the s taps of a filter row are then one run of s*c
// values, so a tap of the GEMM is a whole filter row: 21 steps instead of 7 times 3. The weights are packed as they
// lie (KRSC). wgrad uses the same runs: dw[k][r] is a GEMM with s*c columns. Bound: FMA; the copy moves 2*n*h*w*c values.
#include "gemm_operands.h"
#include "implicit_gemm.h"
#include "naming.h"
#include "wgrad_gemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

constexpr int64_t kFewMaps = 8;
constexpr int64_t kMostLanes = 64;  // of a panel of vectors, which reads beyond the last run

template <class In> struct Padded {
  In* data;
  int64_t h, w, maps;
};

template <class T, class In> void copy_values(const T* from, int64_t count, In* to) {
  if constexpr (std::is_same_v<T, In>) std::copy_n(from, count, to);
  else std::transform(from, from + count, to, [](T value) { return to_acc(value); });
}

// Writes a row of x, counted over all images, to `to`: the padding to its sides too, and zeros up to `maps` maps.
template <class T, class In>
void pad_row(const ConvProblem& p, const T* x, int64_t row, int64_t maps, In* to) {
  std::fill_n(to, p.pad_left * maps, In{});
  to += p.pad_left * maps;
  const T* from = x + row * p.w * p.x_stride();
  if (p.x_stride() == maps && p.c == maps) {  // one run of values, else each pixel is
    copy_values(from, p.w * maps, to);
  } else {
    for (int64_t w = 0; w < p.w; ++w) {
      copy_values(from + w * p.x_stride(), p.c, to + w * maps);
      std::fill_n(to + w * maps + p.c, maps - p.c, In{});
    }
  }
  std::fill_n(to + p.w * maps, p.pad_right * maps, In{});
}

// x with padding on all sides, maps rounded up to `multiple`.
template <class T, class In> Padded<In> pad(const ConvProblem& p, const T* x, int64_t multiple) {
  const Padded<In> padded{nullptr, p.h + p.pad_top + p.pad_bottom, p.w + p.pad_left + p.pad_right,
                          round_up(p.c, multiple)};
  const int64_t row_size = padded.w * padded.maps;
  In* out = scratch<In>(Scratch::columns, p.n * padded.h * row_size);
  parallel_for(p.n * padded.h, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / padded.h, h = row % padded.h - p.pad_top;
      if (h < 0 || h >= p.h) std::fill_n(out + row * row_size, row_size, In{});
      else pad_row(p, x, n * p.h + h, padded.maps, out + row * row_size);
    }
  });
  return {out, padded.h, padded.w, padded.maps};
}

// w with its maps rounded up as in the padded x.
template <class T> const T* pad_maps(const T* w, int64_t taps, int64_t maps, int64_t padded_maps) {
  if (maps == padded_maps) return w;
  T* out = scratch<T>(Scratch::local, taps * padded_maps);
  std::fill_n(out, taps * padded_maps, T{});
  for (int64_t t = 0; t < taps; ++t) std::copy_n(w + t * maps, maps, out + t * padded_maps);
  return out;
}

template <class T> void direct_fprop(const ConvProblem& p, const Operands& operands) {
  using In = GemmIn<T>;
  const auto x = pad<T, In>(p, static_cast<const T*>(operands.x), Step<In>::kDepth);
  const int64_t run = p.s * x.maps;
  Lattice lattice{.rows = p.p(), .cols = p.q(), .in_step_h = p.stride_h, .in_step_w = p.stride_w, .taps = {}};
  for (int64_t r = 0; r < p.r; ++r) lattice.taps.push_back({r * p.dilation_h, 0, r * run / Step<In>::kDepth});
  PackFilters<T> pack;
  pack.w = pad_maps(static_cast<const T*>(operands.w), p.k * p.r * p.s, p.c, x.maps);
  pack.taps = p.r;
  pack.depth = run;
  const Gemm<In, T> gemm{.images = p.n,
                         .x = x.data,
                         .in_h = x.h,
                         .in_w = x.w,
                         .x_pixel_stride = x.maps,
                         .depth = run,
                         .packed_depth = p.r * run / Step<In>::kDepth,
                         .y = static_cast<T*>(operands.y),
                         .out_h = p.p(),
                         .out_w = p.q(),
                         .y_pixel_stride = p.y_stride(),
                         .columns = p.k,
                         .epilogue = epilogue_args<T>(p, operands, 0),
                         .pack = &pack};
  gemm.run({&lattice, 1});
}

template <class T> void direct_wgrad(const ConvProblem& p, const Operands& operands) {
  using A = acc_t<T>;
  const int64_t run = p.s * p.c, filter = p.r * run;
  T* w = static_cast<T*>(operands.w);
  A* dw;
  if constexpr (std::is_same_v<A, T>) dw = w;
  else dw = scratch<A>(Scratch::local, p.k * filter);
  // Rows are padded as they are needed, while they are in cache. Seen by the GEMM, one has a "pixel" per output column:
  // the run of s*c values under the filter.
  const T* x = static_cast<const T*>(operands.x);
  const int64_t row_size = (p.w + p.pad_left + p.pad_right) * p.c;
  const RowStaging<A> staging{[&](int64_t first, int64_t last) -> const A* {
                                A* rows = scratch<A>(Scratch::columns, (last - first) * row_size + kMostLanes);
                                parallel_for(last - first, 8, [&](int64_t begin, int64_t end) {
                                  for (int64_t i = begin; i < end; ++i)
                                    pad_row(p, x, first + i, p.c, rows + i * row_size);
                                });
                                return rows;
                              },
                              row_size};
  WgradGemm<T> gemm{.images = p.n,
                    .dy = dense_rows(static_cast<const T*>(operands.y), p.p(), p.q(), p.k, p.y_stride()),
                    .x = dense_rows(x, p.h, p.w, run, p.x_stride()),
                    .x_staging = &staging,
                    .in_step_h = p.stride_h,
                    .in_step_w = 1,
                    .taps = {},
                    .dw = dw,
                    .dw_row_stride = filter,
                    .dbias = static_cast<A*>(operands.dbias)};
  gemm.x.width = p.q(), gemm.x.pixel_stride = p.stride_w * p.c;
  for (int64_t r = 0; r < p.r; ++r) gemm.taps.push_back({r * p.dilation_h - p.pad_top, 0, r * run});
  gemm.run();
  if constexpr (!std::is_same_v<A, T>) {
    for (int64_t i = 0; i < p.k * filter; ++i) w[i] = from_acc<T>(dw[i]);
  }
}

std::string why_not(const ConvProblem& p) {
  if (p.groups != 1) return "it computes one group";
  if (p.dilation_w != 1) return "a filter row is not one run of memory when the filter is dilated";
  return "";
}

std::string rather_not(const ConvProblem& p) {
  if (p.c > kFewMaps) return "with more than 8 input maps the implicit GEMM needs no padded copy";
  if (p.s == 1) return "a filter one pixel wide has no runs to merge";
  return "";
}

template <class T> void append(KernelList& list) {
  const auto name = [](Direction direction) {
    return kernel_name("direct", direction, kDTypeOf<T>, CNNKERN_GEMM_TILE);
  };
  list.push_back({name(Direction::fprop), why_not, rather_not, direct_fprop<T>});
  list.push_back({name(Direction::wgrad), why_not, rather_not, direct_wgrad<T>});
}

}  // namespace

void append_direct(KernelList& list) {
  append<bf16>(list);
#if !defined(__AVX512BF16__)
  append<float>(list);
  append<double>(list);
  append<f16>(list);
#endif
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
