// Direct wgrad for few input maps, on tensor cores: the stems of most networks.
//
//   dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * prologue(x[n, p*u - pad + r, q*u - pad + s, c])
//   dbias[k]    = sum over n,p,q of dy[n,p,q,k]
//
// x, dy: NHWC with pixel strides, at most 4 maps of x; dw: [K][R][S][C].
//
// The idea: gemm_m is the maps of dy, gemm_n the taps with 4 maps each, gemm_k the pixels. A block goes through tiles of 8 x
// 16 pixels of dy and keeps all sums of 32 or 64 maps in registers. Both operands lie pixel by pixel in shared memory and
// are transposed while they are loaded (ldmatrix; float: word by word): 8 pixels of 8 maps of dy, and of x 8 pixels of two
// neighbouring taps, for which each pixel of the window has the next one beside it. Blocks write slices, which tap_slices.h adds: the same bits from
// every run, on every GPU. Pixels of dy beyond the image count as zeros: a NaN in x that one tap of a filter meets may
// show in its other taps.
//
// Bound: x and dy. ResNet's 7x7/2, 3 -> 64 maps on 224x224 pixels, N = 256, bf16: 77 MB and 411 MB, 0.11 ms at 4.3 TB/s; 46
// GFMA of 28 pairs of taps by 8 are 0.12 ms of 790 TFLOP/s, by mma.sync at some 60% of that 0.19 ms; in TF32
// (float) twice as long.
#include <primitives/copy.h>
#include <primitives/mma_sm80.h>

#include "direct.h"
#include "kernel_list.h"
#include "tap_slices.h"

namespace cnnkern::cuda {
namespace {

// kWarpsM x (4 / kWarpsM) warps share the maps and the pairs of taps.
template <class T, class Stem, int kWarpsM> struct Tile : Stem {
  static constexpr int kWarpsN = 4 / kWarpsM;
  static constexpr int kPairs = (Stem::kFilter + 1) / 2,
                       kColumnTiles = Stem::kFilter * kPairs;      // of a row; of 8 columns
  static constexpr int kOwnRowTiles = Stem::kMaps / 16 / kWarpsM;  // of 16 maps
  static constexpr int kOwnColumnTiles = (kColumnTiles + kWarpsN - 1) / kWarpsN;
  static constexpr int kPixels = Stem::kRows * Stem::kColumns;
  static constexpr int kPitch =
      Stem::kMaps + 8;  // elements from pixel to pixel of dy, so that eight are in different banks
  static constexpr int kWindowBytes = Stem::kReadPixels * 2 * kStemMaps * static_cast<int>(sizeof(T));
  static constexpr int kSharedBytes = kWindowBytes + kPixels * kPitch * static_cast<int>(sizeof(T));
};

template <class T> struct Params {
  StemInput<T> in;
  const T* dy;
  float* slices;  // [tile block][maps][taps][channels], and [maps] of dbias
  int64_t dy_pixel_stride, slice;
  Divider map_tiles;
  int tile_blocks;  // blocks that share the tiles of pixels
  int maps, p, q;
  bool has_bias;
};

// Starts the copies of a tile of dy: [pixel][map], zero beyond the image and the last map.
template <class T, class Tile>
__device__ void copy_dy(const Params<T>& o, const StemPlace& place, int first_map, Shared<T> dy) {
  constexpr int kVectors = Tile::kMaps / kWidest<T>;
  for (int i = threadIdx.x; i < Tile::kPixels * kVectors; i += Tile::kThreads) {
    const int own = i / kVectors, map = i % kVectors * kWidest<T>;
    const int p = place.row + own / Tile::kColumns, q = place.column + own % Tile::kColumns;
    const bool there = p < o.p && q < o.q && first_map + map < o.maps;
    const int64_t pixel = (int64_t{place.image} * o.p + p) * o.q + q;
    copy_async<16>(dy + (own * Tile::kPitch + map), o.dy + (there ? pixel * o.dy_pixel_stride + first_map + map : 0),
                   there);
  }
  commit_copies();
}

// Adds to a thread's 8 maps what it has itself copied of dy.
template <class T, class Tile> __device__ void add_bias(Vector<float, kWidest<T>>& bias, Shared<T> dy) {
  constexpr int kVectors = Tile::kMaps / kWidest<T>;
  static_assert(Tile::kThreads % kVectors == 0);  // always the same maps
  for (int i = threadIdx.x; i < Tile::kPixels * kVectors; i += Tile::kThreads) {
    const auto own = dy.template load_vector<kWidest<T>>(i / kVectors * Tile::kPitch + i % kVectors * kWidest<T>);
#pragma unroll
    for (int v = 0; v < kWidest<T>; ++v) bias[v] += to_float(own[v]);
  }
}

template <class Tile> struct Sums { float at[Tile::kOwnRowTiles][Tile::kOwnColumnTiles][4]; };

// Where a lane finds its elements of both operands' transposed matrices. `dy` is at the warp's first map, `pair` the first
// pair of taps of two column tiles; positions are in elements.
template <class T, class Tile> struct Lane {
  static constexpr bool kWords = sizeof(T) == 4;  // no matrices of 4-byte elements are transposed
  int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4, eight = lane % 8, matrix = lane / 8;

  // Matrices of dy: maps 0 and 8 of the first 8 pixels, then of the others.
  __device__ int dy_position() const {
    return kWords ? t * Tile::kPitch + g : (matrix / 2 * 8 + eight) * Tile::kPitch + matrix % 2 * 8;
  }
  // Of x: both halves of the pixels of the first column tile, then of the second.
  __device__ int x_position(int column_tile, int second) const {
    const int pair = min(column_tile + (kWords ? second : matrix / 2), Tile::kColumnTiles - 1);
    const int tap = pair / Tile::kPairs * Tile::kReadColumns + pair % Tile::kPairs * 2;
    const int pixel = kWords ? t : matrix % 2 * 8 + eight;
    return (tap + pixel * Tile::kStride) * 2 * kStemMaps + (kWords ? g : 0);
  }
  // A step is kMmaK<T> pixels side by side.
  static __device__ void load_dy(uint32_t (&a)[4], Shared<T> at) {
    if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = at.template as<uint32_t>().load(i / 2 * 4 * Tile::kPitch + i % 2 * 8);
    } else {
      load_matrices_transposed(a, at);
    }
  }
  static __device__ void load_x(uint32_t (&b)[4], Shared<T> first, Shared<T> second) {
    if constexpr (kWords) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        b[i] = (i < 2 ? first : second).template as<uint32_t>().load(i % 2 * 4 * Tile::kStride * 2 * kStemMaps);
    } else {
      load_matrices_transposed(b, first);
    }
  }
};

