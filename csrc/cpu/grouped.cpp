// Grouped convolution: output map k reads the maps of its group alone (ResNeXt, arXiv 1611.05431).
//
//   fprop  y[n,p,q,k]  = epilogue( sum over r,s,d of x[n, p*u - pad + r*l, q*u - pad + s*l, first(k) + d]
//                        * w[k,r,s,d] )
//   dgrad  dx[n,h,w,c] = sum over r,s and the k of c's group of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, k]
//                        * w[k,r,s,c % (C/groups)]
//   wgrad  dw[k,r,s,d] = sum over n,p,q of x[...as fprop] * dy[n,p,q,k];  dbias[k] = sum of dy
//   first(k) = k / (K/groups) * (C/groups),  d < C/groups
//
// x, y: NHWC with pixel strides; w: [K][R][S][C/groups].
//
// With few maps a group a vector of k spans several groups, and no broadcast gives its lanes what they need. The idea:
// load the vector of x with the same maps and permute it inside each group, so that every lane gets map d of its own
// group and all lanes work (microkernels/group_tile.h; group_blocks.h has who owns what). With a vector of maps a group
// or more the permute becomes a broadcast. wgrad has the sums of a filter row and a few d in registers (grouped_wgrad.h).
//
// The `any` kernels take every other combination: unequal sizes of groups, other filters. They broadcast to vectors of
// one group, and gather the lanes of others: once for all taps (grouped_spread.h), or for wgrad at each.
//
// Bound: FMA units; a 3x3 tile needs 36 permutes and 18 loads for 126 FMAs. Measured for a 3x3 at stride 1 on one Zen 4
// core (115 GFLOP/s) with 4, 8, 16 and 32 maps a group: 90, 104, 108 and 95 GFLOP/s; at stride 2 75 to 90.
#include <algorithm>

#include "group_blocks.h"
#include "grouped_spread.h"
#include "grouped_wgrad.h"
#include "naming.h"
#include "packing.h"
#include "wgrad_split.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

constexpr int kLeastGroup = 4;

// --- groups of G input and G output maps, 3x3 -----------------------------------------------------------------------

// Calls body with how the lanes get the maps of their groups. A group has kLeastGroup maps at least: no vector of so
// few lanes, or fewer, spans two.
template <class T, class Body>
void with_values(int64_t group, const Body& body) {
  if constexpr (kLanes<T> > kLeastGroup) {
    if (group < kLanes<T>) return body.template operator()<Values::permuted>();
  }
  body.template operator()<Values::broadcast>();
}

template <class T, bool kTransposed>
void run_square(const ConvProblem& problem, const Operands& operands) {
  const Sweep<T, T> sweep = make_sweep<T, T>(problem, operands);
  const T* w = static_cast<const T*>(operands.w);
  with_values<T>(sweep.group, [&]<Values kValues>() {
    if (problem.stride_w == 1) run_blocks<1, kTransposed, kValues>(sweep, w);
    else run_blocks<2, kTransposed, kValues>(sweep, w);
  });
}

// --- any ------------------------------------------------------------------------------------------------------------

constexpr int kAnyPixels = 4;

// Map d of every lane's input maps: a broadcast where all lanes share them, else lane by lane.
template <class T>
Vec<acc_t<T>> gather(const LaneMaps& lanes, const T* pixel, int64_t map, int n, int64_t d) {
  if (lanes.first(map) == lanes.first(map + n - 1)) return broadcast(to_acc(pixel[lanes.first(map) + d]));
  Vec<acc_t<T>> value{};
  for (int l = 0; l < n; ++l) value[l] = to_acc(pixel[lanes.first(map + l) + d]);
  return value;
}

// fprop: w[k][tap][d], dgrad: w[first(c) + d][tap][c % C/groups]  ->  [vector][tap][d][lanes], zeros beyond the maps.
template <class T>
const acc_t<T>* pack_any(const T* w, const LaneMaps& lanes, int64_t taps, bool transposed) {
  constexpr int kLane = kLanes<T>;
  const int64_t vectors = vectors_of<T>(lanes.out_maps);
  acc_t<T>* packed = scratch<acc_t<T>>(Scratch::packed, vectors * taps * lanes.depth * kLane);
  parallel_for(vectors, 1, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      acc_t<T>* out = packed + v * taps * lanes.depth * kLane;
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t d = 0; d < lanes.depth; ++d) {
          for (int64_t map = v * kLane; map < (v + 1) * kLane; ++map, ++out) {
            if (map >= lanes.out_maps) *out = 0;
            else if (transposed)
              *out = to_acc(w[((lanes.first(map) + d) * taps + t) * lanes.out_group + map % lanes.out_group]);
            else *out = to_acc(w[(map * taps + t) * lanes.depth + d]);
          }
        }
      }
    }
  });
  return packed;
}

