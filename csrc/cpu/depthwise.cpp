// Depthwise convolution: every map has a filter of its own (groups == C == K).
//
//   fprop  y[n,p,q,c]  = epilogue( sum over r,s of x[n, p*u - pad + r*l, q*u - pad + s*l, c] * w[c,r,s] )
//   dgrad  dx[n,h,w,c] = sum over r,s of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, c] * w[c,r,s], where that divides
//   wgrad  dw[c,r,s]   = sum over n,p,q of x[...as fprop] * dy[n,p,q,c];  dbias[c] = sum of dy
//
// x, y: NHWC with pixel strides; w: [C][R][S], repacked so that a vector holds neighbouring maps.
//
// fprop and dgrad are one sweep over output rows (depthwise_sweep.h); other filters, strides and
// dilations go by lists of taps (depthwise_runs.h), and so do fewer maps than lanes (depthwise_few.h). wgrad of a 3x3
// adds tiles of pixels to the sums of a filter (depthwise_wgrad.h); other filters go pixel by pixel along a row.
// wgrad_split.h has how threads share them: the result does not depend on timing.
//
// Bound: 2 * R * S flops per 8 bytes (fp32, stride 1): FMA units in cache, memory bandwidth outside it. Measured for a
// 3x3 at stride 1 on one Zen 4 core (115 GFLOP/s): 93 to 97 GFLOP/s from L2, 58 to 73 from L3, and from memory 18 to 22
// GB/s of x and y, where a copy past the caches reaches 29.
#include <algorithm>

#include "depthwise_few.h"
#include "depthwise_runs.h"
#include "depthwise_sweep.h"
#include "depthwise_wgrad.h"
#include "naming.h"
#include "wgrad_split.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

template <class T, int S>
void run_square(const ConvProblem& problem, const Operands& operands) {
  Sweep<T, T> sweep = make_sweep<T, T>(problem, operands);
  const bool transposed = problem.direction == Direction::dgrad, flipped = transposed && problem.stride_w == 1;
  sweep.w = pack_depthwise(static_cast<const T*>(operands.w), problem.c, S * S, flipped, Scratch::packed);
  if (flipped) {  // dgrad at stride 1 is fprop with the filter turned round
    for (Axis* axis : {&sweep.rows, &sweep.columns}) {
      axis->pad = S - 1 - axis->pad;
      axis->transposed = false;
    }
  }
  if (problem.stride_w == 1) run_sweep<S, 1, false>(sweep);
  else if (transposed) run_sweep<S, 2, true>(sweep);
  else run_sweep<S, 2, false>(sweep);
}

template <class T>
void run_any(const ConvProblem& problem, const Operands& operands) {
  if (problem.c < kLanes<T>) return run_few<T>(problem, operands);
  run_runs<T>(problem, operands);
}

template <class T, int S>
void run_square_wgrad(const ConvProblem& problem, const Operands& operands) {
  if (problem.stride_w == 1) return run_wgrad_tiles<T, S, 1>(problem, operands);
  run_wgrad_tiles<T, S, 2>(problem, operands);
}

// --- wgrad of any filter --------------------------------------------------------------------------------------------

// Adds one output row's share to the sums of RT x S taps, one vector of maps at a time.
template <class T> struct FilterRow {
  const T* const* in;  // [RT], at the column of output 0 and tap 0; rows outside the image point to zeros
  const T* dy;
  int64_t in_stride, dy_stride;     // from pixel to pixel
  int64_t columns_in, columns_out;  // of x, of dy
  int64_t stride, dilation, pad;
  acc_t<T>* sums;  // [RT][S][maps]
  int64_t maps, map_begin, map_end;
};

template <class T, int RT, int S>
__attribute__((noinline)) void add_row(const FilterRow<T>& row) {
  using V = Vec<acc_t<T>>;
  // Outputs whose S taps all lie inside the image.
  const int64_t reach = (S - 1) * row.dilation;
  const int64_t inner_begin = std::clamp<int64_t>((row.pad + row.stride - 1) / row.stride, 0, row.columns_out);
  const int64_t space = row.columns_in - 1 - reach + row.pad;
  const int64_t inner_end = std::clamp<int64_t>(space < 0 ? 0 : space / row.stride + 1, inner_begin, row.columns_out);
  for (int64_t c = row.map_begin; c < row.map_end; c += kLanes<T>) {
    const int n = static_cast<int>(std::min<int64_t>(row.map_end - c, kLanes<T>));
    V sum[RT][S];
#pragma GCC unroll 8
    for (int r = 0; r < RT; ++r)
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) sum[r][s] = load_n(row.sums + (r * S + s) * row.maps + c, n);
    const auto border = [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q) {
        const V dy = load_n(row.dy + q * row.dy_stride + c, n);
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) {
          const int64_t column = q * row.stride + s * row.dilation;
          if (column < row.pad || column - row.pad >= row.columns_in) continue;
#pragma GCC unroll 8
          for (int r = 0; r < RT; ++r) sum[r][s] += dy * load_n(row.in[r] + column * row.in_stride + c, n);
        }
      }
    };
    const auto inner = [&](const auto& load_maps) {
      for (int64_t q = inner_begin; q < inner_end; ++q) {
        const V dy = load_maps(row.dy + q * row.dy_stride + c);
        const int64_t at = q * row.stride * row.in_stride + c;
#pragma GCC unroll 8
        for (int r = 0; r < RT; ++r)
#pragma GCC unroll 8
          for (int s = 0; s < S; ++s) sum[r][s] += dy * load_maps(row.in[r] + at + s * row.dilation * row.in_stride);
      }
    };
    border(0, inner_begin);
    if (n == kLanes<T>) inner([](const T* p) { return load(p); });
    else inner([n](const T* p) { return load_n(p, n); });
    border(inner_end, row.columns_out);
