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
// or more the permute becomes a broadcast. wgrad runs along a row with the sums of S taps and a few d in registers.
//
// The `any` kernels take every other combination: unequal sizes of groups, other filters. They gather the lanes.
//
// Bound: FMA units; a 3x3 tile needs 36 permutes and 18 loads for 126 FMAs. Measured for a 3x3 at stride 1 on one Zen 4
// core (115 GFLOP/s) with 4, 8, 16 and 32 maps a group: 90, 104, 108 and 95 GFLOP/s; at stride 2 75 to 90.
#include <algorithm>
#include <utility>
#include <vector>

#include "group_blocks.h"
#include "naming.h"
#include "packing.h"
#include "wgrad_split.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

constexpr int kLeastGroup = 4;
constexpr int64_t kBlockBytes = 24 * 1024;  // of x and dy that wgrad keeps in L1

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

// What one filter row f contributes to dw from a block of output rows, for one vector of k.
template <class T> struct FilterRow {
  std::vector<const T*> in, dy;  // pairs of an input row and the output row that meets it at f, at their column 0
  int64_t in_stride, dy_stride, columns_in, columns_out, pad;
  int64_t group;
  LaneIndex<acc_t<T>> places;  // of the first map of each lane's group, for Values::permuted
};

constexpr int kBlock = kRegisters >= 32 ? 4 : 2;  // maps d at a time: kBlock * S sums and S dy in registers

template <class T, int U, Values kValues, bool kInside>
CNNKERN_INLINE void add_tile(const FilterRow<T>& row, const T* in, const T* dy, int64_t first, int64_t d,
                             Vec<acc_t<T>> (&sum)[kBlock][kFilter]) {
  using Tap = Taps<kFilter, U, false, 0>;
  const int64_t column = Tap::first_column(first, row.pad), count = row.columns_out - first;
  in += column * row.in_stride;
  dy += first * row.dy_stride;
  Vec<acc_t<T>> gradient[kTilePixels];
#pragma GCC unroll 32
  for (int j = 0; j < Tap::kColumns; ++j) {
    const int begins = j / U;  // the pixel of dy whose first tap is this column
    if (j % U == 0 && begins < kTilePixels)
      gradient[begins] = kInside || begins < count ? in_register(load(dy + begins * row.dy_stride)) : Vec<acc_t<T>>{};
    if (!kInside && (column + j < 0 || column + j >= row.columns_in)) continue;
#pragma GCC unroll 4
    for (int b = 0; b < kBlock; ++b) {
      const LaneIndex<acc_t<T>> places = row.places + broadcast(static_cast<LaneIndexElement<acc_t<T>>>(d + b));
      const auto value = in_register(group_value<kValues>(in + j * row.in_stride, d + b, places));
#pragma GCC unroll 8
      for (int t = 0; t < kTilePixels; ++t) {
        if (Tap::uses(j, t)) sum[b][Tap::uses(j, t) ? Tap::tap(j, t) : 0] += value * gradient[t];
      }
    }
  }
}

