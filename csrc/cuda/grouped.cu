// Grouped convolution with 4, 8, 16 or 32 maps a group, fprop and dgrad, on tensor cores.
//
//   fprop  y[n,p,q,k]  = epilogue( sum over r,s,c of x[n, p*u - pad + r*l, q*u - pad + s*l, g(k) + c] * w[k,r,s,c] )
//   dgrad  dx[n,h,w,c] = sum over r,s,k of c's group of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, k] * w[k,r,s,c]
//
// x, y: NHWC with pixel strides; w: [K][R][S][G], G maps a group; g(k): the first map of k's group.
//
// A tensor core makes 8 columns from 8 maps at a time (16 in 16-bit types), so the filters of neighbouring groups are a
// matrix with a block for each group on its diagonal, and only the diagonal is multiplied: for each 8 maps written, the
// maps of their own groups. A block has 128 bytes of maps of a tile of up to 128 points of a lattice (lattice.h). It
// brings the tile's input once, with its margin, and multiplies each tap straight from there: ldmatrix takes an address
// for each pixel, so a tap is another set of addresses. The filter stays in shared memory as fragments, for all tiles
// that the block makes.
//
// Maps of a neighbouring group must not be multiplied by zero, for they may be infinite. Where a fragment of A has 16
// maps of two groups of 8, its halves are multiplied apart. A group of 4 has half of the columns, too: each product is
// made with the one half of the maps and with the other, in sums apart, and each column is taken from its own.
//
// Bound: bytes of x and y once, the margin coming from L2. ResNeXt-50's 3x3 with 128 maps in 32 groups at 56x56, N=256,
// in bf16: 411 MB, 96 us on an H200 at 4.3 TB/s; 7.4 Gflop, 30 with the columns and halves that are for nothing, 62 us
// at 0.6 of 790 TFLOP/s.
#include <primitives/epilogue.h>
#include <primitives/launcher.h>
#include <primitives/mma_sm80.h>

#include "gemm_slab.h"
#include "grouped.h"
#include "kernel_list.h"
#include "moments.h"

namespace cnnkern::cuda {
namespace {

// How G maps a group are made of fragments.
template <class T, int kGroup> struct Fragments {
  static constexpr int kColumns = kTileMaps<T> / 8;             // fragments of B beside each other
  static constexpr int kDeep = std::max(kGroup / kMmaK<T>, 1);  // and below each other, for one column
  static constexpr int kOfTap = kColumns * kDeep * 32;          // registers' pairs of all lanes
  static constexpr int kSums = kGroup == 4 ? 2 : 1;             // for each column
  static constexpr int kLeft = kTileMaps<T> / kMmaK<T>;         // fragments of A beside each other
};

template <class T> struct Params {
  const T *in, *w;
  T* out;
  FusedEpilogue<T> epilogue;
  float* statistics;  // of y without an epilogue: a partial of each sweep; null: not wanted
  PointTiles tiles;
  int in_stride, out_stride, images, in_h, in_w, out_h, out_w;
  int maps;  // all
  int r, s, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, increment_h, increment_w;
  int filters;  // bytes of shared memory for those of all taps
  int sweeps;   // blocks that share the tiles of a lattice out
  Divider residues_w, residues_h, tiles_of_maps;
};

// Lays the filter out as fragments of B: [taps][columns][deep][lane] pairs of registers. Row k of a fragment is a map
// read, column n one written; where they are of different groups, and beyond the last map, is zero.
template <class T, int kGroup, bool kForward>
__device__ void fetch_filters(Shared<uint32_t> to, const Params<T>& o, const LatticeAxis& h, const LatticeAxis& w,
                              int map) {
  using Part = Fragments<T, kGroup>;
  constexpr int kPerRegister = 4 / static_cast<int>(sizeof(T));
  const int pairs = h.taps * w.taps * Part::kOfTap;
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kGroupedThreads) {
    const int lane = i % 32, deep = i / 32 % Part::kDeep, column = i / (32 * Part::kDeep) % Part::kColumns;
    const int tap = i / Part::kOfTap, r = h.first_tap + tap / w.taps * h.tap_increment;
    const int s = w.first_tap + tap % w.taps * w.tap_increment;
    const int n = column * 8 + lane / 4;  // within the block's maps
    const int first =
        (kGroup < 8 ? column * 8 : n / kGroup * kGroup) + deep * kMmaK<T>;  // that a fragment's rows are from
    Vector<uint32_t, 2> pair;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Vector<T, kPerRegister> some;
#pragma unroll
      for (int e = 0; e < kPerRegister; ++e) {
        const int row = half * (kMmaK<T> / 2) + lane % 4 * kPerRegister + e, k = first + row;
        const bool valid = k / kGroup == n / kGroup && map + n < o.maps && row < std::max(kGroup, 8);
        const int filter = map + (kForward ? n : k), depth = (kForward ? k : n) % kGroup;
        const int64_t at = ((int64_t{filter} * o.r + r) * o.s + s) * kGroup + depth;
        some[e] = valid ? o.w[at] : from_float<T>(0);
      }
      memcpy(&pair[half], &some, sizeof some);
    }
    to.template store_vector<2>(2 * i, pair);
  }
}

