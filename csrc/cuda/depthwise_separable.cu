// Depthwise-separable convolution, fused (MobileNet, arXiv 1704.04861):
//
//   z[n,p,q,c] = act_dw(scale_dw * sum over r,s of x[n, p*u - pad + r*l, q*u - pad + s*l, c] * w_dw[c,r,s] + shift_dw)
//   y[n,p,q,k] = act_pw(scale_pw * sum over c of z[n,p,q,c] * w_pw[k,c] + shift_pw)
//
// x, y: NHWC with pixel strides; w_dw: [C][R][S]; w_pw: [K][C]. Any filter, stride and dilation of the first step.
//
// The idea: z is never written to memory. A block has 64 pixels and 64, 128 or 256 maps of y. Chunk by chunk (128 bytes of
// maps) its threads compute z, 16 bytes each, round it to the tensors' type into shared memory and multiply it with that
// chunk of w_pw, which has come by asynchronous copies meanwhile: on tensor cores, or on the FMA units for float without
// TF32. Maps of y beyond a block's have z computed again.
//
// Bound: x and y once, where two convolutions move x + 2 z + y. MobileNetV1's conv14 and conv15, 512 maps of 14x14 pixels at
// N = 256 in bf16: 103 MB, 24 us at 4.3 TB/s; the 1x1's 13 GFMA take 55 us of tensor cores by mma.sync (60% of 790
// TFLOP/s), and the depthwise step, twice with 512 maps of y, 0.46 GFMA: 14 us of the FMA units.
#include <primitives/copy.h>
#include <primitives/divide.h>
#include <primitives/launcher.h>
#include <primitives/mma_sm80.h>
#include <primitives/shared.h>

#include <algorithm>

#include "naming.h"
#include "thread_tile.h"
#include "tools.h"

namespace cnnkern::cuda {
namespace {

constexpr int kThreads = 256, kPixels = 64, kMostTaps = 121;
constexpr int kChunkBytes = 128, kPitchBytes = kChunkBytes + 16;  // 16 more: eight rows are then in different banks

// kMaps maps of y. Tensor cores: 2 x 4 warps of 32 pixels; FMA units: 16 x 16 threads of 4 pixels.
template <class T_, int kMaps_, bool kTensorCores_> struct Tile {
  using T = T_;
  static constexpr int kMaps = kMaps_;
  static constexpr bool kTensorCores = kTensorCores_;
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T)),
                       kPitch = kPitchBytes / static_cast<int>(sizeof(T));
  static constexpr int kWarpMaps = kMaps / 4, kColumnTiles = kWarpMaps / 8;
  static constexpr int kLaneMaps = kTensorCores ? kWarpMaps / 4 : kMaps / 16;  // for each of a thread's 4 pixels
  static constexpr int kZ = 0, kWeights = kPixels * kPitchBytes;               // offsets in shared memory, in bytes
  static constexpr int kScales = kWeights + kMaps * kPitchBytes;               // scale and shift of the 1x1, in float
  static constexpr int kFilters = kScales + 2 * kMaps * 4;                     // [tap, scale, shift][chunk], in float
  static_assert(kFilters + (kMostTaps + 2) * kChunk * 4 <= kSharedOfEveryGpu);
  static int shared_bytes(int64_t taps) { return static_cast<int>(kFilters + (taps + 2) * kChunk * 4); }

  // The map that stands in row `slot` of the weights: so permuted that a lane's sums are neighbouring maps of y.
  static __device__ int map_of(int slot) {
    if constexpr (!kTensorCores) return slot;
    const int column = slot % 8, column_tile = slot % kWarpMaps / 8;
    return slot / kWarpMaps * kWarpMaps + column / 2 * kLaneMaps + 2 * column_tile + column % 2;
  }
};

template <class T> struct Params {
  const T *x, *filters, *weights;
  T* y;
  Affine<T> first, second;
  int64_t x_pixel_stride, y_pixel_stride;
  Divider map_tiles, filter_s, width, height;
  int pixels, channels, maps, taps;
  int h, w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};

// Starts the copies of a chunk of w_pw: [slot][chunk], zero beyond the last map and channel.
template <class Tile> __device__ void copy_weights(const Params<typename Tile::T>& o, int first_map, int first) {
  using T = typename Tile::T;
  constexpr int kVectors = kChunkBytes / 16;
  const Shared<T> weights = shared_memory<T>(Tile::kWeights);
  for (int i = threadIdx.x; i < Tile::kMaps * kVectors; i += kThreads) {
    const int slot = i / kVectors, map = first_map + Tile::map_of(slot), c = first + i % kVectors * kWidest<T>;
    const bool there = map < o.maps && c < o.channels;
    const T* const from = o.weights + (there ? int64_t{map} * o.channels + c : 0);
    copy_async<16>(weights + (slot * Tile::kPitch + i % kVectors * kWidest<T>), from, there);
  }
  commit_copies();
}

