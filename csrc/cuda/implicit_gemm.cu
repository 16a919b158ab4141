// Implicit GEMM, fprop and dgrad: a matrix product whose left side, the columns of a convolution, is never written
// down.
//
//   fprop  y[n,p,q,k]  = epilogue( sum over r,s,c of prologue(x[n, p*u - pad + r*l, q*u - pad + s*l, c]) * w[k,r,s,c] )
//   dgrad  dx[n,h,w,c] = sum over r,s,k of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, k] * w[k,r,s,c]
//
// x, y: NHWC with pixel strides; w: [K][R][S][C/groups]. gemm_m: pixels written; gemm_n: maps written, of one group;
// gemm_k: taps, and for each the maps read, in steps of block_k.
//
// Both directions are one kernel over *lattices* (gemm_sources.h): pixels a fixed step apart that read the same taps.
// fprop is one; dgrad has one for each residue of (h, w) modulo the stride, u*u dense convolutions that share the taps
// out among them, so that no inserted zero is multiplied. A block has one tile of one lattice. Blocks next to each
// other have the same pixels, read from memory once and then from L2, as w is: first all tiles of maps, then all
// lattices.
//
// Where tiles of 64 pixels leave half of the multiprocessors without work (7x7 pixels at batch 1), the steps of gemm_k
// are split over the grid as well: a block writes its sums to its range's slice of the workspace in float, and
// slices.cu adds the slices in order and applies the epilogue. ResNet's 3x3 with 512 maps on 7x7 at batch 1, in bf16: 8
// tiles of 72 steps become 72 blocks of 8, and 9 slices of 100 KB.
//
// Bound: 2*N*P*Q*K*R*S*C/groups flop; bytes of x, w and y once. ResNet's 3x3 with 256 maps at 14x14, N=256, in bf16:
// 59 Gflop and 53 MB, on an H200 75 us at 790 TFLOP/s against 12 us at 4.3 TB/s. mma.sync reaches about 0.6 of wgmma's
// rate there, so 125 us are expected; in TF32 250 us, on CUDA cores (67 TFLOP/s) 0.9 ms.
#include <primitives/launcher.h>

#include <numeric>

#include "gemm_sources.h"
#include "gemm_statistics.h"
#include "gemm_variants.h"
#include "kernel_list.h"
#include "slices.h"