template <class T>
void run_any(const ConvProblem& problem, const Operands& operands) {
  constexpr int kLane = kLanes<T>;
  Sweep<T, T> sweep = make_sweep<T, T>(problem, operands);
  const bool transposed = sweep.rows.transposed;
  const LaneMaps lanes = transposed ? LaneMaps{problem.c, problem.c_per_group(), problem.k_per_group()}
                                    : LaneMaps{problem.k, problem.k_per_group(), problem.c_per_group()};
  const int64_t taps = problem.r * problem.s, in_maps = transposed ? problem.k : problem.c;
  sweep.w = pack_any(static_cast<const T*>(operands.w), lanes, taps, transposed);
  if (lanes.out_group % kLane) return run_spread(sweep, lanes);
  const T* zeros = zero_row<T>(in_maps);  // read where a tap falls outside the image
  const int64_t work = sweep.columns.out * taps * lanes.depth * kLane;
  for_each_row(sweep.n * sweep.rows.out, vectors_of<T>(lanes.out_maps), work, [&](const Part& part) {
    const int64_t image = part.row / sweep.rows.out;
    for (int64_t column = 0; column < sweep.columns.out; column += kAnyPixels) {
      const int count = static_cast<int>(std::min<int64_t>(sweep.columns.out - column, kAnyPixels));
      for (int64_t v = part.block_begin; v < part.block_end; ++v) {
        const int64_t map = v * kLane;
        const int n = static_cast<int>(std::min<int64_t>(lanes.out_maps - map, kLane));
        const acc_t<T>* w = sweep.w + v * taps * lanes.depth * kLane;
        Vec<acc_t<T>> sum[kAnyPixels] = {};
        for (int64_t t = 0; t < taps; ++t, w += lanes.depth * kLane) {
          const int64_t i = sweep.rows.source(part.row % sweep.rows.out, t / problem.s);
          if (i < 0) continue;
          const T* pixels[kAnyPixels];
          for (int p = 0; p < kAnyPixels; ++p) {
            const int64_t j = p < count ? sweep.columns.source(column + p, t % problem.s) : -1;
            pixels[p] =
                j < 0 ? zeros : sweep.in + ((image * sweep.rows.in + i) * sweep.columns.in + j) * sweep.in_stride;
          }
          for (int64_t d = 0; d < lanes.depth; ++d) {
            const auto weights = load(w + d * kLane);
            for (int p = 0; p < kAnyPixels; ++p) sum[p] += broadcast(to_acc(pixels[p][lanes.first(map) + d])) * weights;
          }
        }
        for (int p = 0; p < count; ++p) {
          const int64_t pixel = part.row * sweep.columns.out + column + p;
          const auto result = affine<T>(sum[p], sweep.epilogue, map, pixel, n);
          store_n(sweep.out + pixel * sweep.out_stride + map,
                  activate(result, sweep.epilogue.activation, sweep.epilogue.alpha), n);
        }
      }
    }
  });
}