#pragma GCC unroll 8
    for (int r = 0; r < RT; ++r)
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) store_n(row.sums + (r * S + s) * row.maps + c, sum[r][s], n);
  }
}

// kFilter: the width of a square filter, or 0 for any (then one tap at a time).
template <class T, int kFilter>
void run_wgrad(const ConvProblem& problem, const Operands& operands) {
  using A = acc_t<T>;
  constexpr int S = std::max(kFilter, 1);
  constexpr int RT = S * S + 4 <= kRegisters ? S : 1;  // filter rows whose sums fit the registers
  const int64_t taps = problem.r * problem.s, maps = problem.c, p_count = problem.p(), q_count = problem.q();
  const Axis rows{problem.h, p_count, problem.r, problem.stride_h, problem.pad_top, problem.dilation_h, false};
  const int64_t row_elements = problem.w * problem.x_stride();

  const WgradSplit split(problem.n * p_count, (maps + kLanes<T> - 1) / kLanes<T>, depthwise_divide(problem));
  const int64_t elements = (taps + 1) * maps;  // [taps][maps], and dbias behind them
  A* sums = zeroed_sums<A>(split, elements);
  const T* zeros = zero_row<T>(row_elements);
  split.run([&](int64_t chunk, int64_t row_begin, int64_t row_end, int64_t vector_begin, int64_t vector_end) {
    A* own = sums + chunk * elements;
    const T* lines[RT];
    FilterRow<T> row{};
    row.in = lines;
    row.in_stride = problem.x_stride();
    row.dy_stride = problem.y_stride();
    row.columns_in = problem.w;
    row.columns_out = q_count;
    row.stride = problem.stride_w;
    row.dilation = problem.dilation_w;
    row.maps = maps;
    row.map_begin = vector_begin * kLanes<T>;
    row.map_end = std::min(vector_end * kLanes<T>, maps);
    for (int64_t i = row_begin; i < row_end; ++i) {
      row.dy = static_cast<const T*>(operands.y) + i * q_count * row.dy_stride;
      const T* image = static_cast<const T*>(operands.x) + i / p_count * problem.h * row_elements;
      for (int64_t f = 0; f < problem.r; f += RT) {
        for (int64_t s = 0; s < problem.s; s += S) {
          row.pad = problem.pad_left - s * row.dilation;
          bool inside = false;
          for (int r = 0; r < RT; ++r) {
            const int64_t source = rows.source(i % p_count, f + r);
            inside |= source >= 0;
            lines[r] = (source < 0 ? zeros : image + source * row_elements) - row.pad * row.in_stride;
          }
          row.sums = own + (f * problem.s + s) * maps;
          if (inside) add_row<T, RT, S>(row);
        }
      }
      if (operands.dbias) add_bias(row.dy, row.dy_stride, q_count, own + taps * maps, row.map_begin, row.map_end);
    }
  });

  T* dw = static_cast<T*>(operands.w);
  for (int64_t c = 0; c < maps; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap)
      dw[c * taps + tap] = from_acc<T>(total(split, sums, elements, tap * maps + c));
    if (operands.dbias) static_cast<A*>(operands.dbias)[c] = total(split, sums, elements, taps * maps + c);
  }
}

// --- the list -------------------------------------------------------------------------------------------------------

std::string why_not_any(const ConvProblem& problem) {
  return problem.depthwise() ? "" : "depthwise kernels need one filter per map: groups == C == K";
}

template <class T, int S>
std::string why_not_tiles(const ConvProblem& problem) {
  const std::string why = why_not_any(problem);
  return why.empty() ? why_not_swept(problem, S, kLanes<T>) : why;
}

template <int S>
std::string why_not_rows(const ConvProblem& problem) {
  const std::string why = why_not_any(problem);
  if (!why.empty()) return why;
  return problem.r == S && problem.s == S ? "" : "needs a filter of " + std::to_string(S) + "x" + std::to_string(S);
}

template <class T, int S>
void append_square(KernelList& list) {
  const std::string filter = std::to_string(S) + "x" + std::to_string(S);
  const auto append_tiles = [&](Direction direction, auto run) {
    const std::string tile = std::to_string(kTilePixels) + "x" + filter;
    list.push_back({kernel_name("depthwise", direction, kDTypeOf<T>, tile), why_not_tiles<T, S>, nullptr, run});
  };
  append_tiles(Direction::fprop, run_square<T, S>);
  append_tiles(Direction::dgrad, run_square<T, S>);
  if constexpr (S == 3) append_tiles(Direction::wgrad, run_square_wgrad<T, S>);
  list.push_back(
      {kernel_name("depthwise", Direction::wgrad, kDTypeOf<T>, filter), why_not_rows<S>, nullptr, run_wgrad<T, S>});
}

template <class T>
void append_dtype(KernelList& list) {
  append_square<T, 3>(list);
  append_square<T, 5>(list);
  append_square<T, 7>(list);
  const auto append = [&](Direction direction, auto run) {
    list.push_back({kernel_name("depthwise", direction, kDTypeOf<T>, "any"), why_not_any, nullptr, run});
  };
  append(Direction::fprop, run_any<T>);
  append(Direction::dgrad, run_any<T>);
  append(Direction::wgrad, run_wgrad<T, 0>);
}

}  // namespace

void append_depthwise(KernelList& list) {
  append_dtype<float>(list);
  append_dtype<double>(list);
  append_dtype<bf16>(list);
  append_dtype<f16>(list);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