// A chunk of the depthwise filters with their scale and shift, as float: [tap, scale, shift][chunk].
template <class Tile> __device__ void stage_filters(const Params<typename Tile::T>& o, int first) {
  const Shared<float> staged = shared_memory<float>(Tile::kFilters);
  const int there = min(Tile::kChunk, o.channels - first);
  for (int i = threadIdx.x; i < there * o.taps; i += kThreads)
    staged.store(i % o.taps * Tile::kChunk + i / o.taps, to_float(o.filters[int64_t{first} * o.taps + i]));
  for (int i = threadIdx.x; i < there; i += kThreads) {
    staged.store(o.taps * Tile::kChunk + i, o.first.scale ? o.first.scale[first + i] : 1);
    staged.store((o.taps + 1) * Tile::kChunk + i, o.first.shift ? o.first.shift[first + i] : 0);
  }
}

// A chunk of z: [pixel][chunk], zero beyond the last pixel and channel.
template <class Tile> __device__ void compute_z(const Params<typename Tile::T>& o, int first_pixel, int first) {
  using T = typename Tile::T;
  constexpr int kVector = kWidest<T>, kVectors = kChunkBytes / 16;
  const Shared<T> z = shared_memory<T>(Tile::kZ);
  const Shared<float> filters = shared_memory<float>(Tile::kFilters);
  for (int i = threadIdx.x; i < kPixels * kVectors; i += kThreads) {
    const int own = i % kVectors * kVector, c = first + own, pixel = first_pixel + i / kVectors;
    Vector<T, kVector> rounded{};
    if (pixel < o.pixels && c < o.channels) {
      int image = pixel;
      const int column = o.width.split(image) * o.stride_w - o.pad_left;
      const int row = o.height.split(image) * o.stride_h - o.pad_top;
      float sums[1][kVector] = {};
      for (int tap = 0; tap < o.taps; ++tap) {
        int r = tap;
        const int s = o.filter_s.split(r), h = row + r * o.dilation_h, w = column + s * o.dilation_w;
        if (h < 0 || h >= o.h || w < 0 || w >= o.w) continue;
        const int64_t at = ((int64_t{image} * o.h + h) * o.w + w) * o.x_pixel_stride + c;
        const Packed<T, kVector> x(load_vector<kVector>(o.x + at));
#pragma unroll
        for (int v = 0; v < kVector; v += 4) {
          const Vector<float, 4> weights = filters.load_vector<4>(tap * Tile::kChunk + own + v);
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[0][v + j] += to_float(x[v + j]) * weights[j];
        }
      }
      const Vector<float, kVector> scale = filters.load_vector<kVector>(o.taps * Tile::kChunk + own);
      const Vector<float, kVector> shift = filters.load_vector<kVector>((o.taps + 1) * Tile::kChunk + own);
#pragma unroll
      for (int v = 0; v < kVector; ++v) sums[0][v] = sums[0][v] * scale[v] + shift[v];
      activate_each(sums[0], o.first.activation, o.first.alpha);
#pragma unroll
      for (int v = 0; v < kVector; ++v) rounded[v] = from_float<T>(sums[0][v]);
    }
    z.store_vector(i / kVectors * Tile::kPitch + own, rounded);
  }
}

template <class Tile> struct Fragments { float at[2][Tile::kColumnTiles][4]; };  // of 2 x 16 pixels x 8 maps each

// Adds a chunk's products of one warp's 32 pixels x kWarpMaps maps.
template <class Tile> __device__ void multiply(Fragments<Tile>& sums) {
  using T = typename Tile::T;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp / 4 * 32, slot = warp % 4 * Tile::kWarpMaps;
  // Matrices of a: rows 0 and 8 of the first 16 bytes of a step, then of the second; of b: both halves of two tiles.
  const Shared<T> a_row = shared_memory<T>(Tile::kZ + (row + lane % 16) * kPitchBytes + lane / 16 * 16);
  const Shared<T> b_row =
      shared_memory<T>(Tile::kWeights + (slot + lane / 16 * 8 + lane % 8) * kPitchBytes + lane / 8 % 2 * 16);
#pragma unroll
  for (int step = 0; step < kChunkBytes / 32; ++step) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices(a[i], a_row + (i * 16 * Tile::kPitch + step * kMmaK<T>));
#pragma unroll
    for (int j = 0; j < Tile::kColumnTiles; j += 2) {
      uint32_t b[4];
      load_matrices(b, b_row + (j * 8 * Tile::kPitch + step * kMmaK<T>));
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mma<T>(sums.at[i][j], a[i], left);
        mma<T>(sums.at[i][j + 1], a[i], right);
      }
    }
  }
}

