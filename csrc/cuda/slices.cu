// Ordered sums of slices, and the gradient of a bias.
//
//   to[row][column] = epilogue(sum over j of slices[j][row][column])        dbias[k] = sum over n,p,q of dy[n,p,q,k]
//
// A thread has four neighbouring columns, or one; for dbias a block has 32 maps and a range of pixels, a warp every 8th
// pixel of it.
//
// Bound: bytes, of the slices or of dy once: dy of 56x56 pixels with 64 maps, N=256, in bf16 is 103 MB, 24 us on an
// H200 at 4.3 TB/s.
#include <primitives/launcher.h>
#include <primitives/shared.h>

#include <algorithm>

#include "pixel_ranges.h"
#include "slices.h"

namespace cnnkern::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <class T> struct AddParams {
  Slices<T> slices;
  PixelRanges ranges;  // of rows
};

template <class T, int kVector> __global__ void __launch_bounds__(kRangeThreads) add_kernel(const AddParams<T> o) {
  const PixelRanges::Own own = o.ranges.own();
  if (!own.there || own.first >= own.end) return;
  const Slices<T>& s = o.slices;
  const int64_t row = own.first, column = int64_t{own.vector} * kVector;
  const float* const from = s.from + row * s.columns + column;
  float sums[kVector] = {};
#pragma unroll 4
  for (int64_t j = 0; j < s.how_many; ++j) {
    const Vector<float, kVector> part = load_vector<kVector>(from + j * s.rows * s.columns);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[i] += part[i];
  }
  store_vector<kVector>(s.to + row * s.stride + column, s.epilogue(sums, row, static_cast<int>(column)));
}

template <class T> struct PixelParams {
  const T* dy;
  float* slices;  // [ranges][maps]
  int64_t pixels, stride, range;
  int maps, blocks_of_maps;
};

template <class T> __global__ void __launch_bounds__(kThreads) sum_kernel(const PixelParams<T> o) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t range = blockIdx.x / o.blocks_of_maps;
  const int map = static_cast<int>(blockIdx.x % o.blocks_of_maps) * 32 + lane;
  const int64_t end = std::min((range + 1) * o.range, o.pixels);
  float sum = 0;
  if (map < o.maps) {
#pragma unroll 4
    for (int64_t pixel = range * o.range + warp; pixel < end; pixel += kWarps)
      sum += to_float(o.dy[pixel * o.stride + map]);
  }
  const Shared<float> sums = shared_memory<float>();
  sums.store(warp * 32 + lane, sum);
  __syncthreads();  // all warps' sums are there
  if (warp > 0 || map >= o.maps) return;
  for (int i = 1; i < kWarps; ++i) sum += sums.load(i * 32 + lane);
  o.slices[range * o.maps + map] = sum;
}

constexpr int64_t kMostRanges = 1024, kLeastRange = 64;  // pixels
constexpr int64_t kMostSums = kMostWorkspace / 16 / 4;   // of all ranges

int64_t range_of(const ConvProblem& p) {
  const int64_t pixels = p.n * p.p() * p.q();
  const int64_t most = std::clamp<int64_t>(kMostSums / p.k, 1, kMostRanges);
  return std::max(kLeastRange, (pixels + most - 1) / most);
}
int64_t ranges_of(const ConvProblem& p) { return (p.n * p.p() * p.q() + range_of(p) - 1) / range_of(p); }

}  // namespace

template <class T> void add_slices(const Slices<T>& slices, const Call& call) {
  constexpr int kVector = 4;
  const auto fits = [](const auto* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % (kVector * sizeof(*at)) == 0 && stride % kVector == 0;
  };
  const bool vectors = fits(slices.from, slices.columns) && fits(slices.to, slices.stride) &&
                       fits(slices.epilogue.residual, slices.epilogue.residual_pixel_stride);
  const AddParams<T> o{slices, PixelRanges::short_ones(slices.rows, slices.columns / (vectors ? kVector : 1), 1)};
  if (vectors) launch(add_kernel<T, kVector>, o.ranges.grid(), o, call);
  else launch(add_kernel<T, 1>, o.ranges.grid(), o, call);
}

int64_t sum_pixels_bytes(const ConvProblem& p) { return ranges_of(p) * p.k * int64_t{sizeof(float)}; }

template <class T> void sum_pixels(const Operands& operands, float* workspace, const Call& call) {
  if (!operands.dbias) return;
  const ConvProblem& p = call.problem;
  const int blocks_of_maps = static_cast<int>((p.k + 31) / 32);
  const PixelParams<T> o{static_cast<const T*>(operands.y),
                         workspace,
                         p.n * p.p() * p.q(),
                         p.y_stride(),
                         range_of(p),
                         static_cast<int>(p.k),
                         blocks_of_maps};
  const Grid grid{.x = ranges_of(p) * blocks_of_maps, .threads = kThreads, .shared_bytes = kThreads * 4};
  launch(sum_kernel<T>, grid, o, call);
  add_slices<float>(workspace, p.k, ranges_of(p), operands.dbias, call);
}

template void add_slices(const Slices<float>&, const Call&);
template void add_slices(const Slices<bf16>&, const Call&);
template void add_slices(const Slices<f16>&, const Call&);
template void sum_pixels<float>(const Operands&, float*, const Call&);
template void sum_pixels<bf16>(const Operands&, float*, const Call&);
template void sum_pixels<f16>(const Operands&, float*, const Call&);

}  // namespace cnnkern::cuda
