// Grouped convolution with 4, 8, 16 or 32 maps a group, wgrad, on tensor cores.
//
//   wgrad  dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n, p*u - pad + r*l, q*u - pad + s*l, g(k) + c]
//
// x, y: NHWC with pixel strides; dw: [K][R][S][G], G maps a group; g(k): the first map of k's group.
//
// A block has 128 bytes of maps, up to kTaps taps and every ranges-th tile of up to 128 pixels of y. It brings a tile's
// dy and, once for all taps, the x around it (grouped.h). A warp has 16 maps of y and multiplies them by the maps of x
// of their groups, 16 or 32 of them: products of a map with one of another group are in sums that are not written. The
// sums stay in registers over all tiles; then each block writes them to a float slice, and slices.cu adds those in
// order.
//
// Pixels that are none are zero in dy and read a slot of zeros in x, whatever the tap, for what is there may be
// infinite.
//
// Bound: bytes of x and y once, the margin and further taps coming from L2. ResNeXt-50's 3x3 with 128 maps in 32 groups
// at 56x56, N=256, in bf16: 411 MB, 96 us on an H200 at 4.3 TB/s.
#include <primitives/launcher.h>
#include <primitives/mma_sm80.h>

#include "grouped.h"
#include "kernel_list.h"
#include "slices.h"

namespace cnnkern::cuda {
namespace {

template <class T, int kGroup> struct Fragments {
  static constexpr int kWarpsOfMaps = kTileMaps<T> / 16;              // warps with different maps of y
  static constexpr int kParts = kGroupedThreads / 32 / kWarpsOfMaps;  // the others share the pixels out
  static constexpr int kColumns = std::max(kGroup, 16) / 8;           // fragments of B: 8 maps of x each
  static constexpr int kTaps = kGroup <= 16 ? 9 : 5;                  // whose sums fit the registers
};

template <class T> struct Params {
  const T *dy, *x;
  float* slices;  // [ranges][parts][K][R][S][G]
  PointTiles tiles;
  int64_t slice;  // elements
  int dy_stride, x_stride, images, p, q, h, w, maps;
  int taps, s, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  int ranges;
  Divider tiles_of_maps, blocks_of_taps;
};

// The fragment of A: 16 maps of y from `map` on, of the pixels from `point` on.
template <class T> __device__ void load_dy(uint32_t (&to)[4], Halo<T> dy, int point, int map) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(to, dy.at(point + lane % 8 + lane / 16 * 8, map + lane / 8 % 2 * 8));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[i] = dy.at(point + lane % 4 + i / 2 * 4, map + lane / 4 + i % 2 * 8).template as<uint32_t>().load();
  }
}

// Two fragments of B: 16 maps of x from `map` on, of this lane's slots: of pixel lane % 16 or, in float, of lane % 4
// and of that + 4.
template <class T> __device__ void load_x(uint32_t (&to)[2][2], Halo<T> x, const int (&slot)[2], int map) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (sizeof(T) == 2) {
    uint32_t all[4];
    load_matrices_transposed(all, x.at(slot[0], map + lane / 16 * 8));
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i / 2][i % 2] = all[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[i / 2][i % 2] = x.at(slot[i % 2], map + lane / 4 + i / 2 * 8).template as<uint32_t>().load();
  }
}