// sums += the product of 16 points with the filters of one tap.
template <class T, int kGroup>
__device__ void multiply_tap(float (&sums)[Fragments<T, kGroup>::kColumns][Fragments<T, kGroup>::kSums][4],
                             const uint32_t (&left)[Fragments<T, kGroup>::kLeft][4],
                             const uint32_t (&right)[Fragments<T, kGroup>::kColumns][Fragments<T, kGroup>::kDeep][2]) {
  using Part = Fragments<T, kGroup>;
#pragma unroll
  for (int j = 0; j < Part::kColumns; ++j) {
    if constexpr (kGroup >= kMmaK<T>) {
#pragma unroll
      for (int deep = 0; deep < Part::kDeep; ++deep)
        mma<T>(sums[j][0], left[j * 8 / kGroup * kGroup / kMmaK<T> + deep], right[j][deep]);
    } else if constexpr (sizeof(T) == 2) {  // 8 of the 16 maps of a fragment, and for groups of 4 those of one of them
      const uint32_t* half = &left[j / 2][j % 2 * 2];
      const uint32_t filter = right[j][0][0];
      if constexpr (kGroup == 8) {
        mma_half<T>(sums[j][0], {half[0], half[1]}, filter);
      } else {
        const bool first = threadIdx.x % 4 < 2;
        mma_half<T>(sums[j][0], {first ? half[0] : 0, first ? half[1] : 0}, filter);
        mma_half<T>(sums[j][1], {first ? 0 : half[0], first ? 0 : half[1]}, filter);
      }
    } else {  // float, groups of 4: each is half of a fragment
      mma<T>(sums[j][0], {left[j][0], left[j][1], 0, 0}, right[j][0]);
      mma<T>(sums[j][1], {0, 0, left[j][2], left[j][3]}, right[j][0]);
    }
  }
}

// A lane's maps in statistics.
template <class T> constexpr int kOwnMaps = kTileMaps<T> / 32;

// Takes a slab's points into the moments of the lane's maps; lane i says whether there is an i-th.
template <class T> __device__ void take(MomentsOfMaps<kOwnMaps<T>>& moments, const Shared<float>& slab, bool there) {
  const auto each_point = [&](const auto& use) {
#pragma unroll 8
    for (int point = 0; point < kSlab; ++point) {
      const bool valid = __shfl_sync(0xffffffff, static_cast<int>(there), point);
      const auto y = slab.template load_vector<kOwnMaps<T>>(point * slab_stride<kTileMaps<T>>());
#pragma unroll
      for (int i = 0; i < kOwnMaps<T>; ++i) use(valid, to_float(from_float<T>(y[i])), i);
    }
  };
  Moments own[kOwnMaps<T>];
  each_point([&](bool valid, float y, int i) {
    own[i].count += valid;
    own[i].mean += valid ? y : 0;
  });
#pragma unroll
  for (int i = 0; i < kOwnMaps<T>; ++i) own[i].mean /= own[i].count;
  each_point([&](bool valid, float y, int i) { own[i].m2 += valid ? (y - own[i].mean) * (y - own[i].mean) : 0; });
#pragma unroll
  for (int i = 0; i < kOwnMaps<T>; ++i) moments.at[i].merge(own[i]);
}

