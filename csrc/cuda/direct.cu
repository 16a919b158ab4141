// Direct fprop for few input maps, on tensor cores: the stems of most networks.
//
//   y[n,p,q,k] = epilogue( sum over r,s,c of prologue(x[n, p*u - pad + r, q*u - pad + s, c]) * w[k,r,s,c] )
//
// x, y: NHWC with pixel strides, at most 4 maps of x; w: [K][R][S][C]. A block has tiles of 8 x 16 pixels of y and 32 or 64
// maps, a warp two rows of a tile.
//
// The idea: with its maps padded to 4 in shared memory, x is its own matrix of patches: an operand's register is 4 bytes of
// one tap of one pixel, at an address that is a constant away from that pixel's. gemm_k is R*S*4 rounded up to 16 (float:
// to 8): 208 for 7x7, where a tap at a time would take 784. The filters are staged once per block, in the order in which
// the lanes read them, and with their maps permuted so that a lane's sums are neighbouring maps of y: 16-byte stores.
//
// Bound: x and y. ResNet's 7x7/2, 3 -> 64 maps on 224x224 pixels, N = 256, bf16: 77 MB and 411 MB, 0.11 ms at 4.3 TB/s.
// 43 GFMA of padded gemm_k are 0.11 ms of 790 TFLOP/s; mma.sync reaches some 60% of that on an H200: 0.18 ms, and as much
// of shared memory's bandwidth. In TF32 (float) 0.23 ms of bytes and 0.36 ms of products. (float without TF32:
// direct_ffma.cu.)
#include <primitives/mma_sm80.h>

#include "direct.h"
#include "kernel_list.h"

