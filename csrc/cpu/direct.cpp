// Direct convolution for few input maps, such as the 3-channel stem of most networks; direct_dgrad.cpp has its dgrad.
//
//   y[n,p,q,k] = sum over r of < xp[n, p*sh + r*dh, q*sw ...], w[k,r,...] >,  runs of s*c neighbours
//
// x is copied into xp with its padding around it, at once or, in wgrad, a chunk of rows at a time. In NHWC the s taps of
// a filter row are then one run of s*c values, so a tap of the GEMM is a whole filter row: 21 steps instead of 7 times 3.
// The weights are packed as they lie (KRSC). wgrad uses the same runs: dw[k][r] is a GEMM with s*c columns.
// Bound: FMA; the copy moves 2*n*h*w*c values.
//
// Where a step takes pairs (bf16) and such a run is odd, the copy has filter columns instead, [n][p][w][r][c] with r*c
// rounded up: the whole filter is one run of s of them, with a zero per filter column instead of one per tap (77 steps
// instead of 98 in a 7x7 with 3 maps), for a copy r / sh times larger.
#include <cstring>

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

// Writes a row of x, counted over all images, to `to`, with the padding to its sides.
template <class T, class In> void pad_row(const ConvProblem& p, const T* x, int64_t row, In* to) {
  to = std::fill_n(to, p.pad_left * p.c, In{});
  const T* from = x + row * p.w * p.x_stride();
  const bool dense = p.x_stride() == p.c;  // one run of values, else each pixel is
  const int64_t runs = dense ? 1 : p.w, length = dense ? p.w * p.c : p.c;
  for (int64_t i = 0; i < runs; ++i, from += p.x_stride(), to += length) copy_values(from, length, to);
  std::fill_n(to, p.pad_right * p.c, In{});
}

// x with padding on all sides.
template <class T, class In> Padded<In> pad(const ConvProblem& p, const T* x) {
  const Padded<In> padded{nullptr, p.h + p.pad_top + p.pad_bottom, p.w + p.pad_left + p.pad_right, p.c};
  const int64_t row_size = padded.w * padded.maps;
  In* out = scratch<In>(Scratch::columns, p.n * padded.h * row_size);
  parallel_for(p.n * padded.h, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / padded.h, h = row % padded.h - p.pad_top;
      if (h < 0 || h >= p.h) std::fill_n(out + row * row_size, row_size, In{});
      else pad_row(p, x, n * p.h + h, out + row * row_size);
    }
  });
  return {out, padded.h, padded.w, padded.maps};
}

// What the filter sees of each column of the padded x from each output row: columns[n][p][w][r][c], r*c rounded up to
// `depth` with zeros.
template <class T> T* gather_columns(const ConvProblem& p, const T* x, int64_t depth) {
  const int64_t width = p.w + p.pad_left + p.pad_right;
  const bool moves = p.c <= kFewMaps && p.w * p.c >= kFewMaps;
  T* out = scratch<T>(Scratch::columns, p.n * p.p() * width * depth);
  parallel_for(p.n * p.p(), 8, [&](int64_t begin, int64_t end) {
    const std::vector<T> zeros(std::max(p.c, kFewMaps));
    struct Source {
      const T* at;
      int64_t step;
    };
    std::vector<Source> rows(p.r);
    T* to = out + begin * width * depth;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t r = 0; r < p.r; ++r) {
        const int64_t h = row % p.p() * p.stride_h - p.pad_top + r * p.dilation_h;
        const bool inside = h >= 0 && h < p.h;
        rows[r] = {inside ? x + (row / p.p() * p.h + h) * p.w * p.x_stride() : zeros.data(), inside ? p.x_stride() : 0};
      }
      to = std::fill_n(to, p.pad_left * depth, T{});
      // Eight maps are one move, and the next one overwrites what is too much. It may reach into another row, but
      // not out of x nor of this thread's rows.
      const bool last = row + 1 == end || row / p.p() + 1 == p.n;
      const int64_t whole = !moves ? 0 : last ? std::max<int64_t>(p.w - kFewMaps + 1, 0) : p.w;
      for (int64_t w = 0; w < p.w; ++w, to += depth) {
        for (int64_t r = 0; r < p.r; ++r) {
          const T* from = rows[r].at + w * rows[r].step;
          if (w < whole) std::memcpy(to + r * p.c, from, kFewMaps * sizeof(T));
          else std::memcpy(to + r * p.c, from, p.c * sizeof(T));
        }
        for (int64_t d = p.r * p.c; d < depth; ++d) to[d] = T{};
      }
      to = std::fill_n(to, p.pad_right * depth, T{});
    }
  });
  return out;
}

// The weights for it: [k][s][r][c], r*c rounded up to `depth`.
template <class T> const T* gather_weights(const ConvProblem& p, const T* w, int64_t depth) {
  T* out = scratch<T>(Scratch::local, p.k * p.s * depth);
  std::fill_n(out, p.k * p.s * depth, T{});
  for (int64_t k = 0; k < p.k; ++k)
    for (int64_t r = 0; r < p.r; ++r)
      for (int64_t s = 0; s < p.s; ++s, w += p.c) std::copy_n(w, p.c, out + (k * p.s + s) * depth + r * p.c);
  return out;
}

template <class T> void direct_fprop(const ConvProblem& p, const Operands& operands) {
  using In = GemmIn<T>;
  constexpr int kStep = Step<In>::kDepth;
  const T* source = static_cast<const T*>(operands.x);
  const T* w = static_cast<const T*>(operands.w);
  Lattice lattice{.rows = p.p(), .cols = p.q(), .in_step_h = p.stride_h, .in_step_w = p.stride_w, .taps = {}};
  PackFilters<T> pack;
  Padded<In> x;
  const auto use_rows = [&] {
    x = pad<T, In>(p, source);
    pack.w = w;
    pack.taps = p.r;
  };
  if constexpr (kStep == 1) {
    use_rows();
  } else if (p.s * p.c % kStep == 0) {
    use_rows();
  } else {
    const int64_t depth = round_up(p.r * p.c, kStep);
    x = {gather_columns(p, source, depth), p.p(), p.w + p.pad_left + p.pad_right, depth};
    pack.w = gather_weights(p, w, depth);
    pack.taps = 1;
    lattice.in_step_h = 1;
  }
  pack.depth = p.s * x.maps;
  for (int64_t r = 0; r < pack.taps; ++r) lattice.taps.push_back({r * p.dilation_h, 0, r * pack.depth / kStep});
  const Gemm<In, T> gemm{.images = p.n,
                         .x = x.data,
                         .in_h = x.h,
                         .in_w = x.w,
                         .x_pixel_stride = x.maps,
                         .depth = pack.depth,
                         .packed_depth = pack.taps * pack.depth / kStep,
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
                                  for (int64_t i = begin; i < end; ++i) pad_row(p, x, first + i, rows + i * row_size);
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
