// Direct fprop for few input maps in float, on the FMA units: what direct.cu does where TF32 is not allowed.
//
//   y[n,p,q,k] = epilogue( sum over r,s,c of prologue(x[n, p*u - pad + r, q*u - pad + s, c]) * w[k,r,s,c] )
//
// x, y: NHWC with pixel strides, at most 4 maps of x; w: [K][R][S][C]. A block has tiles of 8 x 16 pixels of y and 32 or 64
// maps. The filters, [tap][c][map], and the window of x are in shared memory; a thread has 8 pixels of one column and 4
// or 8 neighbouring maps, so that 16 bytes of shared memory serve 16 to 32 products.
//
// Bound: the FMA units. ResNet's 7x7/2, 3 -> 64 maps on 224x224 pixels, N = 256: 30.2 GFMA are 0.9 ms at 67 TFLOP/s; 976 MB
// of x and y pass in 0.23 ms.
#include "direct.h"
#include "kernel_list.h"

namespace cnnkern::cuda {
namespace {

// A thread's tile, and where what it reads is in shared memory.
template <class Stem> struct Tile : Stem {
  static constexpr int kGroups = Stem::kThreads / Stem::kColumns;  // of maps
  static constexpr int kPixels = Stem::kRows, kThreadMaps = Stem::kMaps / kGroups;
  static constexpr int kRow = Stem::kMaps;  // floats of one c of one tap
  static int filter_bytes(int64_t maps) { return static_cast<int>(Stem::kTaps * maps * kRow * 4); }
  static constexpr int kWindowBytes = Stem::kReadPixels * kStemMaps * 4;
  static int shared_bytes(int64_t maps) { return kWindowBytes + filter_bytes(maps) + 2 * kRow * 4; }
};

struct Params {
  StemInput<float> in;
  const float* w;
  float* y;
  FusedEpilogue<float> epilogue;
  int64_t y_pixel_stride;
  Divider map_tiles;
  int tile_blocks;  // blocks that share the tiles of pixels
  int maps, p, q;
};

// The filters, and behind them scale and shift; zero beyond the last map.
template <class Tile> __device__ void stage_filters(const Params& o, int first_map, Shared<float> filters) {
  const int filter = Tile::kTaps * o.in.maps;
  for (int i = threadIdx.x; i < filter * Tile::kRow; i += Tile::kThreads) {
    const int map = i / filter, at = i % filter;
    filters.store(at * Tile::kRow + map, first_map + map < o.maps ? o.w[int64_t{first_map + map} * filter + at] : 0);
  }
  const Shared<float> scale = filters + filter * Tile::kRow, shift = scale + Tile::kRow;
  for (int i = threadIdx.x; i < Tile::kRow; i += Tile::kThreads) {
    const Affine<float>& affine = o.epilogue.affine;
    const int map = first_map + i;
    scale.store(i, affine.scale && map < o.maps ? affine.scale[map] : 1);
    shift.store(i, affine.shift && map < o.maps ? affine.shift[map] : 0);
  }
}

// Adds one tap's products; `window` is at the tap of the thread's first pixel, `filters` at the tap's first map of it.
template <class Tile>
__device__ void multiply(float (&sums)[Tile::kPixels][Tile::kThreadMaps], Shared<float> window, Shared<float> filters,
                         int maps) {
  Vector<float, kStemMaps> x[Tile::kPixels];
#pragma unroll
  for (int p = 0; p < Tile::kPixels; ++p)
    x[p] = window.load_vector<kStemMaps>(p * Tile::kStride * Tile::kReadColumns * kStemMaps);
#pragma unroll
  for (int c = 0; c < kStemMaps; ++c) {
    if (c >= maps) break;
#pragma unroll
    for (int i = 0; i < Tile::kThreadMaps; i += 4) {
      const Vector<float, 4> weights = filters.load_vector<4>(c * Tile::kRow + i);
#pragma unroll
      for (int p = 0; p < Tile::kPixels; ++p)
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[p][i + v] += x[p][c] * weights[v];
    }
  }
}

template <class Tile>
__device__ void write(const Params& o, float (&sums)[Tile::kPixels][Tile::kThreadMaps], const StemPlace& place,
                      int column, int map, Shared<float> scale) {
  if (column >= o.q || map >= o.maps) return;
  const int rows = min(Tile::kPixels, o.p - place.row);
  const int64_t first = (int64_t{place.image} * o.p + place.row) * o.q + column;
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const int64_t pixel = first + int64_t{row} * o.q;
    float (&y)[Tile::kThreadMaps] = sums[0];
#pragma unroll
    for (int i = 0; i < Tile::kThreadMaps; i += 4) {
      const Vector<float, 4> scales = scale.load_vector<4>(i), shifts = scale.load_vector<4>(Tile::kRow + i);
      Vector<float, 4> residual{};
      if (o.epilogue.residual && map + i < o.maps)
        residual = load_vector<4>(o.epilogue.residual + pixel * o.epilogue.residual_pixel_stride + map + i);
#pragma unroll
      for (int v = 0; v < 4; ++v) y[i + v] = y[i + v] * scales[v] + shifts[v] + residual[v];
    }
    activate_each(y, o.epilogue.affine.activation, o.epilogue.affine.alpha);
#pragma unroll
    for (int i = 0; i < Tile::kThreadMaps; i += 4) {
      if (map + i < o.maps)
        store_vector(o.y + pixel * o.y_pixel_stride + map + i, Vector<float, 4>{{y[i], y[i + 1], y[i + 2], y[i + 3]}});
    }
    rotate(sums);
  }
}

// grid: tiles of maps x blocks that go through the tiles of pixels
template <class Tile> __global__ void __launch_bounds__(Tile::kThreads, 2) direct_ffma(const Params o) {
  int block = blockIdx.x;
  const int first_map = o.map_tiles.split(block) * Tile::kMaps;
  const int own_map = threadIdx.x % Tile::kGroups * Tile::kThreadMaps, column = threadIdx.x / Tile::kGroups;
  const Shared<float> window = shared_memory<float>(), filters = shared_memory<float>(Tile::kWindowBytes);
  const int tap_floats = o.in.maps * Tile::kRow;

  stage_filters<Tile>(o, first_map, filters);
  for (int tile = block; tile < o.in.tiles; tile += o.tile_blocks) {
    const StemPlace place = stem_place<Tile>(o.in, tile);
    stage_window<Tile>(o.in, place, window);
    __syncthreads();  // the window is there, and before the first tile the filters
    float sums[Tile::kPixels][Tile::kThreadMaps] = {};
#pragma unroll 1
    for (int r = 0; r < Tile::kFilter; ++r) {
#pragma unroll 1
      for (int s = 0; s < Tile::kFilter; ++s) {
        multiply<Tile>(sums, window + (r * Tile::kReadColumns + column * Tile::kStride + s) * kStemMaps,
                       filters + ((r * Tile::kFilter + s) * tap_floats + own_map), o.in.maps);
      }
    }
    __syncthreads();  // the window is read: the next may take its place
    write<Tile>(o, sums, place, place.column + column, first_map + own_map,
                filters + (Tile::kTaps * tap_floats + own_map));
  }
}

template <class Tile> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (const std::string reason = why_no_stem<Tile>(p, flags); !reason.empty()) return reason;
  if (flags.unaligned) return "an operand does not begin at a multiple of 16 bytes";
  if (p.k % 4 || p.y_stride() % 4) return "maps and pixel stride of y are no multiples of 4";
  return Tile::shared_bytes(p.c) > most_shared_bytes(flags.capability) ? "its filters do not fit shared memory" : "";
}