namespace cnnkern::cuda {
namespace {

// How a Stem's product is cut for operands of type T. A half step is 16 bytes of gemm_k: kHalfTaps taps of 4 maps.
template <class T, class Stem> struct Tile : Stem {
  static constexpr int kPixelWords = kStemMaps * static_cast<int>(sizeof(T)) / 4;
  static constexpr int kHalfTaps = 4 / kPixelWords;
  static constexpr int kSteps = (Stem::kTaps + 2 * kHalfTaps - 1) / (2 * kHalfTaps);
  static constexpr int kColumnTiles = Stem::kMaps / 8;  // of 8 maps
  static constexpr int kLaneMaps = 2 * kColumnTiles;    // neighbouring maps whose sums a lane has
  static constexpr int kWindowBytes = Stem::kReadPixels * kPixelWords * 4;
  static constexpr int kFilterWords = kSteps * kColumnTiles * 32 * 2;  // [step][pair of column tiles][lane][tile, half]
  static constexpr int kFilterBytes = kFilterWords * 4;
  static constexpr int kSharedBytes = kFilterBytes + 2 * Stem::kMaps * 4 + (kWindowBytes + 15) / 16 * 16;
  static constexpr int kBlocks = sizeof(T) == 2 && Stem::kFilter == 3 ? 4 : 3;  // of a multiprocessor
};

template <class T> struct Params {
  StemInput<T> in;
  const T* w;
  T* y;
  FusedEpilogue<T> epilogue;
  int64_t y_pixel_stride;
  Divider map_tiles;
  int tile_blocks;  // blocks that share the tiles of pixels
  int maps, p, q;
};

// The filters as their registers, and scale and shift as float behind them; zero beyond the last map and the last tap.
template <class T, class Tile> __device__ void stage_filters(const Params<T>& o, int first_map) {
  constexpr int kElements = 4 / static_cast<int>(sizeof(T));  // of a word
  const Shared<T> filters = shared_memory<T>();
  for (int i = threadIdx.x; i < Tile::kFilterWords; i += Tile::kThreads) {
    const int half = i % 2, lane = i / 4 % 32, t = lane % 4, column = lane / 4;
    const int column_tile = i / 128 * 2 % Tile::kColumnTiles + i / 2 % 2;
    const int map = first_map + column / 2 * Tile::kLaneMaps + 2 * column_tile + column % 2;
    const int step = i / 64 / Tile::kColumnTiles;
    const int tap = (2 * step + half) * Tile::kHalfTaps + t / Tile::kPixelWords, c = t % Tile::kPixelWords * kElements;
    const bool there = map < o.maps && tap < Tile::kTaps;
    const T* const from = o.w + (int64_t{there ? map : 0} * Tile::kTaps + (there ? tap : 0)) * o.in.maps;
    Vector<T, kElements> word{};
#pragma unroll
    for (int j = 0; j < kElements; ++j)
      if (there && c + j < o.in.maps) word[j] = from[c + j];
    filters.store_vector(i * kElements, word);
  }
  const Shared<float> scale = shared_memory<float>(Tile::kFilterBytes), shift = scale + Tile::kMaps;
  for (int i = threadIdx.x; i < Tile::kMaps; i += Tile::kThreads) {
    const Affine<T>& affine = o.epilogue.affine;
    const int map = first_map + i;
    scale.store(i, affine.scale && map < o.maps ? affine.scale[map] : 1);
    shift.store(i, affine.shift && map < o.maps ? affine.shift[map] : 0);
  }
}

template <class Tile> struct Sums { float at[2][Tile::kColumnTiles][4]; };  // of two rows of pixels

// One warp's products. `window` is at its lane's word of the first tap of pixel (first row, lane / 4).
template <class T, class Tile>
__device__ void multiply(Sums<Tile>& sums, Shared<uint32_t> window, Shared<uint32_t> filters, int tap_of_lane) {
#pragma unroll
  for (int step = 0; step < Tile::kSteps; ++step) {
    uint32_t a[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Lanes of the same half step have one of two taps (float: all the same).
      const int first = (2 * step + half) * Tile::kHalfTaps, second = first + Tile::kHalfTaps - 1;
      const int tap = tap_of_lane ? second : first;
      const bool there = tap < Tile::kTaps;
      const int offset =
          tap_of_lane ? Tile::offset(second < Tile::kTaps ? second : 0) : Tile::offset(first < Tile::kTaps ? first : 0);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
          const int pixel = row * Tile::kStride * Tile::kReadColumns + eight * 8 * Tile::kStride;
          a[row][2 * half + eight] = there ? window.load((pixel + offset) * Tile::kPixelWords) : 0;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; j += 2) {
      const Vector<uint32_t, 4> b = filters.load_vector<4>((step * Tile::kColumnTiles + j) * 64);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        mma<T>(sums.at[row][j], a[row], left);
        mma<T>(sums.at[row][j + 1], a[row], right);
      }
    }
  }
}

// Writes a lane's sums: kLaneMaps maps of 2 x 2 pixels, 8 columns apart.
template <class T, class Tile>
__device__ void write(const Params<T>& o, const Sums<Tile>& sums, const StemPlace& place, int row, int column,
                      int first_map, int lane_map) {
  constexpr int kVector = kWidest<T>;
  const Shared<float> scale = shared_memory<float>(Tile::kFilterBytes) + lane_map, shift = scale + Tile::kMaps;
  const int map = first_map + lane_map;
  float tile[4][Tile::kLaneMaps];
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kLaneMaps; ++j) tile[i][j] = sums.at[i / 2][j / 2][i % 2 * 2 + j % 2];

#pragma unroll 1
  for (int i = 0; i < 4; ++i, rotate(tile)) {
    const int p = row + i / 2, q = column + i % 2 * 8;
    if (p >= o.p || q >= o.q) continue;
    const int64_t pixel = (int64_t{place.image} * o.p + p) * o.q + q;
    float (&y)[Tile::kLaneMaps] = tile[0];
#pragma unroll
    for (int part = 0; part < Tile::kLaneMaps; part += kVector) {
      const Vector<float, kVector> scales = scale.load_vector<kVector>(part), shifts = shift.load_vector<kVector>(part);
      Vector<T, kVector> residual{};
      if (o.epilogue.residual && map + part < o.maps)
        residual = load_vector<kVector>(o.epilogue.residual + pixel * o.epilogue.residual_pixel_stride + map + part);
#pragma unroll
      for (int v = 0; v < kVector; ++v) y[part + v] = y[part + v] * scales[v] + shifts[v] + to_float(residual[v]);
    }
    activate_each(y, o.epilogue.affine.activation, o.epilogue.affine.alpha);
#pragma unroll
    for (int part = 0; part < Tile::kLaneMaps; part += kVector) {
      Vector<T, kVector> rounded;
#pragma unroll
      for (int v = 0; v < kVector; ++v) rounded[v] = from_float<T>(y[part + v]);
      if (map + part < o.maps) store_vector(o.y + pixel * o.y_pixel_stride + map + part, rounded);
    }
  }
}

