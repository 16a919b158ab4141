// group_tile: 7 neighbouring pixels of one or two rows of a convolution in which a vector of output maps reads only the
// input maps of its own groups, as many as it has maps itself. Depthwise is the case of one map a group.
//
//   out[i][t][k] = epilogue( sum over f, s, d of in[line(i, f)][column(t, s)][first(k) + d] * w[f][s][d][k] )
//   t < 7,  d < G maps of a group,  first(k): the first map of k's group
//
// in   one pointer per input line, at the column that the tile starts to read
// w    packed [vector of k][filter rows][S][G][lanes] in the accumulator's type
//
// A step takes one vector of k, one input line and one d. It loads the S weights of each output row that the line
// belongs to, then walks along the input columns: each value is formed once (one map of every group, spread over the
// lanes of its group: Values) and goes into all the outputs it belongs to, whose sums stay in registers. Two output
// rows (where 32 registers allow it) share most lines: for a 3x3 at stride 1, 36 values and 18 loads for 126 FMAs.
// 7 divides the map widths of the usual networks: 112, 56, 28, 14, 7.
#pragma once

#include <limits>

#include "brgemm.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int kTilePixels = 7;
constexpr int kTileRows = kRegisters >= 32 ? 2 : 1;
constexpr int kVectorsPerLine = 64 / kVectorBytes;  // of cache

// Which filter column s joins input column j of a tile to output t < kOutputs, known at compile time; or rows likewise.
//   forward (fprop):     input = output * U - pad + s
//   transposed (dgrad):  output + pad = input * U + s;  the tile's first output o has (o + pad) % U == kPhase
template <int kS, int kU, bool kTransposed, int kPhase, int kOutputs>
struct AxisTaps {
  static constexpr int S = kS;
  static constexpr int kBack = kTransposed ? (kS - 1 - kPhase) / kU : 0;
  static constexpr int kColumns = kTransposed ? kBack + (kPhase + kOutputs - 1) / kU + 1  //
                                              : (kOutputs - 1) * kU + kS;
  static constexpr int kNewColumns = kTransposed ? (kOutputs + kU - 1) / kU : kOutputs * kU;  // in the next tile
  static constexpr int kFirstColumns = kTransposed ? kBack + kPhase / kU + 1 : kS;            // that output 0 reads
  static constexpr int tap(int j, int t) { return kTransposed ? kPhase + t - kU * (j - kBack) : j - t * kU; }
  static constexpr bool uses(int j, int t) { return tap(j, t) >= 0 && tap(j, t) < kS; }
  static constexpr bool starts(int j, int t) { return uses(j, t) && !uses(j - 1, t); }
  static constexpr bool ends(int j, int t) { return uses(j, t) && !uses(j + 1, t); }
  static int64_t first_column(int64_t output, int64_t pad) {
    return kTransposed ? (output + pad - kPhase) / kU - kBack : output * kU - pad;
  }
};
template <int kS, int kU, bool kTransposed, int kPhase>
struct Taps : AxisTaps<kS, kU, kTransposed, kPhase, kTilePixels> {};

// How the lanes of a vector get map d of their own group.
enum class Values {
  each,       // G = 1: the maps themselves
  permuted,   // G divides the lanes: a permute inside each group
  broadcast,  // the lanes divide G: the same for all
};

template <class In, class Out> struct GroupTile {
  using A = acc_t<Out>;
  struct Line {
    const In* in;
    const A* w[kTileRows];  // the filter row that joins it to each output row, or null
  };
  const Line* lines;
  int64_t line_count;
  int64_t in_pixel_stride;
  int64_t group;            // G
  int64_t vector_elements;  // from one vector of k to the next in w
  int64_t maps;             // at least one vector; the last vector overlaps the one before it
  int64_t vector_begin, vector_end;
  int column_begin, column_end;  // the input columns of the tile that lie inside the image
  Out* out;
  int64_t out_pixel_stride;
  int64_t pixel;       // of the first output, for the residual
  int64_t row_pixels;  // from one output row to the next
  int rows, count;     // output rows, and outputs in each, that exist
  const In* ahead_in;  // what the next band reads here, to be fetched meanwhile; null: nothing
  int64_t ahead_in_line;
  int ahead_lines, ahead_columns;
  bool far_out;  // the outputs bypass the caches
};