// The same on the FMA units: a thread has 4 neighbouring pixels and every 16th map, whose rows are in different banks.
template <class Tile> __device__ void multiply(float (&sums)[4][Tile::kLaneMaps]) {
  const Shared<float> z = shared_memory<float>(Tile::kZ + threadIdx.x / 16 * 4 * kPitchBytes);
  const Shared<float> weights = shared_memory<float>(Tile::kWeights + threadIdx.x % 16 * kPitchBytes);
#pragma unroll 1
  for (int c = 0; c < Tile::kChunk; c += 4) {
    Vector<float, 4> a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = z.load_vector<4>(i * Tile::kPitch + c);
#pragma unroll
    for (int j = 0; j < Tile::kLaneMaps; ++j) {
      const Vector<float, 4> b = weights.load_vector<4>(j * 16 * Tile::kPitch + c);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[i][j] += a[i][v] * b[v];
    }
  }
}

// Writes kVector neighbouring maps of one pixel for each kVector of `y`, which begin kStep maps apart.
template <class Tile, int kVector, int kStep>
__device__ void write_pixel(const Params<typename Tile::T>& o, float (&y)[Tile::kLaneMaps], int64_t pixel,
                            int first_map, int own_map) {
  using T = typename Tile::T;
  const Shared<float> scale = shared_memory<float>(Tile::kScales) + own_map, shift = scale + Tile::kMaps;
#pragma unroll
  for (int j = 0; j < Tile::kLaneMaps; ++j) {
    const int at = j / kVector * kStep + j % kVector;
    y[j] = y[j] * scale.load(at) + shift.load(at);
  }
  activate_each(y, o.second.activation, o.second.alpha);
#pragma unroll
  for (int j = 0; j < Tile::kLaneMaps; j += kVector) {
    const int map = first_map + own_map + j / kVector * kStep;
    Vector<T, kVector> rounded;
#pragma unroll
    for (int v = 0; v < kVector; ++v) rounded[v] = from_float<T>(y[j + v]);
    if (map < o.maps) store_vector(o.y + pixel * o.y_pixel_stride + map, rounded);
  }
}

// grid: tiles of maps x tiles of pixels
template <class Tile> __global__ void __launch_bounds__(kThreads, 2) separable_fprop(const Params<typename Tile::T> o) {
  int block = blockIdx.x;
  const int first_map = o.map_tiles.split(block) * Tile::kMaps, first_pixel = block * kPixels;
  const Shared<float> scale = shared_memory<float>(Tile::kScales), shift = scale + Tile::kMaps;
  for (int i = threadIdx.x; i < Tile::kMaps; i += kThreads) {  // read after the last barrier
    const int map = first_map + i;
    scale.store(i, o.second.scale && map < o.maps ? o.second.scale[map] : 1);
    shift.store(i, o.second.shift && map < o.maps ? o.second.shift[map] : 0);
  }
  float sums[4][Tile::kLaneMaps] = {};
  [[maybe_unused]] Fragments<Tile> fragments{};
#pragma unroll 1
  for (int first = 0; first < o.channels; first += Tile::kChunk) {
    copy_weights<Tile>(o, first_map, first);
    stage_filters<Tile>(o, first);
    __syncthreads();  // the depthwise filters are there
    compute_z<Tile>(o, first_pixel, first);
    wait_copies<0>();
    __syncthreads();  // z and w_pw are there
    if constexpr (Tile::kTensorCores) multiply<Tile>(fragments);
    else multiply<Tile>(sums);
    __syncthreads();  // all of the chunk is read: the next may take its place
  }

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if constexpr (Tile::kTensorCores) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kLaneMaps; ++j) sums[i][j] = fragments.at[i / 2][j / 2][i % 2 * 2 + j % 2];
  }
  const int own_pixel = Tile::kTensorCores ? warp / 4 * 32 + lane / 4 : static_cast<int>(threadIdx.x) / 16 * 4;
  const int own_map =
      Tile::kTensorCores ? warp % 4 * Tile::kWarpMaps + lane % 4 * Tile::kLaneMaps : static_cast<int>(threadIdx.x) % 16;
#pragma unroll 1
  for (int i = 0; i < 4; ++i, rotate(sums)) {
    const int pixel = first_pixel + own_pixel + i * (Tile::kTensorCores ? 8 : 1);
    if (pixel >= o.pixels) continue;
    constexpr int kVector = std::min(kWidest<typename Tile::T>, Tile::kLaneMaps);
    if constexpr (Tile::kTensorCores) write_pixel<Tile, kVector, kVector>(o, sums[0], pixel, first_map, own_map);
    else write_pixel<Tile, 1, 16>(o, sums[0], pixel, first_map, own_map);
  }
}

