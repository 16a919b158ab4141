// A stem and its max pooling in one kernel: fprop for few input maps on tensor cores (direct.cu), 3x3/2 windows of
// whose result are reduced in shared memory, so that the result itself never goes to memory.
//
//   z[n,p,q,k] = act(scale[k] * sum over r,s,c of x[n, p*u - pad + r, q*u - pad + s, c] * w[k,r,s,c] + shift[k])
//   y[n,i,j,k] = max over a, b < 3 of z[n, 2 i - pool_pad + a, 2 j - pool_pad + b, k], NaN being the largest
//
// x: NHWC with a pixel stride, at most 4 maps; w: [K][R][S][C]; y: NHWC. A block has tiles of 7 x 7 pixels of y and 32
// or 64 maps, and makes the 16 x 16 pixels of z that they see, of which 15 x 15 are used: a row and a column at two of
// a tile's sides are made again by the tile beside it. z is rounded before it is compared, so y is what convolution and
// pooling give one after the other.
//
// Bound: x and y. ResNet's 7x7/2, 3 -> 64 maps on 224x224 pixels, N = 256, bf16: 77 MB and 103 MB, 42 us at 4.3 TB/s.
// The products are 43 GFMA of padded gemm_k, 1.31 times that with the pixels that are made twice: 0.14 ms of 790
// TFLOP/s, 0.24 ms at the 60% that mma.sync reaches, and 0.25 ms are predicted. Convolution (0.18 ms) and pooling (0.21
// ms, 0.1 of them for places that only a gradient needs) take 0.39 ms.
#include <span>

#include "direct_product.h"
#include "tools.h"

