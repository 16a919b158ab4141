// Global average pooling: y[n,c] = sum over an image's pixels of x[n,pixel,c] / pixels.
//
// x: NHWC with a pixel stride. A block sums up to 512 pixels of an image, for up to 32 vectors of maps: its 8 warps take
// turns with the pixels, and their sums are added in order through shared memory. Of larger images the sums of each part
// go to the workspace, [n][part][c], and the same kernel adds those: the same bits from every run.
//
// Bound: x once. ResNet-50's 2048 maps of 7x7 pixels at N = 256 in bf16 are 51 MB: 12 us at 4.3 TB/s.
#include <primitives/divide.h>
#include <primitives/launcher.h>
#include <primitives/shared.h>

#include "tools.h"
#include "with_type.h"

namespace cnnkern::cuda {
namespace {

constexpr int kLanes = 32, kWarps = 8;
constexpr int64_t kPart = 512;  // pixels

int64_t parts_of(int64_t pixels) { return (pixels + kPart - 1) / kPart; }

template <class From, class To> struct Params {
  const From* x;  // [images][pixels][maps]
  To* y;          // [images][parts][maps]
  int64_t pixel_stride;
  Divider tiles, parts;  // of maps; of an image
  int maps;
  int64_t pixels;
  float divisor;
};

// grid: tiles of maps x parts x images
template <class From, class To, int kVector>
__global__ void __launch_bounds__(kLanes* kWarps) sum_pixels(const Params<From, To> o) {
  int image = blockIdx.x;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int map = (o.tiles.split(image) * kLanes + lane) * kVector;
  const int part = o.parts.split(image);
  const int64_t first = part * kPart, last = first + kPart < o.pixels ? first + kPart : o.pixels;
  Vector<float, kVector> sums{};
  if (map < o.maps) {
    const From* const from = o.x + image * o.pixels * o.pixel_stride + map;
#pragma unroll 4
    for (int64_t pixel = first + warp; pixel < last; pixel += kWarps) {
      const Vector<From, kVector> x = load_vector<kVector>(from + pixel * o.pixel_stride);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums[i] += to_float(x[i]);
    }
  }
  const Shared<float> all = shared_memory<float>();
  all.store_vector<kVector>(threadIdx.x * kVector, sums);
  __syncthreads();  // the first warp reads what all have written
  if (warp > 0 || map >= o.maps) return;
  for (int i = 1; i < kWarps; ++i) {
    const Vector<float, kVector> other = all.load_vector<kVector>((i * kLanes + lane) * kVector);
#pragma unroll
    for (int v = 0; v < kVector; ++v) sums[v] += other[v];
  }
  Vector<To, kVector> y;
#pragma unroll
  for (int i = 0; i < kVector; ++i) y[i] = from_float<To>(sums[i] / o.divisor);
  store_vector(o.y + (int64_t{image} * o.parts.divisor() + part) * o.maps + map, y);
}

template <class From, class To>
void run_sum(int64_t n, int64_t pixels, int64_t c, const void* x, int64_t pixel_stride, void* y, int64_t divisor,
             const Call& call) {
  constexpr int kWide = kWidest<From>;
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % (kWide * sizeof(float)) == 0; };
  const bool vectors = c % kWide == 0 && pixel_stride % kWide == 0 && aligned(x) && aligned(y);
  const int64_t per_tile = kLanes * (vectors ? kWide : 1), tiles = (c + per_tile - 1) / per_tile;
  const Params<From, To> o{.x = static_cast<const From*>(x),
                           .y = static_cast<To*>(y),
                           .pixel_stride = pixel_stride,
                           .tiles = Divider(tiles),
                           .parts = Divider(parts_of(pixels)),
                           .maps = static_cast<int>(c),
                           .pixels = pixels,
                           .divisor = static_cast<float>(divisor)};
  const Grid grid{.x = tiles * parts_of(pixels) * n,
                  .threads = kLanes * kWarps,
                  .shared_bytes = kLanes * kWarps * (vectors ? kWide : 1) * static_cast<int>(sizeof(float))};
  launch(vectors ? sum_pixels<From, To, kWide> : sum_pixels<From, To, 1>, grid, o, call);
}

template <class T>
void run(int64_t n, int64_t pixels, int64_t c, const void* x, int64_t x_pixel_stride, void* y, void* workspace,
         const Call& call) {
  const int64_t parts = parts_of(pixels);
  if (parts == 1) return run_sum<T, T>(n, pixels, c, x, x_pixel_stride, y, pixels, call);
  if (parts > kPart) fail(call, "an image has more than " + std::to_string(kPart * kPart) + " pixels");
  run_sum<T, float>(n, pixels, c, x, x_pixel_stride, workspace, 1, call);
  run_sum<float, T>(n, parts, c, workspace, c, y, pixels, call);
}

}  // namespace

int64_t global_avg_pool2d_workspace_bytes(int64_t n, int64_t pixels, int64_t c) {
  const int64_t parts = parts_of(pixels);
  return parts == 1 ? 0 : n * parts * c * static_cast<int64_t>(sizeof(float));
}

void global_avg_pool2d(DType dtype, int64_t n, int64_t pixels, int64_t c, const void* x, int64_t x_pixel_stride,
                       void* y, void* workspace, const Call& call) {
  with_type(dtype, call, [&]<class T>(T) { run<T>(n, pixels, c, x, x_pixel_stride, y, workspace, call); });
}

}  // namespace cnnkern::cuda
