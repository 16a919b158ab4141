// Statistics of the maps of z over its pixels, for batch normalisation in training.
//
//   partials [partials][3][maps]  each of pixels of its own: count, mean, M2 (moments.h), in float
//   moments [4][maps]             mean, var = M2 / count, scale = gamma / sqrt(var + eps), shift = beta - mean * scale
//
// A convolution leaves partials in its epilogue, of the values that it writes, so that z is not read again for them;
// for one that leaves none `batch_statistics` reads z: a thread takes in its maps of every nth pixel of a range
// (Welford), and a block merges its threads'. `batch_moments` merges partials, 512 of 32 maps in a block, until that is
// one; the last block works out the moments and moves the running statistics. The order is fixed: the same bits from
// every run.
//
// Bound: bytes. z of 56x56 pixels with 64 maps, N=256, in bf16 is 103 MB: 24 us on an H200 at 4.3 TB/s where z is read.
// Of 128 pixels a partial is 12 bytes for 256 of z: 5 MB, 2 us and two launches.
#include <primitives/launcher.h>

#include "moments.h"
#include "pixel_ranges.h"
#include "tools.h"
#include "with_type.h"

namespace cnnkern::cuda {
namespace {

constexpr int64_t kMostPartials = 512;  // of z, and merged by a block: about four blocks for each multiprocessor
constexpr int kLanes = 32, kRows = 16;  // of a block that merges

template <class T> struct StatisticsParams {
  const T* z;
  float* partials;
  int64_t maps;
  PixelRanges ranges;
};

template <class T, int kVector>
__global__ void __launch_bounds__(kRangeThreads) take_statistics(const StatisticsParams<T> o) {
  const PixelRanges::Own own = o.ranges.own();
  const int map = own.vector * kVector;
  MomentsOfMaps<kVector> moments;
  if (own.there) {
#pragma unroll 4
    for (int64_t pixel = own.first; pixel < own.end; pixel += o.ranges.rows) {
      moments.add(load_vector<kVector>(o.z + pixel * o.maps + map));
    }
  }
  merge_rows(moments, own.row, o.ranges.rows, own.lane, o.ranges.lanes.divisor());
  if (own.row > 0 || !own.there) return;
  store_moments(o.partials + own.range * 3 * o.maps + map, o.maps, moments);
}

struct MergeParams {
  const float* partials;
  float* merged;  // null: these are the last
  BatchNorm layer;
  RunningStatistics running;
  int64_t count;  // of partials
  Divider tiles;  // of maps
};

__device__ inline void finish(const BatchNorm& layer, const RunningStatistics& running, int64_t map,
                              const Moments& all) {
  const auto count = static_cast<float>(layer.pixels);
  const float var = all.m2 / count, scale = (layer.gamma ? layer.gamma[map] : 1) / sqrtf(var + layer.eps);
  layer.moments[map] = all.mean;
  layer.moments[layer.maps + map] = var;
  layer.moments[2 * layer.maps + map] = scale;
  layer.moments[3 * layer.maps + map] = (layer.beta ? layer.beta[map] : 0) - all.mean * scale;
  if (!running.mean) return;
  running.mean[map] += running.momentum * (all.mean - running.mean[map]);
  running.var[map] += running.momentum * (all.m2 / (count - 1) - running.var[map]);
}

// grid: tiles of 32 maps x ranges of partials
__global__ void __launch_bounds__(kLanes* kRows) merge_partials(const MergeParams o) {
  int range = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % kLanes, row = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t maps = o.layer.maps, map = int64_t{o.tiles.split(range)} * kLanes + lane;
  const int64_t first = range * kMostPartials, last = first + kMostPartials < o.count ? first + kMostPartials : o.count;
  Moments all;
  if (map < maps) {
#pragma unroll 4
    for (int64_t partial = first + row; partial < last; partial += kRows)
      all.merge(load_moments(o.partials + partial * 3 * maps + map, maps));
  }
  merge_rows(all, row, kRows, lane, kLanes);
  if (row > 0 || map >= maps) return;
  if (o.merged) store_moments(o.merged + int64_t{range} * 3 * maps + map, maps, all);
  else finish(o.layer, o.running, map, all);
}

template <class T> bool in_vectors(int64_t maps) { return maps % kWidest<T> == 0; }

template <class T> PixelRanges ranges_of(int64_t pixels, int64_t maps) {
  return PixelRanges::long_ones(pixels, in_vectors<T>(maps) ? maps / kWidest<T> : maps, kMostPartials);
}

template <class T> void run(int64_t pixels, int64_t maps, const void* z, float* partials, const Call& call) {
  const StatisticsParams<T> o{static_cast<const T*>(z), partials, maps, ranges_of<T>(pixels, maps)};
  const auto grid = [&](int vector) {
    return o.ranges.grid(kRangeThreads * vector * static_cast<int>(sizeof(Moments)));
  };
  if (in_vectors<T>(maps)) launch(take_statistics<T, kWidest<T>>, grid(kWidest<T>), o, call);
  else launch(take_statistics<T, 1>, grid(1), o, call);
}

int64_t merged(int64_t partials) { return (partials + kMostPartials - 1) / kMostPartials; }

}  // namespace

int64_t batch_statistics_partials(DType dtype, int64_t pixels, int64_t maps) {
  return (dtype == DType::f32 ? ranges_of<float>(pixels, maps) : ranges_of<bf16>(pixels, maps)).ranges();
}

void batch_statistics(DType dtype, int64_t pixels, int64_t maps, const void* z, float* partials, const Call& call) {
  with_type(dtype, call, [&]<class T>(T) { run<T>(pixels, maps, z, partials, call); });
}

int64_t batch_moments_workspace_bytes(int64_t partials, int64_t maps) {
  int64_t all = 0;
  while (partials > kMostPartials) all += partials = merged(partials);
  return all * 3 * maps * static_cast<int64_t>(sizeof(float));
}

void batch_moments(const BatchNorm& layer, const float* partials, int64_t count, const RunningStatistics& running,
                   void* workspace, const Call& call) {
  MergeParams o{.partials = partials,
                .merged = static_cast<float*>(workspace),
                .layer = layer,
                .running = running,
                .count = count,
                .tiles = Divider((layer.maps + kLanes - 1) / kLanes)};
  const auto merge = [&] {
    const Grid grid{.x = o.tiles.divisor() * merged(o.count),
                    .threads = kLanes * kRows,
                    .shared_bytes = kLanes * kRows * static_cast<int>(sizeof(Moments))};
    launch(merge_partials, grid, o, call);
  };
  for (; o.count > kMostPartials; o.count = merged(o.count)) {
    merge();
    o.partials = o.merged;
    o.merged += merged(o.count) * 3 * layer.maps;
  }
  o.merged = nullptr;
  merge();
}

}  // namespace cnnkern::cuda