namespace cnnkern::cuda {
namespace {

constexpr int kPool = 3, kPoolStride = 2;

template <class T, class Stem> struct Tile : StemProduct<T, Stem> {
  using Product = StemProduct<T, Stem>;
  static constexpr int kPooled = (Stem::kRows - kPool) / kPoolStride + 1;  // of the tile, on either axis
  static_assert(Stem::kRows == Stem::kColumns);
  // z in shared memory: [pixel][map], pixels 16 bytes further apart than maps need: of 64 maps, 8 lanes meet all banks.
  static constexpr int kPitch = Stem::kMaps + kWidest<T>;
  static constexpr int kZAt = Product::kWindowAt + Product::kWindowBytes;
  static constexpr int kSharedBytes = kZAt + Stem::kRows * Stem::kColumns * kPitch * static_cast<int>(sizeof(T));
  static constexpr int kBlocks = 2 * kSharedBytes <= 227 << 10 ? 2 : 1;  // of a multiprocessor
};

template <class T> struct Params {
  StemInput<T> in;  // its tiles are those of y
  const T* w;
  T* y;
  Affine<T> affine;
  Divider map_tiles;
  int tile_blocks;  // blocks that share the tiles of y
  int maps, z_height, z_width, height, width, pad_h, pad_w;
};

// A lane's part of z: below everything where there is no pixel of z.
template <class T, class Tile>
__device__ void put(const Params<T>& o, const StemSums<T, Tile>& sums, const StemPlace& first) {
  constexpr int kVector = kWidest<T>;
  const Shared<T> z = shared_memory<T>(Tile::kZAt);
  sums.each_pixel([&](int row, int column, int map, float (&values)[Tile::kLaneMaps]) {
    const int p = first.row + row, q = first.column + column;
    const bool there = p >= 0 && p < o.z_height && q >= 0 && q < o.z_width;
    activate_each(values, o.affine.activation, o.affine.alpha);
#pragma unroll
    for (int part = 0; part < Tile::kLaneMaps; part += kVector) {
      Vector<T, kVector> rounded;
#pragma unroll
      for (int v = 0; v < kVector; ++v)
        rounded[v] = from_float<T>(there ? values[part + v] : -std::numeric_limits<float>::infinity());
      z.store_vector((row * Tile::kColumns + column) * Tile::kPitch + map + part, rounded);
    }
  });
}

// The tile of y, whose first pixel is `place`: a thread has a vector of maps of one pixel after the other.
template <class T, class Tile> __device__ void pool(const Params<T>& o, const StemPlace& place, int first_map) {
  constexpr int kVector = kWidest<T>, kVectors = Tile::kMaps / kVector;
  const Shared<T> z = shared_memory<T>(Tile::kZAt);
  for (int i = threadIdx.x; i < Tile::kPooled * Tile::kPooled * kVectors; i += Tile::kThreads) {
    const int own_map = i % kVectors * kVector, pixel = i / kVectors, map = first_map + own_map;
    const int own_row = pixel / Tile::kPooled, own_column = pixel % Tile::kPooled;
    const int row = place.row + own_row, column = place.column + own_column;
    if (row >= o.height || column >= o.width || map >= o.maps) continue;
    const int first = (own_row * Tile::kColumns + own_column) * kPoolStride * Tile::kPitch + own_map;
    float best[kVector];
#pragma unroll
    for (int tap = 0; tap < kPool * kPool; ++tap) {
      const int at = first + (tap / kPool * Tile::kColumns + tap % kPool) * Tile::kPitch;
      const Vector<T, kVector> values = z.template load_vector<kVector>(at);
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const float value = to_float(values[v]);
        if (tap == 0 || value > best[v] || value != value) best[v] = value;
      }
    }
    Vector<T, kVector> y;
#pragma unroll
    for (int v = 0; v < kVector; ++v) y[v] = from_float<T>(best[v]);
    store_vector(o.y + ((int64_t{place.image} * o.height + row) * o.width + column) * o.maps + map, y);
  }
}

// grid: tiles of maps x blocks that go through the tiles of y
template <class T, class Tile> __global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    direct_pool(const Params<T> o) {
  int block = blockIdx.x;
  const int first_map = o.map_tiles.split(block) * Tile::kMaps;
  stage_filters<Tile>(o.w, o.affine, o.maps, o.in.maps, first_map);
  const typename StemSums<T, Tile>::Operands own;
  for (int tile = block; tile < o.in.tiles; tile += o.tile_blocks) {
    int image = tile;
    const int column = o.in.tile_columns.split(image) * Tile::kPooled;
    const int row = o.in.tile_rows.split(image) * Tile::kPooled;
    const StemPlace of_z{image, row * kPoolStride - o.pad_h, column * kPoolStride - o.pad_w};
    stage_window<Tile>(o.in, of_z, shared_memory<T>(Tile::kWindowAt));
    __syncthreads();  // the window is there, and the filters; the tile before this is pooled: z may be put
    StemSums<T, Tile> sums;
    sums.multiply(own);
    put<T, Tile>(o, sums, of_z);
    __syncthreads();  // z is there, and the window is read: the next may take its place
    pool<T, Tile>(o, {image, row, column}, first_map);
  }
}

template <class T, class Tile> std::string why_not(const ConvProblem& p, const Flags& flags) {
  if (Tile::kSharedBytes > most_shared_bytes(flags.capability)) return "its tile does not fit shared memory";
  return why_no_stem<Tile>(p, flags);
}

template <class T, class Tile>
void run(const ConvProblem& p, const Pooling& pooling, const Operands& operands, const Call& call) {
  constexpr int64_t kBlocks = 4 * 132;
  const auto whole = [](int64_t v) { return static_cast<int>(v); };
  const int64_t columns = (pooling.q + Tile::kPooled - 1) / Tile::kPooled;
  const int64_t rows = (pooling.p + Tile::kPooled - 1) / Tile::kPooled;
  const int64_t map_tiles = (p.k + Tile::kMaps - 1) / Tile::kMaps, tiles = p.n * rows * columns;
  const int64_t tile_blocks = std::min(tiles, std::max<int64_t>(kBlocks / map_tiles, 1));
  Params<T> o{.in = StemInput<T>::of(p, operands, Tile{}),
              .w = static_cast<const T*>(operands.w),
              .y = static_cast<T*>(operands.y),
              .affine = epilogue_of<T>(p, operands).affine,
              .map_tiles = Divider(map_tiles),
              .tile_blocks = whole(tile_blocks),
              .maps = whole(p.k),
              .z_height = whole(p.p()),
              .z_width = whole(p.q()),
              .height = whole(pooling.p),
              .width = whole(pooling.q),
              .pad_h = whole(pooling.pad_h),
              .pad_w = whole(pooling.pad_w)};
  o.in.tile_columns = Divider(columns);
  o.in.tile_rows = Divider(rows);
  o.in.tiles = whole(tiles);
  const Grid grid{.x = map_tiles * tile_blocks, .threads = Tile::kThreads, .shared_bytes = Tile::kSharedBytes};
  launch(direct_pool<T, Tile>, grid, o, call);
}

// One way to run a stem with its pooling.
struct Instance {
  std::string (*why_not)(const ConvProblem&, const Flags&);
  void (*run)(const ConvProblem&, const Pooling&, const Operands&, const Call&);
};

template <class T, int kFilter, int kStride, int kMaps> constexpr Instance instance() {
  using Cut = Tile<T, Stem<kFilter, kStride, kMaps, 16>>;
  return {why_not<T, Cut>, run<T, Cut>};
}

template <class T> constexpr Instance kInstances[] = {
    instance<T, 3, 2, 32>(),                        // ShuffleNet, SqueezeNet 1.1
    instance<T, 7, 2, sizeof(T) == 2 ? 64 : 32>(),  // GoogLeNet, ResNet, DenseNet
    instance<T, 11, 4, 32>(),                       // AlexNet
};

const Instance* instances_of(DType dtype) {
  return dtype == DType::f32 ? kInstances<float> : dtype == DType::bf16 ? kInstances<bf16> : kInstances<f16>;
}

// The first instance that can, or null with what the last of them says.
const Instance* find(const ConvProblem& p, const Flags& flags, std::string& reason) {
  for (const Instance& one : std::span(instances_of(p.dtype), std::size(kInstances<float>))) {
    reason = one.why_not(p, flags);
    if (reason.empty()) return &one;
  }
  return nullptr;
}

}  // namespace

std::string conv_max_pool2d_why_not(const ConvProblem& p, const Pooling& pooling, const Flags& flags) {
  if (p.dtype == DType::f64) return "it does not compute in float64";
  if (p.dtype == DType::f32 && !flags.tf32) return "TF32 is not allowed";
  if (p.epilogue.residual) return "it adds no residual";
  if (pooling.r != kPool || pooling.s != kPool || pooling.stride_h != kPoolStride || pooling.stride_w != kPoolStride ||
      pooling.dilation_h != 1 || pooling.dilation_w != 1)
    return "its pooling is not by 3x3 windows with stride 2";
  if (flags.unaligned) return "an operand does not begin at a multiple of 16 bytes";
  const int64_t vector = 16 / kDTypeSizes[static_cast<int>(p.dtype)];
  if (p.k % vector) return "maps of y are no multiple of " + std::to_string(vector);
  std::string reason;
  return find(p, flags, reason) ? "" : reason;
}

void conv_max_pool2d(const ConvProblem& p, const Pooling& pooling, const Flags& flags, const Operands& operands,
                     const Call& call) {
  std::string reason;
  const Instance* const found = find(p, flags, reason);
  if (!found) fail(call, reason);
  found->run(p, pooling, operands, call);
}

}  // namespace cnnkern::cuda