template <class T, int kGroup> __global__ void __launch_bounds__(kGroupedThreads, 2) grouped_wgrad(const Params<T> o) {
  using Part = Fragments<T, kGroup>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int rest = static_cast<int>(blockIdx.x);
  const int map = o.tiles_of_maps.split(rest) * kTileMaps<T>;
  const int first_tap = o.blocks_of_taps.split(rest) * Part::kTaps, range = rest;
  const int k0 = warp % Part::kWarpsOfMaps * 16, part = warp / Part::kWarpsOfMaps;  // of this warp
  const int c0 = k0 / (8 * Part::kColumns) * 8 * Part::kColumns;                    // the first map of its groups

  // dy's tile, x's halo, and a slot of zeros.
  const Halo<T> dy{shared_memory<T>()}, x{shared_memory<T>(kPoints * 128)};
  const int nothing = o.tiles.slots();
  if (threadIdx.x < 8)
    x.at(nothing, static_cast<int>(threadIdx.x) * kWidest<T>).template store_vector<kWidest<T>>(0, {});

  float sums[Part::kTaps][Part::kColumns][4] = {};
  const int tiles = o.tiles.tiles_n * o.tiles.tiles_h * o.tiles.tiles_w;
  for (int tile = range; tile < tiles; tile += o.ranges) {
    int at = tile;
    const int column0 = o.tiles.by_tiles_w.split(at) * o.tiles.columns,
              row0 = o.tiles.by_tiles_h.split(at) * o.tiles.rows;
    const int image0 = at * o.tiles.images;
    const auto there = [&](const TilePoint& point) {
      return point.valid && image0 + point.image < o.images && row0 + point.row < o.p && column0 + point.column < o.q;
    };
    fetch_halo(x, o.tiles,
               {image0, row0 * o.stride_h - o.pad_top, column0 * o.stride_w - o.pad_left, o.images, o.h, o.w, map,
                o.maps - map},
               o.x, o.x_stride);
    const int chunk = static_cast<int>(threadIdx.x) % 8 * kWidest<T>;
    for (int i = static_cast<int>(threadIdx.x) / 8; i < kPoints; i += kGroupedThreads / 8) {
      const TilePoint point = point_of(o.tiles, i);
      const bool valid = there(point) && map + chunk < o.maps;
      const int64_t pixel = (int64_t{image0 + point.image} * o.p + row0 + point.row) * o.q + column0 + point.column;
      copy_async<16>(dy.at(i, chunk), o.dy + ((valid ? pixel : 0) * o.dy_stride + map + chunk), valid);
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();  // the tile is there, and the first time the zeros

    for (int first = part * kMmaK<T>; first < kPoints; first += Part::kParts * kMmaK<T>) {
      uint32_t left[4];
      load_dy(left, dy, first, k0);
      int slot[2];  // of the first tap; -1 where there is no pixel
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const TilePoint point = point_of(o.tiles, first + (sizeof(T) == 2 ? lane % 16 : lane % 4 + 4 * i));
        slot[i] = !there(point) ? -1
                                : (point.image * o.tiles.halo_h + point.row * o.stride_h) * o.tiles.halo_w +
                                      point.column * o.stride_w;
      }
#pragma unroll
      for (int i = 0; i < Part::kTaps; ++i) {
        const int tap = first_tap + i;
        if (tap >= o.taps) continue;
        const int step = tap / o.s * o.dilation_h * o.tiles.halo_w + tap % o.s * o.dilation_w;
        const int from[2] = {slot[0] < 0 ? nothing : slot[0] + step, slot[1] < 0 ? nothing : slot[1] + step};
#pragma unroll
        for (int j = 0; j < Part::kColumns; j += 2) {
          uint32_t right[2][2];
          load_x(right, x, from, c0 + j * 8);
          mma<T>(sums[i][j], left, right[0]);
          mma<T>(sums[i][j + 1], left, right[1]);
        }
      }
    }
    __syncthreads();  // the tile is read: the next one comes there
  }

  float* const slice = o.slices + (int64_t{range} * Part::kParts + part) * o.slice;
#pragma unroll
  for (int i = 0; i < Part::kTaps; ++i) {
    if (first_tap + i >= o.taps) continue;
#pragma unroll
    for (int j = 0; j < Part::kColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int k = k0 + e / 2 * 8 + lane / 4, c = c0 + j * 8 + lane % 4 * 2 + e % 2;
        if (k / kGroup != c / kGroup || map + k >= o.maps) continue;
        slice[(int64_t{map + k} * o.taps + first_tap + i) * kGroup + c % kGroup] = sums[i][j][e];
      }
    }
  }
}

// --- host ------------------------------------------------------------------------------------------------------------

PointTiles tiles_of(const ConvProblem& p) {
  return choose_tiles(p.n, p.p(), p.q(), p.stride_h, p.stride_w, (p.r - 1) * p.dilation_h, (p.s - 1) * p.dilation_w,
                      kMostShared - (kPoints + 1) * 128);  // beside dy's tile and the zeros
}