template <class Tile> void run(const Operands& operands, const Call& call) {
  constexpr int64_t kBlocks = 8 * 132;
  const ConvProblem& p = call.problem;
  const StemInput<float> in = StemInput<float>::of(p, operands, Tile{});
  const int64_t map_tiles = (p.k + Tile::kMaps - 1) / Tile::kMaps;
  const int64_t tile_blocks = std::min<int64_t>(in.tiles, std::max<int64_t>(kBlocks / map_tiles, 1));
  const Params o{.in = in,
                 .w = static_cast<const float*>(operands.w),
                 .y = static_cast<float*>(operands.y),
                 .epilogue = epilogue_of<float>(p, operands),
                 .y_pixel_stride = p.y_stride(),
                 .map_tiles = Divider(map_tiles),
                 .tile_blocks = static_cast<int>(tile_blocks),
                 .maps = static_cast<int>(p.k),
                 .p = static_cast<int>(p.p()),
                 .q = static_cast<int>(p.q())};
  const Grid grid{.x = map_tiles * tile_blocks, .threads = Tile::kThreads, .shared_bytes = Tile::shared_bytes(p.c)};
  launch(direct_ffma<Tile>, grid, o, call);
}

template <class Cut> void append_tile(KernelList& list) {
  const std::string tile = std::to_string(Cut::kPixels) + "x" + std::to_string(Cut::kThreadMaps) + "x" +
                           std::to_string(Cut::kFilter) + "x" + std::to_string(Cut::kStride);
  list.push_back({kernel_name("direct", Direction::fprop, DType::f32, tile), why_not<Cut>, nullptr, nullptr, run<Cut>});
}

}  // namespace

void append_direct_ffma(KernelList& list) {
  append_tile<Tile<Stem<3, 1, 64>>>(list);
  append_tile<Tile<Stem<3, 2, 32>>>(list);
  append_tile<Tile<Stem<7, 2, 64>>>(list);
  append_tile<Tile<Stem<11, 4, 32>>>(list);
}

}  // namespace cnnkern::cuda