template <class T, Direction kDirection, int kGroup>
__global__ void __launch_bounds__(kGroupedThreads, kGroup == 4 ? 2 : 3) grouped(const Params<T> o) {
  constexpr bool kForward = kDirection == Direction::fprop;
  using Part = Fragments<T, kGroup>;
  constexpr int kMaps = kTileMaps<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;

  int rest = static_cast<int>(blockIdx.x);
  const int map = o.tiles_of_maps.split(rest) * kMaps;
  const int residue_w = o.residues_w.split(rest), residue_h = o.residues_h.split(rest), sweep = rest;
  const LatticeAxis h = kForward ? fprop_axis(o.r, o.pad_top, o.stride_h, o.dilation_h)
                                 : dgrad_axis(residue_h, o.r, o.pad_top, o.stride_h, o.dilation_h, o.increment_h);
  const LatticeAxis w = kForward ? fprop_axis(o.s, o.pad_left, o.stride_w, o.dilation_w)
                                 : dgrad_axis(residue_w, o.s, o.pad_left, o.stride_w, o.dilation_w, o.increment_w);
  // The first slot is the least pixel that a tap reaches.
  const int least_h = std::min((h.taps - 1) * h.tap_step, 0), least_w = std::min((w.taps - 1) * w.tap_step, 0);

  const Shared<uint32_t> filters = shared_memory<uint32_t>();
  const Halo<T> halo{shared_memory<T>(o.filters)};
  fetch_filters<T, kGroup, kForward>(filters, o, h, w, map);

  [[maybe_unused]] MomentsOfMaps<kOwnMaps<T>> moments;
  const int tiles = o.tiles.tiles_n * o.tiles.tiles_h * o.tiles.tiles_w;
  for (int tile = sweep; tile < tiles; tile += o.sweeps) {
    int at = tile;
    const int column0 = o.tiles.by_tiles_w.split(at) * o.tiles.columns,
              row0 = o.tiles.by_tiles_h.split(at) * o.tiles.rows;
    const int image0 = at * o.tiles.images;
    const HaloPlace place{image0,
                          row0 * h.in_step + h.in_first + least_h,
                          column0 * w.in_step + w.in_first + least_w,
                          o.images,
                          o.in_h,
                          o.in_w,
                          map,
                          o.maps - map};
    fetch_halo(halo, o.tiles, place, o.in, o.in_stride);
    commit_copies();

    int slot
        [2];  // of this lane's row of each fragment of A, for the least tap; points that are none read the first slot
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TilePoint point = point_of(o.tiles, warp * 32 + i * 16 + lane % 16);
      slot[i] = point.valid ? (point.image * o.tiles.halo_h + point.row * h.in_step - least_h) * o.tiles.halo_w +
                                  point.column * w.in_step - least_w
                            : -1;
    }
    float sums[2][Part::kColumns][Part::kSums][4] = {};
    wait_copies<0>();
    __syncthreads();  // the halo, and the first time the filters, are there
    for (int tap = 0; tap < h.taps * w.taps; ++tap) {
      const int step = tap / w.taps * h.tap_step * o.tiles.halo_w + tap % w.taps * w.tap_step;
      uint32_t right[Part::kColumns][Part::kDeep][2];
#pragma unroll
      for (int j = 0; j < Part::kColumns * Part::kDeep; ++j) {
        const auto pair = filters.template load_vector<2>(2 * (tap * Part::kOfTap + j * 32 + lane));
        right[j / Part::kDeep][j % Part::kDeep][0] = pair[0];
        right[j / Part::kDeep][j % Part::kDeep][1] = pair[1];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t left[Part::kLeft][4];
        const int from = slot[i] < 0 ? 0 : slot[i] + step;
#pragma unroll
        for (int j = 0; j < Part::kLeft; ++j)
          load_matrices(left[j], halo.at(from, j * kMmaK<T> + lane / 16 * kWidest<T>));
        multiply_tap<T, kGroup>(sums[i], left, right);
      }
    }
    __syncthreads();  // the halo is read: its memory becomes the slabs'

    const auto pixel_of = [&](int i) -> int64_t {  // that point i is; -1: none
      const TilePoint point = point_of(o.tiles, i);
      const int image = image0 + point.image;
      const int out_h = (row0 + point.row) * h.out_step + h.out_first;
      const int out_w = (column0 + point.column) * w.out_step + w.out_first;
      const bool there = point.valid && image < o.images && out_h < o.out_h && out_w < o.out_w;
      return there ? (int64_t{image} * o.out_h + out_h) * o.out_w + out_w : -1;
    };
    const int slab = o.filters + warp * slab_bytes<kMaps>();
    through_slab<kMaps, kWidest<T>>(
        slab,
        [&](auto put) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int j = 0; j < Part::kColumns; ++j) {
              const bool second = Part::kSums == 2 && lane % 4 >= 2;  // columns of the second group
#pragma unroll
              for (int e = 0; e < 4; e += 2) {
                const float (&first)[4] = sums[i][j][0];
                const float (&last)[4] = sums[i][j][Part::kSums - 1];
                put(i * 16 + e * 4 + lane / 4, j * 8 + lane % 4 * 2,
                    Vector<float, 2>{second ? last[e] : first[e], second ? last[e + 1] : first[e + 1]});
              }
            }
          }
        },
        [&](int row, int column, const float (&some)[kWidest<T>]) {
          const int64_t pixel = pixel_of(warp * 32 + row);
          if (pixel < 0 || map + column >= o.maps) return;
          T* const to = o.out + (pixel * o.out_stride + map + column);
          if constexpr (kForward) store_vector<kWidest<T>>(to, o.epilogue(some, pixel, map + column));
          else store_vector<kWidest<T>>(to, FusedEpilogue<T>{}(some, pixel, map + column));
        });
    if (kForward && o.statistics)
      take<T>(moments, shared_memory<float>(slab) + lane * kOwnMaps<T>, pixel_of(warp * 32 + lane) >= 0);
    __syncthreads();  // the slabs are read: the next halo comes there
  }
  if (!kForward || !o.statistics) return;
  merge_rows(moments, warp, kGroupedThreads / 32, lane, 32);
  const int own_map = map + lane * kOwnMaps<T>;
  if (warp == 0 && own_map < o.maps)  // maps come in vectors
    store_moments(o.statistics + int64_t{sweep} * 3 * o.maps + own_map, o.maps, moments);
}