// Blocks that share the tiles out: enough to fill the card three times, each with four tiles at least.
template <class T, int kGroup> int64_t ranges_of(const ConvProblem& p) {
  const int64_t others = ceil_div(p.c, kTileMaps<T>) * ceil_div(p.r * p.s, Fragments<T, kGroup>::kTaps);
  return std::clamp<int64_t>(3 * kMultiprocessors / others, 1, ceil_div(tiles_of(p).count(), 4));
}

int64_t filter_size(const ConvProblem& p) { return p.k * p.r * p.s * p.c_per_group(); }

template <class T, int kGroup> int64_t slice_count(const ConvProblem& p) {
  return ranges_of<T, kGroup>(p) * Fragments<T, kGroup>::kParts;
}

template <class T, int kGroup> int64_t workspace_bytes(const ConvProblem& p) {
  return slice_count<T, kGroup>(p) * filter_size(p) * int64_t{sizeof(float)} + sum_pixels_bytes(p);
}

template <class T, int kGroup> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (const std::string reason = why_not_grouped<T>(p, kGroup, flags); !reason.empty()) return reason;
  if (!tiles_of(p).images) return "its pixels do not fit shared memory";
  return workspace_bytes<T, kGroup>(p) > kMostWorkspace ? "its slices do not fit the workspace" : "";
}

template <class T, int kGroup> void run(const Operands& operands, const Call& call) {
  using Part = Fragments<T, kGroup>;
  const ConvProblem& p = call.problem;
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  const PointTiles tiles = tiles_of(p);
  const int64_t tiles_of_maps = ceil_div(p.c, kTileMaps<T>), blocks_of_taps = ceil_div(p.r * p.s, Part::kTaps);
  const int64_t ranges = ranges_of<T, kGroup>(p);
  auto* slices = static_cast<float*>(operands.workspace);
  const Params<T> o{.dy = static_cast<const T*>(operands.y),
                    .x = static_cast<const T*>(operands.x),
                    .slices = slices,
                    .tiles = tiles,
                    .slice = filter_size(p),
                    .dy_stride = narrow(p.y_stride()),
                    .x_stride = narrow(p.x_stride()),
                    .images = narrow(p.n),
                    .p = narrow(p.p()),
                    .q = narrow(p.q()),
                    .h = narrow(p.h),
                    .w = narrow(p.w),
                    .maps = narrow(p.c),
                    .taps = narrow(p.r * p.s),
                    .s = narrow(p.s),
                    .stride_h = narrow(p.stride_h),
                    .stride_w = narrow(p.stride_w),
                    .pad_top = narrow(p.pad_top),
                    .pad_left = narrow(p.pad_left),
                    .dilation_h = narrow(p.dilation_h),
                    .dilation_w = narrow(p.dilation_w),
                    .ranges = narrow(ranges),
                    .tiles_of_maps = Divider(tiles_of_maps),
                    .blocks_of_taps = Divider(blocks_of_taps)};
  const int slots = kPoints + tiles.images * tiles.halo_h * tiles.halo_w + 1;
  const Grid grid{
      .x = tiles_of_maps * blocks_of_taps * ranges, .threads = kGroupedThreads, .shared_bytes = slots * 128};
  launch(grouped_wgrad<T, kGroup>, grid, o, call);
  const int64_t count = slice_count<T, kGroup>(p);
  add_slices(slices, filter_size(p), count, static_cast<T*>(operands.w), call);
  sum_pixels<T>(operands, slices + count * filter_size(p), call);
}

template <class T> void append(KernelList& list) {
  [&]<int... kGroups>(std::integer_sequence<int, kGroups...>) {
    (list.push_back({kernel_name("grouped", Direction::wgrad, kDTypeOf<T>, grouped_tile<T>(kGroups)),
                     why_not<T, kGroups>, nullptr, workspace_bytes<T, kGroups>, run<T, kGroups>}),
     ...);
  }(GroupSizes{});
}

}  // namespace

void append_grouped_wgrad(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
