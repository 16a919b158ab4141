// Depthwise wgrad with square filters of 3, 5 and 7 at strides 1 and 2:
//
//   dw[k,r,s] = sum over n,p,q of dy[n,p,q,k] * prologue(x[n, p*u - pad + r, q*u - pad + s, k])
//   dbias[k]  = sum over n,p,q of dy[n,p,q,k]
//
// x, dy: NHWC with pixel strides; dw: [K][R][S].
//
// One pass: a thread has some columns and maps, walks down a band of rows and keeps a sum per tap in registers, and the
// last rows of dy, with which each row of x is multiplied as it comes. It goes on with other columns, images and bands
// of its block's share. The threads of a block with the same maps then add their sums through shared memory, each block
// writes one slice of the workspace, and tap_slices.h adds the slices: the same bits from every run, on every GPU.
// Rows of dy beyond the image count as zeros: a NaN in x that one tap of a filter meets may show in its other taps.
//
// Bound: x and dy once. MobileNetV2's conv2, 3x3 on 32 maps of 112x112 pixels, at N = 256 in bf16: 411 MB, 0.10 ms at
// 4.3 TB/s; 3x3 takes 19 TFLOP/s of the fp32 FMA units' 67 at that rate, 5x5 54. 7x7 takes 105 and is bound by them.
#include "depthwise.h"
#include "kernel_list.h"
#include "tap_slices.h"