template <class Tile>
void run(const ConvProblem& p, const ConvProblem& pointwise, const Operands& first, const Operands& second,
         const Call& call) {
  using T = typename Tile::T;
  const auto whole = [](int64_t v) { return static_cast<int>(v); };
  const int64_t map_tiles = (pointwise.k + Tile::kMaps - 1) / Tile::kMaps, pixels = p.n * p.p() * p.q();
  Affine<T> first_affine = epilogue_of<T>(p, first).affine, second_affine = epilogue_of<T>(pointwise, second).affine;
  const Params<T> o{.x = static_cast<const T*>(first.x),
                    .filters = static_cast<const T*>(first.w),
                    .weights = static_cast<const T*>(second.w),
                    .y = static_cast<T*>(second.y),
                    .first = first_affine,
                    .second = second_affine,
                    .x_pixel_stride = p.x_stride(),
                    .y_pixel_stride = pointwise.y_stride(),
                    .map_tiles = Divider(map_tiles),
                    .filter_s = Divider(p.s),
                    .width = Divider(p.q()),
                    .height = Divider(p.p()),
                    .pixels = whole(pixels),
                    .channels = whole(p.c),
                    .maps = whole(pointwise.k),
                    .taps = whole(p.r * p.s),
                    .h = whole(p.h),
                    .w = whole(p.w),
                    .stride_h = whole(p.stride_h),
                    .stride_w = whole(p.stride_w),
                    .pad_top = whole(p.pad_top),
                    .pad_left = whole(p.pad_left),
                    .dilation_h = whole(p.dilation_h),
                    .dilation_w = whole(p.dilation_w)};
  const Grid grid{.x = map_tiles * ((pixels + kPixels - 1) / kPixels),
                  .threads = kThreads,
                  .shared_bytes = Tile::shared_bytes(p.r * p.s)};
  launch(separable_fprop<Tile>, grid, o, call);
}

template <class T, bool kTensorCores>
void run_narrowest(const ConvProblem& p, const ConvProblem& pointwise, const Operands& first, const Operands& second,
                   const Call& call) {
  if (pointwise.k <= 64) return run<Tile<T, 64, kTensorCores>>(p, pointwise, first, second, call);
  if (pointwise.k <= 128) return run<Tile<T, 128, kTensorCores>>(p, pointwise, first, second, call);
  return run<Tile<T, 256, kTensorCores>>(p, pointwise, first, second, call);
}

}  // namespace

std::string separable_why_not(const ConvProblem& depthwise, const ConvProblem& pointwise, const Flags& flags) {
  if (depthwise.dtype == DType::f64) return "it does not compute in float64";
  if (!depthwise.depthwise()) return "the first convolution needs one filter per map: groups == C == K";
  if (depthwise.r * depthwise.s > kMostTaps)
    return "its depthwise filter has more than " + std::to_string(kMostTaps) + " taps";
  if (!pointwise.pointwise() || pointwise.strided() || pointwise.groups != 1)
    return "the second convolution needs to be a dense 1x1 at stride 1";
  if (pointwise.k > 512) return "of more than 512 maps of y each tile of 256 would compute the first convolution again";
  if (depthwise.prologue != Prologue{} || pointwise.prologue != Prologue{}) return "it has no prologue";
  if (depthwise.epilogue.residual || pointwise.epilogue.residual) return "it adds no residual";
  if (flags.unaligned) return "an operand does not begin at a multiple of 16 bytes";
  const int64_t vector = 16 / kDTypeSizes[static_cast<int>(depthwise.dtype)];
  for (const int64_t size : {depthwise.c, depthwise.x_stride(), pointwise.k, pointwise.y_stride()})
    if (size % vector) return "maps and pixel strides are no multiples of " + std::to_string(vector);
  return too_many_pixels(depthwise);
}

void separable(const ConvProblem& depthwise, const ConvProblem& pointwise, const Flags& flags, const Operands& first,
               const Operands& second, const Call& call) {
  switch (depthwise.dtype) {
    case DType::bf16: return run_narrowest<bf16, true>(depthwise, pointwise, first, second, call);
    case DType::f16: return run_narrowest<f16, true>(depthwise, pointwise, first, second, call);
    default: break;
  }
  if (flags.tf32) return run_narrowest<float, true>(depthwise, pointwise, first, second, call);
  return run_narrowest<float, false>(depthwise, pointwise, first, second, call);
}

}  // namespace cnnkern::cuda