// grid: tiles of maps x blocks that go through the tiles of pixels
template <class T, class Tile> __global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    direct_fprop(const Params<T> o) {
  int block = blockIdx.x;
  const int first_map = o.map_tiles.split(block) * Tile::kMaps;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const Shared<T> window = shared_memory<T>(Tile::kFilterBytes + 2 * Tile::kMaps * 4);
  const int own = (2 * warp * Tile::kStride * Tile::kReadColumns + g * Tile::kStride) * Tile::kPixelWords;
  const Shared<uint32_t> own_window = window.template as<uint32_t>() + (own + t % Tile::kPixelWords);
  const Shared<uint32_t> own_filters = shared_memory<uint32_t>() + 4 * lane;

  stage_filters<T, Tile>(o, first_map);
  for (int tile = block; tile < o.in.tiles; tile += o.tile_blocks) {
    const StemPlace place = stem_place<Tile>(o.in, tile);
    stage_window<Tile>(o.in, place, window);
    __syncthreads();  // the window is there, and before the first tile the filters
    Sums<Tile> sums{};
    multiply<T, Tile>(sums, own_window, own_filters, t / Tile::kPixelWords);
    __syncthreads();  // the window is read: the next may take its place
    write<T, Tile>(o, sums, place, place.row + 2 * warp, place.column + g, first_map, t * Tile::kLaneMaps);
  }
}

template <class T, class Tile> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (sizeof(T) == 4 && !flags.tf32) return "TF32 is not allowed";
  if (flags.unaligned) return "an operand does not begin at a multiple of 16 bytes";
  if (p.k % kWidest<T> || p.y_stride() % kWidest<T>)
    return "maps and pixel stride of y are no multiples of " + std::to_string(kWidest<T>);
  if (Tile::kSharedBytes > most_shared_bytes(flags.capability)) return "its filters do not fit shared memory";
  return why_no_stem<Tile>(p, flags);
}

template <class T, class Tile> void run(const Operands& operands, const Call& call) {
  constexpr int64_t kBlocks = 8 * 132;
  const ConvProblem& p = call.problem;
  const StemInput<T> in = StemInput<T>::of(p, operands, Tile{});
  const int64_t map_tiles = (p.k + Tile::kMaps - 1) / Tile::kMaps;
  const int64_t tile_blocks = std::min<int64_t>(in.tiles, std::max<int64_t>(kBlocks / map_tiles, 1));
  const Params<T> o{.in = in,
                    .w = static_cast<const T*>(operands.w),
                    .y = static_cast<T*>(operands.y),
                    .epilogue = epilogue_of<T>(p, operands),
                    .y_pixel_stride = p.y_stride(),
                    .map_tiles = Divider(map_tiles),
                    .tile_blocks = static_cast<int>(tile_blocks),
                    .maps = static_cast<int>(p.k),
                    .p = static_cast<int>(p.p()),
                    .q = static_cast<int>(p.q())};
  const Grid grid{.x = map_tiles * tile_blocks, .threads = Tile::kThreads, .shared_bytes = Tile::kSharedBytes};
  launch(direct_fprop<T, Tile>, grid, o, call);
}

template <class T, class Stem> void append_stem(KernelList& list) {
  using Cut = Tile<T, Stem>;
  const std::string tile = std::to_string(Cut::kRows * Cut::kColumns) + "x" + std::to_string(Cut::kMaps) + "x" +
                           std::to_string(Cut::kFilter) + "x" + std::to_string(Cut::kStride);
  list.push_back(
      {kernel_name("direct", Direction::fprop, kDTypeOf<T>, tile), why_not<T, Cut>, nullptr, nullptr, run<T, Cut>});
}

template <class T> void append(KernelList& list) {
  append_stem<T, Stem<3, 1, 64>>(list);   // VGG
  append_stem<T, Stem<3, 2, 32>>(list);   // MobileNet, ShuffleNet, SqueezeNet 1.1, Inception
  append_stem<T, Stem<7, 2, 64>>(list);   // GoogLeNet, ResNet, DenseNet
  append_stem<T, Stem<11, 4, 32>>(list);  // AlexNet
}

}  // namespace

void append_direct(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