template <class T>
void run_wgrad_any(const ConvProblem& problem, const Operands& operands) {
  using A = acc_t<T>;
  constexpr int kLane = kLanes<T>;
  const LaneMaps lanes{problem.k, problem.k_per_group(), problem.c_per_group()};
  const int64_t maps = problem.k, taps = problem.r * problem.s, p_count = problem.p(), q_count = problem.q();
  const Axis rows{problem.h, p_count, problem.r, problem.stride_h, problem.pad_top, problem.dilation_h, false};
  const Axis columns{problem.w, q_count, problem.s, problem.stride_w, problem.pad_left, problem.dilation_w, false};
  const WgradSplit split(problem.n * p_count, vectors_of<T>(maps), Divide::maps);
  const int64_t vector_elements = taps * lanes.depth * kLane;
  const int64_t elements = split.vectors * vector_elements + maps;  // and dbias behind
  A* sums = zeroed_sums<A>(split, elements);
  split.run([&](int64_t chunk, int64_t row_begin, int64_t row_end, int64_t vector_begin, int64_t vector_end) {
    A* own = sums + chunk * elements;
    for (int64_t v = vector_begin; v < vector_end; ++v) {
      const int64_t map = v * kLane;
      const int n = static_cast<int>(std::min<int64_t>(maps - map, kLane));
      for (int64_t i = row_begin; i < row_end; ++i) {
        const T* dy = static_cast<const T*>(operands.y) + i * q_count * problem.y_stride();
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t h = rows.source(i % p_count, t / problem.s);
          if (h < 0) continue;
          const T* line =
              static_cast<const T*>(operands.x) + (i / p_count * problem.h + h) * problem.w * problem.x_stride();
          for (int64_t d = 0; d < lanes.depth; ++d) {
            A* at = own + v * vector_elements + (t * lanes.depth + d) * kLane;
            Vec<A> sum = load(at);
            for (int64_t q = 0; q < q_count; ++q) {
              const int64_t w = columns.source(q, t % problem.s);
              if (w < 0) continue;
              sum += gather(lanes, line + w * problem.x_stride(), map, n, d) *
                     load_n(dy + q * problem.y_stride() + map, n);
            }
            store(at, sum);
          }
        }
        if (operands.dbias)
          add_bias(dy, problem.y_stride(), q_count, own + split.vectors * vector_elements, map, map + n);
      }
    }
  });
  T* dw = static_cast<T*>(operands.w);
  for (int64_t k = 0; k < maps; ++k) {
    for (int64_t i = 0; i < taps * lanes.depth; ++i)
      dw[k * taps * lanes.depth + i] =
          from_acc<T>(total(split, sums, elements, k / kLane * vector_elements + i * kLane + k % kLane));
    if (operands.dbias)
      static_cast<A*>(operands.dbias)[k] = total(split, sums, elements, split.vectors * vector_elements + k);
  }
}

// --- the list -------------------------------------------------------------------------------------------------------

std::string why_not_any(const ConvProblem& problem) { return problem.groups > 1 ? "" : "needs more than one group"; }

template <class T> std::string rather_not_any(const ConvProblem& problem) {
  if (problem.depthwise() || std::min(problem.c_per_group(), problem.k_per_group()) < kLanes<T>) return "";
  return "groups of a vector of maps or more fill the GEMM kernels, which read weights once for several pixels";
}

std::string rather_not_square(const ConvProblem& problem) {
  return problem.c_per_group() < 64 ? "" : "groups of 64 maps or more fill the GEMM kernels";
}

template <class T> std::string why_not_square(const ConvProblem& problem) {
  const int64_t group = problem.c_per_group();
  if (problem.groups < 2) return "needs more than one group";
  if (problem.k_per_group() != group) return "needs groups of as many output as input maps";
  if (group % kLeastGroup || (group % kLanes<T> && kLanes<T> % group))
    return "needs 4, 8, 16 or a multiple of " + std::to_string(kLanes<T>) + " maps a group";
  return why_not_swept(problem, kFilter, kLanes<T>);
}

template <class T>
void append_dtype(KernelList& list) {
  const auto append = [&](Direction direction, const char* tile, auto why_not, auto rather_not, auto run) {
    list.push_back({kernel_name("grouped", direction, kDTypeOf<T>, tile), why_not, rather_not, run});
  };
  append(Direction::fprop, "7x3x3", why_not_square<T>, rather_not_square, run_square<T, false>);
  append(Direction::dgrad, "7x3x3", why_not_square<T>, rather_not_square, run_square<T, true>);
  append(Direction::wgrad, "7x3x3", why_not_square<T>, rather_not_square, run_square_wgrad<T>);
  append(Direction::fprop, "any", why_not_any, rather_not_any<T>, run_any<T>);
  append(Direction::dgrad, "any", why_not_any, rather_not_any<T>, run_any<T>);
  append(Direction::wgrad, "any", why_not_any, rather_not_any<T>, run_wgrad_any<T>);
}

}  // namespace

void append_grouped(KernelList& list) {
  append_dtype<float>(list);
  append_dtype<double>(list);
  append_dtype<bf16>(list);
  append_dtype<f16>(list);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