// One warp's products of a tile, a step of a row at a time.
template <class T, class Tile>
__device__ void multiply(Sums<Tile>& sums, Shared<T> window, Shared<T> dy, int row_tile, int column_tile) {
  constexpr int kLoads = (Tile::kOwnColumnTiles + 1) / 2, kSteps = Tile::kColumns / kMmaK<T>;
  const Lane<T, Tile> lane;
  const int own_dy = lane.dy_position() + row_tile * 16;
  int first[kLoads], second[kLoads];
#pragma unroll
  for (int j = 0; j < kLoads; ++j) {
    first[j] = lane.x_position(column_tile + 2 * j, 0);
    second[j] = lane.x_position(column_tile + 2 * j, 1);
  }
#pragma unroll 1
  for (int step = 0; step < Tile::kRows * kSteps; ++step) {
    const int row = step / kSteps, column = step % kSteps * kMmaK<T>;
    const Shared<T> dy_at = dy + (own_dy + (row * Tile::kColumns + column) * Tile::kPitch);
    const Shared<T> x_at = window + (row * Tile::kReadColumns + column) * Tile::kStride * 2 * kStemMaps;
    uint32_t a[Tile::kOwnRowTiles][4];
#pragma unroll
    for (int i = 0; i < Tile::kOwnRowTiles; ++i) Lane<T, Tile>::load_dy(a[i], dy_at + i * 16);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      uint32_t b[4];
      Lane<T, Tile>::load_x(b, x_at + first[j], x_at + second[j]);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < Tile::kOwnRowTiles; ++i) {
        mma<T>(sums.at[i][2 * j], a[i], left);
        if (2 * j + 1 < Tile::kOwnColumnTiles) mma<T>(sums.at[i][2 * j + 1], a[i], right);
      }
    }
  }
}

// Writes one warp's sums to the block's slice.
template <class T, class Tile>
__device__ void write_slice(const Params<T>& o, const Sums<Tile>& sums, float* slice, int first_map, int row_tile,
                            int column_tile) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < Tile::kOwnColumnTiles; ++j) {
    const int pair = column_tile + j, r = pair / Tile::kPairs, s = pair % Tile::kPairs * 2 + t / 2;
    if (pair >= Tile::kColumnTiles || s >= Tile::kFilter) continue;
#pragma unroll
    for (int i = 0; i < Tile::kOwnRowTiles; ++i) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int map = first_map + (row_tile + i) * 16 + part / 2 * 8 + g, c = t % 2 * 2 + part % 2;
        if (map < o.maps && c < o.in.maps)
          slice[(int64_t{map} * Tile::kTaps + r * Tile::kFilter + s) * o.in.maps + c] = sums.at[i][j][part];
      }
    }
  }
}

// Adds the threads' sums of dbias, in order, and writes them behind the block's slice.
template <class T, class Tile>
__device__ void write_bias(const Params<T>& o, const Vector<float, kWidest<T>>& bias, float* slice, int first_map) {
  constexpr int kGroups = Tile::kThreads * kWidest<T> / Tile::kMaps;  // of threads that have all maps
  const Shared<float> all = shared_memory<float>();
  all.store_vector(threadIdx.x * kWidest<T>, bias);
  __syncthreads();  // a thread now adds what others have
  for (int i = threadIdx.x; i < Tile::kMaps; i += Tile::kThreads) {
    float sum = 0;
    for (int group = 0; group < kGroups; ++group) sum += all.load(group * Tile::kMaps + i);
    if (first_map + i < o.maps) slice[o.slice - o.maps + first_map + i] = sum;
  }
}