// --- host ------------------------------------------------------------------------------------------------------------

int increment(int64_t stride, int64_t dilation) { return static_cast<int>(stride / std::gcd(stride, dilation)); }

// The taps of the lattice that has the most.
int64_t most_taps(const ConvProblem& p) {
  if (p.direction == Direction::fprop) return p.r * p.s;
  return ceil_div(p.r, increment(p.stride_h, p.dilation_h)) * ceil_div(p.s, increment(p.stride_w, p.dilation_w));
}

template <class T, int kGroup> int64_t filter_bytes(const ConvProblem& p) {
  return most_taps(p) * Fragments<T, kGroup>::kOfTap * 8;
}

template <class T, int kGroup> PointTiles tiles_of(const ConvProblem& p) {
  const int64_t most_bytes = kMostShared - filter_bytes<T, kGroup>(p);
  if (p.direction == Direction::fprop) {
    return choose_tiles(p.n, p.p(), p.q(), p.stride_h, p.stride_w, (p.r - 1) * p.dilation_h, (p.s - 1) * p.dilation_w,
                        most_bytes);
  }
  const int64_t increment_h = increment(p.stride_h, p.dilation_h), increment_w = increment(p.stride_w, p.dilation_w);
  return choose_tiles(p.n, ceil_div(p.h, p.stride_h), ceil_div(p.w, p.stride_w), 1, 1,
                      (ceil_div(p.r, increment_h) - 1) * (increment_h * p.dilation_h / p.stride_h),
                      (ceil_div(p.s, increment_w) - 1) * (increment_w * p.dilation_w / p.stride_w), most_bytes);
}

template <class T, int kGroup> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (const std::string reason = why_not_grouped<T>(p, kGroup, flags); !reason.empty()) return reason;
  if (filter_bytes<T, kGroup>(p) > kMostShared / 2) return "its filters do not fit shared memory";
  return tiles_of<T, kGroup>(p).images ? "" : "its pixels do not fit shared memory";
}