namespace cnnkern::cuda {
namespace {

// "in" is the tensor that is read, x or dy; "out" the one that is written.
template <class T> struct Params {
  const T *in, *w;
  T* out;
  Affine<T> prologue;
  FusedEpilogue<T> epilogue;
  Statistics statistics;
  float* sums = nullptr;  // where k is split: [ranges][pixels of out][all maps]
  int64_t slice = 0;      // elements
  int range = 0;          // steps
  int64_t filter_stride;  // elements from k to k of w
  int in_stride, out_stride, in_h, in_w, out_h, out_w;
  int in_maps, out_maps;  // of a group
  int r, s, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  int increment_h, increment_w;  // dgrad_axis's tap_increment
  int points;                    // of the largest lattice, that of residue 0; the others leave some out
  Divider rows, columns;         // of that lattice in one image
  Divider tiles_n, residues_w, residues_h, tiles_m, groups;
};

template <class T, Direction kDirection, int kIndex>
using ProductOf = Gemm<T, kGemmVariants<T>[kIndex], Major::k, kDirection == Direction::fprop ? Major::k : Major::mn>;

constexpr bool splits(const GemmTile& tile) { return tile.block_m <= 64; }

template <class T, Direction kDirection, int kIndex>
__global__ void __launch_bounds__(kGemmVariants<T>[kIndex].tile.threads(), kGemmVariants<T>[kIndex].tile.resident)
    implicit_gemm(const Params<T> o) {
  constexpr bool kForward = kDirection == Direction::fprop;
  using Product = ProductOf<T, kDirection, kIndex>;
  constexpr GemmTile kTile = Product::kTile;
  constexpr bool kSplits = splits(kTile);

  int rest = static_cast<int>(blockIdx.x);
  const int n0 = o.tiles_n.split(rest) * kTile.block_n;
  const int residue_w = o.residues_w.split(rest), residue_h = o.residues_h.split(rest);
  const int m0 = o.tiles_m.split(rest) * kTile.block_m, group = o.groups.split(rest), range = rest;
  const LatticeAxis h = kForward ? fprop_axis(o.r, o.pad_top, o.stride_h, o.dilation_h)
                                 : dgrad_axis(residue_h, o.r, o.pad_top, o.stride_h, o.dilation_h, o.increment_h);
  const LatticeAxis w = kForward ? fprop_axis(o.s, o.pad_left, o.stride_w, o.dilation_w)
                                 : dgrad_axis(residue_w, o.s, o.pad_left, o.stride_w, o.dilation_w, o.increment_w);

  const RowsOfLattice<T, Product::kRowsA> left(
      o.in, o.in_stride, o.in_h, o.in_w, h, w, o.rows, o.columns, m0, o.points, group * o.in_maps, o.prologue,
      [](int i) { return Product::template Rows<typename Product::TileA>::row(i); });
  const int maps = kForward ? o.in_maps : o.out_maps;  // of a filter's tap
  TapCursor<kTile.block_k> cursor{.end = o.in_maps,
                                  .taps_w = w.taps,
                                  .offset = (h.first_tap * o.s + w.first_tap) * maps,
                                  .offset_h = h.tap_increment * o.s * maps,
                                  .offset_w = w.tap_increment * maps};
  int steps = h.taps * w.taps * ((o.in_maps + kTile.block_k - 1) / kTile.block_k);
  if constexpr (kSplits) {
    if (o.sums) {
      const int before = range * o.range;
      if (before < steps) cursor.skip(before);
      steps = max(0, min(steps - before, o.range));
    }
  }
  typename Product::Sums sums;
  if constexpr (kForward) {
    const int first = group * o.out_maps + n0;
    Product::multiply(sums, left, RowsOfMatrix<T>{o.w + first * o.filter_stride, o.filter_stride, o.out_maps - n0},
                      cursor, steps);
  } else {
    const T* filters = o.w + int64_t{group} * o.in_maps * o.filter_stride;
    Product::multiply(sums, left, ColumnsOfMatrix<T>{filters + n0, o.filter_stride, o.out_maps - n0}, cursor, steps);
  }

  constexpr int kVector = Product::kVector;
  Product::store(sums, [&](int row, int column, const float (&some)[kVector]) {
    int image = m0 + row;
    if (image >= o.points || n0 + column >= o.out_maps) return;
    const int out_w = o.columns.split(image) * w.out_step + w.out_first;
    const int out_h = o.rows.split(image) * h.out_step + h.out_first;
    if (out_h >= o.out_h || out_w >= o.out_w) return;
    const int64_t pixel = (int64_t{image} * o.out_h + out_h) * o.out_w + out_w;
    const int map = group * o.out_maps + n0 + column;
    if constexpr (kSplits) {
      if (o.sums) return store_floats(o.sums + (range * o.slice + pixel * o.out_maps * o.groups.divisor() + map), some);
    }
    T* const to = o.out + pixel * o.out_stride + map;
    if constexpr (kForward) store_vector<kVector>(to, o.epilogue(some, pixel, map));
    else store_vector<kVector>(to, FusedEpilogue<T>{}(some, pixel, map));
  });
  if constexpr (kForward) {
    if (o.statistics.partials)
      store_statistics<T, Product>(sums, o.statistics, m0, o.points, group * o.out_maps + n0, o.out_maps - n0);
  }
}

// The size of the product of each group and residue; of k, in steps of a tile, that of the residue with most taps.
struct Size {
  int64_t rows, columns, points, maps, residues_h, residues_w;
  int64_t taps, in_maps;