namespace cnnkern::cuda {
namespace {

// kColumns pixels of dy side by side and kMaps maps are a thread's.
template <int kFilter_, int kStep_, int kColumns_, int kMaps_> struct Tile {
  static constexpr int kFilter = kFilter_, kStep = kStep_, kColumns = kColumns_, kMaps = kMaps_;
  static constexpr int kTaps = kFilter * kFilter;
  static constexpr int kReach = (kFilter + kStep - 1) / kStep;  // rows of dy that meet one row of x
  static constexpr int kRead = (kColumns - 1) * kStep + kFilter;
};

template <class T> struct Params {
  const T *x, *dy;
  float* slices;       // [split][taps, and one more for dbias][maps]
  Affine<T> prologue;  // its activation is a clamp
  bool has_prologue, has_bias;
  int x_pixel_stride, dy_pixel_stride;  // at most kMostPixelStride
  DepthwiseTiling tiling;
  Divider bands;                      // of an image
  int band_rows, items, split_items;  // an item is a band of a group of columns
  int maps, h, w, p, q, pad_top, pad_left;
  int used_h, used_w;  // of x: what no tap meets may be NaN
};

template <class Tile> struct Sums {
  float at[Tile::kTaps + 1][Tile::kMaps];  // the last is dbias
};

template <class Tile> struct Seen { float at[Tile::kReach][Tile::kColumns][Tile::kMaps]; };

// Multiplies row j of a group of kStep rows of x with the rows of dy whose windows it is in.
template <class T, class Tile>
__device__ void accumulate(Sums<Tile>& sums, const PixelRow<T, Tile::kRead, Tile::kMaps>& x, const Seen<Tile>& seen,
                           int j) {
#pragma unroll
  for (int i = 0; i < Tile::kReach; ++i) {
    const int r = i * Tile::kStep + j;
    if (r >= Tile::kFilter) continue;
#pragma unroll
    for (int s = 0; s < Tile::kFilter; ++s)
#pragma unroll
      for (int q = 0; q < Tile::kColumns; ++q)
#pragma unroll
        for (int v = 0; v < Tile::kMaps; ++v)
          sums.at[r * Tile::kFilter + s][v] += to_float(x.at[q * Tile::kStep + s][v]) * seen.at[i][q][v];
  }
}

// The newest row of dy is seen.at[0]; all are moved down by one.
template <class T, class Tile>
__device__ void see(Seen<Tile>& seen, const PixelRow<T, Tile::kColumns, Tile::kMaps>& dy, Sums<Tile>& sums, bool bias) {
#pragma unroll
  for (int q = 0; q < Tile::kColumns; ++q) {
#pragma unroll
    for (int v = 0; v < Tile::kMaps; ++v) {
#pragma unroll
      for (int i = Tile::kReach - 1; i > 0; --i) seen.at[i][q][v] = seen.at[i - 1][q][v];
      seen.at[0][q][v] = to_float(dy.at[q][v]);
      if (bias) sums.at[Tile::kTaps][v] += seen.at[0][q][v];
    }
  }
}

// Adds one item's products.
template <class T, class Tile>
__device__ void sweep(const Params<T>& o, int item, int map, const Vector<float, Tile::kMaps>& scale,
                      const Vector<float, Tile::kMaps>& shift, Sums<Tile>& sums) {
  const int column = o.tiling.width.split(item) * Tile::kColumns;
  const int first = o.bands.split(item) * o.band_rows, last = min(first + o.band_rows, o.p), image = item;
  const int x_column = column * Tile::kStep - o.pad_left;
  const uint32_t columns = columns_inside<Tile::kColumns>(column, o.q);
  const uint32_t x_columns = columns_inside<Tile::kRead>(x_column, o.used_w);
  const T* const dy_image = o.dy + (int64_t{image} * o.p * o.q + column) * o.dy_pixel_stride + map;
  const T* const x_image = o.x + (int64_t{image} * o.h * o.w + x_column) * o.x_pixel_stride + map;

  PixelRow<T, Tile::kColumns, Tile::kMaps> next_dy;
  PixelRow<T, Tile::kRead, Tile::kMaps> next_x;
  const auto load_dy = [&](int row) {
    next_dy.load(dy_image + row * int64_t{o.q} * o.dy_pixel_stride, o.dy_pixel_stride, columns, row < last);
  };
  const auto load_x = [&](int h) {
    next_x.load(x_image + h * int64_t{o.w} * o.x_pixel_stride, o.x_pixel_stride, x_columns, h >= 0 && h < o.used_h);
  };
  int h = first * Tile::kStep - o.pad_top;
  load_dy(first);
  load_x(h);
  Seen<Tile> seen{};
#pragma unroll 1
  for (int row = first; row < last + Tile::kReach - 1; ++row) {
    see<T, Tile>(seen, next_dy, sums, o.has_bias);
    load_dy(row + 1);
#pragma unroll
    for (int j = 0; j < Tile::kStep; ++j, ++h) {
      PixelRow<T, Tile::kRead, Tile::kMaps> x = next_x;
      load_x(h + 1);
      if (o.has_prologue) x.apply(scale, shift, clamp_of(o.prologue.activation));
      if (h >= 0 && h < o.used_h) accumulate<T, Tile>(sums, x, seen, j);
    }
  }
}

// Adds the sums of the threads that have the same maps and writes the block's slice.
template <class T, class Tile>
__device__ void write_slice(const Params<T>& o, const Sums<Tile>& sums, int split, int first_map, int lane, int group) {
  const int maps = o.tiling.lanes.divisor() * Tile::kMaps, there = min(maps, o.maps - first_map);
  const int rows = Tile::kTaps + (o.has_bias ? 1 : 0);
  const Shared<float> parts = shared_memory<float>();  // [group][row][map of the block]
  if (group < o.tiling.block_groups && lane * Tile::kMaps < there) {
#pragma unroll
    for (int row = 0; row <= Tile::kTaps; ++row) {
      if (row == rows) break;
      Vector<float, Tile::kMaps> part;
#pragma unroll
      for (int v = 0; v < Tile::kMaps; ++v) part[v] = sums.at[row][v];
      parts.store_vector((group * rows + row) * maps + lane * Tile::kMaps, part);
    }
  }
  __syncthreads();  // each thread now adds sums of all groups
  for (int i = threadIdx.x; i < rows * maps; i += kDepthwiseThreads) {
    if (i % maps >= there) continue;
    float sum = 0;
    for (int g = 0; g < o.tiling.block_groups; ++g) sum += parts.load(g * rows * maps + i);
    o.slices[(int64_t{split} * rows + i / maps) * o.maps + first_map + i % maps] = sum;
  }
}

// grid: tiles of maps x splits
template <class T, class Tile>
__global__ void __launch_bounds__(kDepthwiseThreads, 2) depthwise_wgrad(const Params<T> o) {
  int split = blockIdx.x, group = threadIdx.x;
  const int first_map = o.tiling.map_tiles.split(split) * o.tiling.lanes.divisor() * Tile::kMaps;
  const int lane = o.tiling.lanes.split(group), map = first_map + lane * Tile::kMaps;
  Sums<Tile> sums{};
  if (group < o.tiling.block_groups && map < o.maps) {
    Vector<float, Tile::kMaps> scale, shift;
#pragma unroll
    for (int v = 0; v < Tile::kMaps; ++v) {
      scale[v] = o.prologue.scale ? o.prologue.scale[map + v] : 1;
      shift[v] = o.prologue.shift ? o.prologue.shift[map + v] : 0;
    }
    const int end = min(o.items - split * o.split_items, o.split_items) + split * o.split_items;
#pragma unroll 1
    for (int item = split * o.split_items + group; item < end; item += o.tiling.block_groups)
      sweep<T, Tile>(o, item, map, scale, shift, sums);
  }
  write_slice<T, Tile>(o, sums, split, first_map, lane, group);
}

// How a problem is cut: enough blocks for 4 on each of 132 multiprocessors, enough items for 4 on each of their threads.
template <class Tile> struct Cut {
  DepthwiseTiling tiling;
  int64_t bands, band_rows, items, split_items, splits;

  explicit Cut(const ConvProblem& p) : tiling(p.c, Tile::kMaps, p.n, p.q(), Tile::kColumns) {
    constexpr int64_t kBlocks = 4 * 132, kItems = 4;
    splits = std::max<int64_t>(kBlocks / tiling.map_tiles.divisor(), 1);
    const int64_t wanted = std::max<int64_t>(splits * tiling.block_groups * kItems / tiling.groups, 1);
    band_rows = std::min(std::max((p.p() + wanted - 1) / wanted, int64_t{4} * Tile::kReach), p.p());
    bands = (p.p() + band_rows - 1) / band_rows;
    items = tiling.groups * bands;
    split_items = (items + splits - 1) / splits;
    split_items = (split_items + tiling.block_groups - 1) / tiling.block_groups * tiling.block_groups;
    splits = (items + split_items - 1) / split_items;
  }
};

template <class Tile> int64_t workspace_bytes(const ConvProblem& p) {
  return Cut<Tile>(p).splits * (Tile::kTaps + 1) * p.c * static_cast<int64_t>(sizeof(float));
}

template <class Tile> std::string why_not(const ConvProblem& p, const Flags& flags) {
  const std::string reason = not_swept(p, Tile::kFilter, Tile::kStep, Tile::kMaps, flags);
  if (!reason.empty()) return reason;
  return workspace_bytes<Tile>(p) > kMostWorkspace ? "its slices need too much workspace" : "";
}

template <class T, class Tile> void run(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const Cut<Tile> cut(p);
  const auto whole = [](int64_t v) { return static_cast<int>(v); };
  const Params<T> o{.x = static_cast<const T*>(operands.x),
                    .dy = static_cast<const T*>(operands.y),
                    .slices = static_cast<float*>(operands.workspace),
                    .prologue = prologue_of<T>(p, operands),
                    .has_prologue = p.prologue != Prologue{},
                    .has_bias = operands.dbias != nullptr,
                    .x_pixel_stride = whole(p.x_stride()),
                    .dy_pixel_stride = whole(p.y_stride()),
                    .tiling = cut.tiling,
                    .bands = Divider(cut.bands),
                    .band_rows = whole(cut.band_rows),
                    .items = whole(cut.items),
                    .split_items = whole(cut.split_items),
                    .maps = whole(p.c),
                    .h = whole(p.h),
                    .w = whole(p.w),
                    .p = whole(p.p()),
                    .q = whole(p.q()),
                    .pad_top = whole(p.pad_top),
                    .pad_left = whole(p.pad_left),
                    .used_h = whole(std::min(p.h, (p.p() - 1) * p.stride_h - p.pad_top + p.r)),
                    .used_w = whole(std::min(p.w, (p.q() - 1) * p.stride_w - p.pad_left + p.s))};
  const int sums = kDepthwiseThreads * Tile::kMaps * (Tile::kTaps + (o.has_bias ? 1 : 0));
  const Grid grid{.x = cut.tiling.map_tiles.divisor() * cut.splits,
                  .threads = kDepthwiseThreads,
                  .shared_bytes = sums * static_cast<int>(sizeof(float))};
  launch(depthwise_wgrad<T, Tile>, grid, o, call);
  run_add_tap_slices<T>(o.slices, cut.splits, Tile::kTaps, p.c, operands.w, operands.dbias, p.k, call);
}

template <class T, class Tile> void append_tile(KernelList& list) {
  const std::string tile =
      std::to_string(Tile::kColumns) + "x" + std::to_string(Tile::kFilter) + "x" + std::to_string(Tile::kStep);
  list.push_back({kernel_name("depthwise", Direction::wgrad, kDTypeOf<T>, tile), why_not<Tile>, nullptr,
                  workspace_bytes<Tile>, run<T, Tile>});
}

template <class T> void append(KernelList& list) {
  append_tile<T, Tile<3, 1, 4, 4>>(list);
  append_tile<T, Tile<3, 2, 2, 4>>(list);
  append_tile<T, Tile<5, 1, 4, 2>>(list);
  append_tile<T, Tile<5, 2, 4, 2>>(list);
  append_tile<T, Tile<7, 1, 4, 2>>(list);
  append_tile<T, Tile<7, 2, 2, 2>>(list);
}

}  // namespace

void append_depthwise_wgrad(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