int64_t residues(int64_t stride, int64_t size, Direction direction) {
  return direction == Direction::fprop ? 1 : std::min(stride, size);
}

// Blocks that share the tiles of a lattice out. Each lays the filters out once, so there are no more of them than fill
// the card a few times.
template <class T, int kGroup> int64_t sweeps_of(const ConvProblem& p) {
  const int64_t lattices =
      ceil_div(p.c, kTileMaps<T>) * residues(p.stride_h, p.h, p.direction) * residues(p.stride_w, p.w, p.direction);
  return std::min(tiles_of<T, kGroup>(p).count(), std::max<int64_t>(1, 8 * kMultiprocessors / lattices));
}

template <class T, Direction kDirection, int kGroup> void run(const Operands& operands, const Call& call) {
  constexpr bool kForward = kDirection == Direction::fprop;
  const ConvProblem& p = call.problem;
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  const PointTiles tiles = tiles_of<T, kGroup>(p);
  const int64_t residues_h = residues(p.stride_h, p.h, kDirection), residues_w = residues(p.stride_w, p.w, kDirection);
  const int64_t tiles_of_maps = ceil_div(p.c, kTileMaps<T>), sweeps = sweeps_of<T, kGroup>(p);
  const int filters = narrow(filter_bytes<T, kGroup>(p));
  const int halo =
      std::max(tiles.images * tiles.halo_h * tiles.halo_w * 128, kGroupedThreads / 32 * slab_bytes<kTileMaps<T>>());
  const Params<T> o{.in = static_cast<const T*>(kForward ? operands.x : operands.y),
                    .w = static_cast<const T*>(operands.w),
                    .out = static_cast<T*>(kForward ? operands.y : operands.x),
                    .epilogue = epilogue_of<T>(p, operands),
                    .statistics = kForward ? operands.statistics : nullptr,
                    .tiles = tiles,
                    .in_stride = narrow(kForward ? p.x_stride() : p.y_stride()),
                    .out_stride = narrow(kForward ? p.y_stride() : p.x_stride()),
                    .images = narrow(p.n),
                    .in_h = narrow(kForward ? p.h : p.p()),
                    .in_w = narrow(kForward ? p.w : p.q()),
                    .out_h = narrow(kForward ? p.p() : p.h),
                    .out_w = narrow(kForward ? p.q() : p.w),
                    .maps = narrow(p.c),
                    .r = narrow(p.r),
                    .s = narrow(p.s),
                    .stride_h = narrow(p.stride_h),
                    .stride_w = narrow(p.stride_w),
                    .pad_top = narrow(p.pad_top),
                    .pad_left = narrow(p.pad_left),
                    .dilation_h = narrow(p.dilation_h),
                    .dilation_w = narrow(p.dilation_w),
                    .increment_h = increment(p.stride_h, p.dilation_h),
                    .increment_w = increment(p.stride_w, p.dilation_w),
                    .filters = filters,
                    .sweeps = narrow(sweeps),
                    .residues_w = Divider(residues_w),
                    .residues_h = Divider(residues_h),
                    .tiles_of_maps = Divider(tiles_of_maps)};
  const Grid grid{.x = tiles_of_maps * residues_h * residues_w * sweeps,
                  .threads = kGroupedThreads,
                  .shared_bytes = filters + halo};
  launch(grouped<T, kDirection, kGroup>, grid, o, call);
}

template <class T, Direction kDirection> void append(KernelList& list) {
  [&]<int... kGroups>(std::integer_sequence<int, kGroups...>) {
    (list.push_back({kernel_name("grouped", kDirection, kDTypeOf<T>, grouped_tile<T>(kGroups)), why_not<T, kGroups>,
                     nullptr, nullptr, run<T, kDirection, kGroups>,
                     kDirection == Direction::fprop ? sweeps_of<T, kGroups> : nullptr}),
     ...);
  }(GroupSizes{});
}

}  // namespace

void append_grouped(KernelList& list) {
  append<float, Direction::fprop>(list);
  append<bf16, Direction::fprop>(list);
  append<f16, Direction::fprop>(list);
  append<float, Direction::dgrad>(list);
  append<bf16, Direction::dgrad>(list);
  append<f16, Direction::dgrad>(list);
}

}  // namespace cnnkern::cuda