// The first output map of a vector; packing and tiles agree through it.
template <class A> int64_t vector_start(int64_t vector, int64_t maps) {
  return std::min<int64_t>(vector * kLanes<A>, maps - kLanes<A>);
}

// The tail for a residual and for activations other than ReLU and ReLU6: rare, so out of line and in a loop.
template <class In, class Out>
__attribute__((noinline)) void store_slowly(const GroupTile<In, Out>& tile, const EpilogueArgs<Out>& epilogue,
                                            int64_t k, const acc_t<Out>* sums) {
  for (int i = 0; i < tile.rows; ++i) {
    for (int t = 0; t < tile.count; ++t) {
      const int64_t pixel = i * tile.row_pixels + t;
      const auto sum =
          affine<Out>(load(sums + (i * kTilePixels + t) * kLanes<Out>), epilogue, k, tile.pixel + pixel, kLanes<Out>);
      store(tile.out + pixel * tile.out_pixel_stride + k, activate(sum, epilogue.activation, epilogue.alpha));
    }
  }
}

// in + stride, step by step: GCC else keeps every multiple of the stride, for which there are too few registers.
template <class P> CNNKERN_INLINE P* next_pixel(P* in, int64_t stride) {
  in += stride;
  asm("" : "+r"(in));
  return in;
}

// The lanes' places inside a vector, as wide as the accumulator.
template <class A> using LaneIndexElement = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
template <class A> using LaneIndex = Vec<LaneIndexElement<A>>;

// Map d of each lane's group; p is at the vector's first map (at its group's for broadcast), places[l] = l / G * G + d.
template <Values kValues, class In>
CNNKERN_INLINE Vec<acc_t<In>> group_value(const In* p, int64_t d, LaneIndex<acc_t<In>> places) {
  if constexpr (kValues == Values::broadcast) return broadcast(to_acc(p[d]));
  else if constexpr (kValues == Values::permuted) return __builtin_shuffle(load(p), places);
  else return load(p);
}

// Adds map d of the groups of one input line to the output rows kFirst..kLast of the tile.
template <class In, class Out, class Tap, Values kValues, bool kInside, int kFirst, int kLast>
CNNKERN_INLINE void add_line(const GroupTile<In, Out>& tile, const In* in,
                             const acc_t<Out>* const (&weights)[kTileRows], int64_t w_stride, int64_t d,
                             LaneIndex<acc_t<Out>> places, Vec<acc_t<Out>> (&sum)[kTileRows][kTilePixels]) {
  Vec<acc_t<Out>> w[kTileRows][Tap::S];
#pragma GCC unroll 2
  for (int i = kFirst; i <= kLast; ++i)
#pragma GCC unroll 8
    for (int s = 0; s < Tap::S; ++s) w[i][s] = in_register(load(weights[i] + s * w_stride));
#pragma GCC unroll 32
  for (int j = 0; j < Tap::kColumns; ++j, in = next_pixel(in, tile.in_pixel_stride)) {
    if (!kInside && (j < tile.column_begin || j >= tile.column_end)) continue;
    const auto value = in_register(group_value<kValues>(in, d, places));
#pragma GCC unroll 2
    for (int i = kFirst; i <= kLast; ++i) {
#pragma GCC unroll 8
      for (int t = 0; t < kTilePixels; ++t) {
        if (Tap::uses(j, t)) sum[i][t] += value * w[i][Tap::uses(j, t) ? Tap::tap(j, t) : 0];
      }
    }
  }
}

// All maps of the groups of one input line.
template <class In, class Out, class Tap, Values kValues, bool kInside, int kFirst, int kLast>
CNNKERN_INLINE void add_groups(const GroupTile<In, Out>& tile, const typename GroupTile<In, Out>::Line& line,
                               int64_t vector, int64_t in_map, LaneIndex<acc_t<Out>> places,
                               Vec<acc_t<Out>> (&sum)[kTileRows][kTilePixels]) {
  constexpr int kLane = kLanes<Out>;
  const int64_t group = kValues == Values::each ? 1 : tile.group;
  const In* in = line.in + in_map;
  const acc_t<Out>* w[kTileRows];
  for (int i = kFirst; i <= kLast; ++i) w[i] = line.w[i] + vector * tile.vector_elements;
  if (kValues != Values::each) {  // the next groups' maps, which the hardware does not foresee
    for (int j = 0; j < Tap::kColumns; ++j)
      __builtin_prefetch(in + j * tile.in_pixel_stride + std::max<int64_t>(group, kLane));
  }
#pragma GCC unroll 1
  for (int64_t d = 0; d < group; ++d) {
    add_line<In, Out, Tap, kValues, kInside, kFirst, kLast>(tile, in, w, group * kLane, d, places, sum);
    for (int i = kFirst; i <= kLast; ++i) w[i] += kLane;
    if (kValues == Values::permuted) places += 1;
  }
}