  int64_t products(const ConvProblem& p) const { return p.groups * residues_h * residues_w; }
  int64_t steps(const GemmTile& tile) const { return taps * ceil_div(in_maps, tile.block_k); }
};

// dgrad_axis's tap_increment
int64_t increment(int64_t stride, int64_t dilation) { return stride / std::gcd(stride, dilation); }

Size size_of(const ConvProblem& p) {
  if (p.direction == Direction::fprop)
    return {p.p(), p.q(), p.n * p.p() * p.q(), p.k_per_group(), 1, 1, p.r * p.s, p.c_per_group()};
  const int64_t rows = ceil_div(p.h, p.stride_h), columns = ceil_div(p.w, p.stride_w);
  const int64_t taps =
      ceil_div(p.r, increment(p.stride_h, p.dilation_h)) * ceil_div(p.s, increment(p.stride_w, p.dilation_w));
  return {
      rows, columns,        p.n * rows * columns, p.c_per_group(), std::min(p.stride_h, p.h), std::min(p.stride_w, p.w),
      taps, p.k_per_group()};
}

// How the steps of k are split.
Split split_of(const ConvProblem& p, const GemmTile& tile) {
  const Size size = size_of(p);
  const int64_t steps = size.steps(tile);
  if (!splits(tile)) return {steps, 1};
  const Split k = split_of_few(size.points, size.maps, steps * tile.block_k, size.products(p), tile);
  return {ceil_div(k.range, tile.block_k), k.ranges};
}

int64_t elements_written(const ConvProblem& p) {
  return p.direction == Direction::fprop ? p.n * p.p() * p.q() * p.k : p.n * p.h * p.w * p.c;
}

template <class T, int kIndex> std::string why_not(const ConvProblem& p, const Flags& flags) {
  return why_not_gemm<T>(kGemmVariants<T>[kIndex], p, flags);
}

template <class T, int kIndex> std::string rather_not(const ConvProblem& p) {
  const Size size = size_of(p);
  return rather_not_variant<T>(kIndex, [&](const GemmTile& tile) {
    const Split split = split_of(p, tile);
    return expected_time(tile, size.points, size.maps, size.products(p) * split.ranges) *
           static_cast<double>(split.range * tile.block_k);
  });
}

template <class T> Params<T> params_of(const ConvProblem& p, const Operands& operands) {
  const bool forward = p.direction == Direction::fprop;
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  const Size size = size_of(p);
  return {.in = static_cast<const T*>(forward ? operands.x : operands.y),
          .w = static_cast<const T*>(operands.w),
          .out = static_cast<T*>(forward ? operands.y : operands.x),
          .prologue = forward ? prologue_of<T>(p, operands) : Affine<T>{},
          .epilogue = epilogue_of<T>(p, operands),
          .statistics = {forward ? operands.statistics : nullptr, p.k},
          .filter_stride = p.r * p.s * p.c_per_group(),
          .in_stride = narrow(forward ? p.x_stride() : p.y_stride()),
          .out_stride = narrow(forward ? p.y_stride() : p.x_stride()),
          .in_h = narrow(forward ? p.h : p.p()),
          .in_w = narrow(forward ? p.w : p.q()),
          .out_h = narrow(forward ? p.p() : p.h),
          .out_w = narrow(forward ? p.q() : p.w),
          .in_maps = narrow(forward ? p.c_per_group() : p.k_per_group()),
          .out_maps = narrow(size.maps),
          .r = narrow(p.r),
          .s = narrow(p.s),
          .stride_h = narrow(p.stride_h),
          .stride_w = narrow(p.stride_w),
          .pad_top = narrow(p.pad_top),
          .pad_left = narrow(p.pad_left),
          .dilation_h = narrow(p.dilation_h),
          .dilation_w = narrow(p.dilation_w),
          .increment_h = narrow(increment(p.stride_h, p.dilation_h)),
          .increment_w = narrow(increment(p.stride_w, p.dilation_w)),
          .points = narrow(size.points),
          .rows = Divider(size.rows),
          .columns = Divider(size.columns),
          .residues_w = Divider(size.residues_w),
          .residues_h = Divider(size.residues_h),
          .groups = Divider(p.groups)};
}

template <class T, Direction kDirection, int kIndex> void run(const Operands& operands, const Call& call) {
  using Product = ProductOf<T, kDirection, kIndex>;
  constexpr GemmTile kTile = Product::kTile;
  const ConvProblem& p = call.problem;
  const Size size = size_of(p);
  const int64_t tiles_m = ceil_div(size.points, kTile.block_m), tiles_n = ceil_div(size.maps, kTile.block_n);
  const Split split = split_of(p, kTile);
  Params<T> o = params_of<T>(p, operands);
  o.tiles_m = Divider(tiles_m);
  o.tiles_n = Divider(tiles_n);
  if (split.ranges > 1) {
    o.sums = static_cast<float*>(operands.workspace);
    o.slice = elements_written(p);
    o.range = static_cast<int>(split.range);
  }
  const Grid grid{.x = tiles_m * tiles_n * size.products(p) * split.ranges,
                  .threads = kTile.threads(),
                  .shared_bytes = Product::kSharedBytes};
  launch(implicit_gemm<T, kDirection, kIndex>, grid, o, call);
  if (split.ranges == 1) return;
  const int64_t maps = size.maps * p.groups;
  add_slices<T>({.from = o.sums,
                 .how_many = split.ranges,
                 .rows = o.slice / maps,
                 .columns = maps,
                 .to = o.out,
                 .stride = o.out_stride,
                 .epilogue = kDirection == Direction::fprop ? o.epilogue : FusedEpilogue<T>{}},
                call);
}

template <class T, int kIndex> int64_t workspace_bytes(const ConvProblem& p) {
  return slices_bytes(elements_written(p), split_of(p, kGemmVariants<T>[kIndex].tile));
}

template <class T, int kIndex> int64_t partials(const ConvProblem& p) {
  constexpr GemmTile kTile = kGemmVariants<T>[kIndex].tile;
  return split_of(p, kTile).ranges == 1 ? ceil_div(size_of(p).points, kTile.block_m) : 0;
}

template <class T, Direction kDirection> void append(KernelList& list) {
  for_each_variant<T>([&]<int kIndex>() {
    list.push_back({kernel_name("implicit_gemm", kDirection, kDTypeOf<T>, tile_text(kGemmVariants<T>[kIndex])),
                    why_not<T, kIndex>, rather_not<T, kIndex>, workspace_bytes<T, kIndex>, run<T, kDirection, kIndex>,
                    kDirection == Direction::fprop ? partials<T, kIndex> : nullptr});
  });
}

}  // namespace

void append_implicit_gemm(KernelList& list) {
  append<float, Direction::fprop>(list);
  append<bf16, Direction::fprop>(list);
  append<f16, Direction::fprop>(list);
  append<float, Direction::dgrad>(list);
  append<bf16, Direction::dgrad>(list);
  append<f16, Direction::dgrad>(list);
}

}  // namespace cnnkern::cuda