// grid: tiles of maps x blocks that go through the tiles of pixels
template <class T, class Tile> __global__ void __launch_bounds__(Tile::kThreads, 2) direct_wgrad(const Params<T> o) {
  int block = blockIdx.x;
  const int first_map = o.map_tiles.split(block) * Tile::kMaps, warp = threadIdx.x / 32;
  const int row_tile = warp / Tile::kWarpsN * Tile::kOwnRowTiles;
  const int column_tile = warp % Tile::kWarpsN * Tile::kOwnColumnTiles;
  const Shared<T> window = shared_memory<T>(), dy = shared_memory<T>(Tile::kWindowBytes);
  Sums<Tile> sums{};
  Vector<float, kWidest<T>> bias{};
#pragma unroll 1
  for (int tile = block; tile < o.in.tiles; tile += o.tile_blocks) {
    const StemPlace place = stem_place<Tile>(o.in, tile);
    copy_dy<T, Tile>(o, place, first_map, dy);
    stage_window<Tile, true>(o.in, place, window);
    wait_copies<0>();
    if (o.has_bias) add_bias<T, Tile>(bias, dy);
    __syncthreads();  // dy and the window are there
    multiply<T, Tile>(sums, window, dy, row_tile, column_tile);
    __syncthreads();  // both are read: the next may take their place
  }
  float* const slice = o.slices + block * o.slice;
  write_slice<T, Tile>(o, sums, slice, first_map, row_tile, column_tile);
  if (o.has_bias) write_bias<T, Tile>(o, bias, slice, first_map);
}

template <class Tile> int64_t tile_blocks(const ConvProblem& p) {
  constexpr int64_t kBlocks = 2 * 132;
  const int64_t map_tiles = (p.k + Tile::kMaps - 1) / Tile::kMaps;
  const int64_t tiles =
      p.n * ((p.p() + Tile::kRows - 1) / Tile::kRows) * ((p.q() + Tile::kColumns - 1) / Tile::kColumns);
  return std::min(tiles, std::max<int64_t>(kBlocks / map_tiles, 1));
}

template <class Tile> int64_t workspace_bytes(const ConvProblem& p) {
  return tile_blocks<Tile>(p) * (p.k * p.r * p.s * p.c + p.k) * static_cast<int64_t>(sizeof(float));
}

template <class T, class Tile> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (const std::string reason = why_no_stem<Tile>(p, flags); !reason.empty()) return reason;
  if (sizeof(T) == 4 && !flags.tf32) return "TF32 is not allowed";
  if (Tile::kSharedBytes > most_shared_bytes(flags.capability)) return "its window does not fit shared memory";
  if (flags.unaligned) return "an operand does not begin at a multiple of 16 bytes";
  if (p.k % kWidest<T> || p.y_stride() % kWidest<T>)
    return "maps and pixel stride of y are no multiples of " + std::to_string(kWidest<T>);
  return workspace_bytes<Tile>(p) > kMostWorkspace ? "its slices need too much workspace" : "";
}

template <class T, class Tile> void run(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const int64_t map_tiles = (p.k + Tile::kMaps - 1) / Tile::kMaps, blocks = tile_blocks<Tile>(p);
  const int64_t weights = p.k * p.r * p.s * p.c;
  const Params<T> o{.in = StemInput<T>::of(p, operands, Tile{}),
                    .dy = static_cast<const T*>(operands.y),
                    .slices = static_cast<float*>(operands.workspace),
                    .dy_pixel_stride = p.y_stride(),
                    .slice = weights + (operands.dbias ? p.k : 0),
                    .map_tiles = Divider(map_tiles),
                    .tile_blocks = static_cast<int>(blocks),
                    .maps = static_cast<int>(p.k),
                    .p = static_cast<int>(p.p()),
                    .q = static_cast<int>(p.q()),
                    .has_bias = operands.dbias != nullptr};
  const Grid grid{.x = map_tiles * blocks, .threads = Tile::kThreads, .shared_bytes = Tile::kSharedBytes};
  launch(direct_wgrad<T, Tile>, grid, o, call);
  run_add_tap_slices<T>(o.slices, blocks, weights, 1, operands.w, operands.dbias, p.k, call);
}

template <class T, class Cut> void append_tile(KernelList& list) {
  const std::string tile = std::to_string(Cut::kPixels) + "x" + std::to_string(Cut::kMaps) + "x" +
                           std::to_string(Cut::kFilter) + "x" + std::to_string(Cut::kStride);
  list.push_back({kernel_name("direct", Direction::wgrad, kDTypeOf<T>, tile), why_not<T, Cut>, nullptr,
                  workspace_bytes<Cut>, run<T, Cut>});
}

template <class T> void append(KernelList& list) {
  append_tile<T, Tile<T, Stem<3, 1, 64>, 4>>(list);
  append_tile<T, Tile<T, Stem<3, 2, 32>, 2>>(list);
  append_tile<T, Tile<T, Stem<7, 2, 64>, 1>>(list);
  append_tile<T, Tile<T, Stem<11, 4, 32>, 1>>(list);
}

}  // namespace

void append_direct_wgrad(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