// kInside: every column and every output of the tile exists. The arguments are copies, so that the compiler knows that
// no store changes them.
template <class In, class Out, class Tap, Values kValues, bool kInside>
__attribute__((noinline)) void group_tile(const GroupTile<In, Out> tile, const EpilogueArgs<Out> epilogue) {
  using A = acc_t<Out>;
  using V = Vec<A>;
  constexpr int kLane = kLanes<Out>, kLast = kTileRows - 1;
  constexpr A kInfinity = std::numeric_limits<A>::infinity();
  const V ceiling = broadcast(epilogue.activation == Activation::relu6 ? A(6) : kInfinity);
  const bool slow = epilogue.residual || epilogue.activation > Activation::relu6;
  const bool starts_at_shift = !slow && !epilogue.scale && epilogue.shift;
  const bool clamps = epilogue.activation != Activation::none;
  LaneIndex<A> places{};
  if constexpr (kValues == Values::permuted) {
    for (int l = 0; l < kLane; ++l) places[l] = l / tile.group * tile.group;
  }
  for (int64_t vector = tile.vector_begin; vector < tile.vector_end; ++vector) {
    const int64_t k = vector_start<A>(vector, tile.maps);
    const int64_t in_map = kValues == Values::broadcast ? k / tile.group * tile.group : k;
    const V start = starts_at_shift ? load(epilogue.shift + k) : V{};
    V sum[kTileRows][kTilePixels];
#pragma GCC unroll 8
    for (int l = 0; l < kTileRows; ++l)
#pragma GCC unroll 16
      for (int j = 0; j < kTilePixels; ++j) sum[l][j] = start;
    if (tile.ahead_in && vector % kVectorsPerLine == 0) {
      for (int l = 0; l < tile.ahead_lines; ++l)
        for (int j = 0; j < tile.ahead_columns; ++j)
          __builtin_prefetch(tile.ahead_in + l * tile.ahead_in_line + j * tile.in_pixel_stride + in_map, 0, 2);
    }
    for (int64_t l = 0; l < tile.line_count; ++l) {
      const auto& line = tile.lines[l];
      if (kTileRows == 1 || !line.w[kLast])
        add_groups<In, Out, Tap, kValues, kInside, 0, 0>(tile, line, vector, in_map, places, sum);
      else if (!line.w[0])
        add_groups<In, Out, Tap, kValues, kInside, kLast, kLast>(tile, line, vector, in_map, places, sum);
      else add_groups<In, Out, Tap, kValues, kInside, 0, kLast>(tile, line, vector, in_map, places, sum);
    }
    if (slow) {
      A sums[kTileRows * kTilePixels * kLane];
      for (int i = 0; i < kTileRows * kTilePixels; ++i) {
        store(sums + i * kLane, sum[i / kTilePixels][i % kTilePixels]);
      }
      store_slowly(tile, epilogue, k, sums);
      continue;
    }
    if (epilogue.scale) {
      const V scale = load(epilogue.scale + k), shift = epilogue.shift ? load(epilogue.shift + k) : V{};
#pragma GCC unroll 2
      for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 8
        for (int t = 0; t < kTilePixels; ++t) sum[i][t] = sum[i][t] * scale + shift;
    }
    if (clamps) {
#pragma GCC unroll 2
      for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 8
        for (int t = 0; t < kTilePixels; ++t) sum[i][t] = min(max(sum[i][t], V{}), ceiling);
    }
#pragma GCC unroll 2
    for (int i = 0; i < kTileRows; ++i) {
      if (i == tile.rows) break;
      Out* out = tile.out + i * tile.row_pixels * tile.out_pixel_stride + k;
#pragma GCC unroll 8
      for (int t = 0; t < kTilePixels; ++t, out += tile.out_pixel_stride) {
        if (!kInside && t == tile.count) break;
        if (tile.far_out) stream(out, sum[i][t]);
        else store(out, sum[i][t]);
      }
    }
  }
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