// sums [S][G][lanes] += the share of the block of rows, for the maps from in_map and k on.
template <class T, int U, Values kValues>
__attribute__((noinline)) void add_rows(const FilterRow<T>& row, int64_t in_map, int64_t k, acc_t<T>* sums) {
  using Tap = Taps<kFilter, U, false, 0>;
  constexpr int kLane = kLanes<T>;
  for (int64_t d = 0; d < row.group; d += kBlock, sums += kBlock * kLane) {
    Vec<acc_t<T>> sum[kBlock][kFilter];
#pragma GCC unroll 4
    for (int b = 0; b < kBlock; ++b)
#pragma GCC unroll 4
      for (int s = 0; s < kFilter; ++s) sum[b][s] = load(sums + (s * row.group + b) * kLane);
    for (size_t i = 0; i < row.in.size(); ++i) {
      const T *in = row.in[i] + in_map, *dy = row.dy[i] + k;
      for (int64_t first = 0; first < row.columns_out; first += kTilePixels) {
        const int64_t column = Tap::first_column(first, row.pad);
        if (column >= 0 && column + Tap::kColumns <= row.columns_in && first + kTilePixels <= row.columns_out)
          add_tile<T, U, kValues, true>(row, in, dy, first, d, sum);
        else add_tile<T, U, kValues, false>(row, in, dy, first, d, sum);
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < kBlock; ++b)
#pragma GCC unroll 4
      for (int s = 0; s < kFilter; ++s) store(sums + (s * row.group + b) * kLane, sum[b][s]);
  }
}

// sums [tap][d][lanes] of one vector, of all chunks -> dw[k][tap][d]. The last vector overlaps the one before it: its
// first lanes are left to that.
template <class T>
void write_filters(const WgradSplit& split, const acc_t<T>* sums, int64_t elements, int64_t vector, int64_t maps,
                   int64_t group, T* dw) {
  constexpr int kLane = kLanes<T>;
  const int64_t start = vector_start<acc_t<T>>(vector, maps);
  for (int64_t t = 0; t < kTaps; ++t) {
    for (int64_t d = 0; d < group; d += kLane) {
      const int n = static_cast<int>(std::min<int64_t>(group - d, kLane));
      Vec<acc_t<T>> block[kLane] = {};
      for (int b = 0; b < n; ++b)
        for (int64_t chunk = 0; chunk < split.chunks; ++chunk)
          block[b] += load(sums + chunk * elements + (t * group + d + b) * kLane);
      transpose<Vec<acc_t<T>>, kLane>(block);
      for (int64_t l = vector * kLane - start; l < kLane; ++l)
        store_n(dw + ((start + l) * kTaps + t) * group + d, block[l], n);
    }
  }
}

template <class T>
void run_wgrad(const ConvProblem& problem, const Operands& operands) {
  using A = acc_t<T>;
  const int64_t maps = problem.k, group = problem.c_per_group(), p_count = problem.p(), q_count = problem.q();
  const Axis rows{problem.h, p_count, problem.r, problem.stride_h, problem.pad_top, problem.dilation_h, false};
  const Pixels<T> all_x{static_cast<const T*>(operands.x), problem.x_stride()};
  const Pixels<T> all_dy{static_cast<const T*>(operands.y), problem.y_stride()};
  const WgradSplit split(problem.n * p_count, vectors_of<T>(maps));
  const int64_t vector_elements = kTaps * group * kLanes<T>;
  const int64_t elements = split.vectors * vector_elements + maps;  // and dbias behind
  A* sums = zeroed_sums<A>(split, elements);
  void (*add)(const FilterRow<T>&, int64_t, int64_t, A*) = nullptr;
  with_values<T>(group, [&]<Values kValues>() {
    add = problem.stride_w == 1 ? add_rows<T, 1, kValues> : add_rows<T, 2, kValues>;
  });
  // So many rows at a time that one vector's share of them stays in L1 for all d.
  const int64_t block_rows = std::max<int64_t>(1, kBlockBytes / ((problem.w + q_count) * kVectorBytes));
  const auto add_block = [&](const Block<T>& block, int64_t row_begin, int64_t row_end, A* own) {
    Pixels<T> x = all_x, dy = all_dy;
    if (x.evict_each_other()) {
      const int64_t first = row_begin / p_count * problem.h, last = (row_end - 1) / p_count * problem.h;
      const int64_t line = lines_of(rows, row_begin % p_count, p_count).first;
      const int64_t line_end = lines_of(rows, 0, (row_end - 1) % p_count + 1).second;
      x = copy_maps(x, (first + line) * problem.w, (last + line_end) * problem.w, block.map_begin, block.map_end,
                    Scratch::columns);
    }
    if (dy.evict_each_other())
      dy = copy_maps(dy, row_begin * q_count, row_end * q_count, block.map_begin, block.map_end, Scratch::packed_dy);
    FilterRow<T> row{{}, {}, x.stride, dy.stride, problem.w, q_count, problem.pad_left, group, {}};
    for (int l = 0; l < kLanes<T>; ++l) row.places[l] = l / group * group;
    for (int64_t f = 0; f < kFilter; ++f) {
      row.in.clear();
      row.dy.clear();
      for (int64_t i = row_begin; i < row_end; ++i) {
        const int64_t source = rows.source(i % p_count, f);
        if (source < 0) continue;
        row.in.push_back(x.data + (i / p_count * problem.h + source) * problem.w * x.stride);
        row.dy.push_back(dy.data + i * q_count * dy.stride);
      }
      for (int64_t v = block.begin; v < block.end; ++v) {
        const int64_t k = vector_start<A>(v, maps);
        add(row, group < kLanes<T> ? k : k / group * group, k,
            own + v * vector_elements + f * kFilter * group * kLanes<T>);
      }
    }
    for (int64_t i = row_begin; operands.dbias && i < row_end; ++i)
      add_bias(dy.data + i * q_count * dy.stride, dy.stride, q_count, own + split.vectors * vector_elements,
               block.begin * kLanes<T>, std::min(block.end * kLanes<T>, maps));
  };
  split.run([&](int64_t chunk, int64_t row_begin, int64_t row_end, int64_t vector_begin, int64_t vector_end) {
    const auto add_rows_of = [&](const Block<T>& block) {
      for (int64_t begin = row_begin; begin < row_end; begin += block_rows)
        add_block(block, begin, std::min(begin + block_rows, row_end), sums + chunk * elements);
    };
    if (all_x.evict_each_other()) for_each_block<T>(vector_begin, vector_end, maps, group, add_rows_of);
    else add_rows_of(Block<T>(vector_begin, vector_end, maps, group));
  });
  parallel_for(split.vectors, std::max<int64_t>(1, 32768 / vector_elements), [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v)
      write_filters(split, sums + v * vector_elements, elements, v, maps, group, static_cast<T*>(operands.w));
  });
  if (!operands.dbias) return;
  for (int64_t k = 0; k < maps; ++k)
    static_cast<A*>(operands.dbias)[k] = total(split, sums, elements, split.vectors * vector_elements + k);
}

// --- any ------------------------------------------------------------------------------------------------------------

constexpr int kAnyPixels = 4;

// A vector of output maps of which each lane reads `depth` input maps from a place of its own.
struct LaneMaps {
  int64_t out_maps, out_group, depth;  // out_group output maps read the same `depth` input maps
  int64_t first(int64_t map) const { return map / out_group * depth; }
};

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
            for (int p = 0; p < kAnyPixels; ++p) sum[p] += gather(lanes, pixels[p], map, n, d) * weights;
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
  const WgradSplit split(problem.n * p_count, vectors_of<T>(maps));
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
  append(Direction::wgrad, "7x3x3", why_not_square<T>, rather_not_square, run_wgrad<T>);
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
