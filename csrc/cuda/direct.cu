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
#include "direct_product.h"
#include "kernel_list.h"

namespace cnnkern::cuda {
namespace {

template <class T, class Stem> struct Tile : StemProduct<T, Stem> {
  using Product = StemProduct<T, Stem>;
  static constexpr int kSharedBytes = Product::kWindowAt + Product::kWindowBytes;
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

// Writes a lane's maps of 2 x 2 pixels.
template <class T, class Tile>
__device__ void write(const Params<T>& o, const StemSums<T, Tile>& sums, const StemPlace& place, int first_map) {
  constexpr int kVector = kWidest<T>;
  sums.each_pixel([&](int row, int column, int own_map, float (&y)[Tile::kLaneMaps]) {
    const int p = place.row + row, q = place.column + column, map = first_map + own_map;
    if (p >= o.p || q >= o.q) return;
    const int64_t pixel = (int64_t{place.image} * o.p + p) * o.q + q;
#pragma unroll
    for (int part = 0; part < Tile::kLaneMaps; part += kVector) {
      Vector<T, kVector> residual{};
      if (o.epilogue.residual && map + part < o.maps)
        residual = load_vector<kVector>(o.epilogue.residual + pixel * o.epilogue.residual_pixel_stride + map + part);
#pragma unroll
      for (int v = 0; v < kVector; ++v) y[part + v] += to_float(residual[v]);
    }
    activate_each(y, o.epilogue.affine.activation, o.epilogue.affine.alpha);
#pragma unroll
    for (int part = 0; part < Tile::kLaneMaps; part += kVector) {
      Vector<T, kVector> rounded;
#pragma unroll
      for (int v = 0; v < kVector; ++v) rounded[v] = from_float<T>(y[part + v]);
      if (map + part < o.maps) store_vector(o.y + pixel * o.y_pixel_stride + map + part, rounded);
    }
  });
}

// grid: tiles of maps x blocks that go through the tiles of pixels
template <class T, class Tile> __global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    direct_fprop(const Params<T> o) {
  int block = blockIdx.x;
  const int first_map = o.map_tiles.split(block) * Tile::kMaps;
  stage_filters<Tile>(o.w, o.epilogue.affine, o.maps, o.in.maps, first_map);
  const typename StemSums<T, Tile>::Operands own;
  for (int tile = block; tile < o.in.tiles; tile += o.tile_blocks) {
    const StemPlace place = stem_place<Tile>(o.in, tile);
    stage_window<Tile>(o.in, place, shared_memory<T>(Tile::kWindowAt));
    __syncthreads();  // the window is there, and before the first tile the filters
    StemSums<T, Tile> sums;
    sums.multiply(own);
    __syncthreads();  // the window is read: the next may take its place
    write<T, Tile>(o, sums, place, first_map);
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
