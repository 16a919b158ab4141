// What the grouped kernels share: tiles of pixels whose input, with the margin that the filter needs around it, lies in
// shared memory once for all taps.
#pragma once

#include <primitives/copy.h>
#include <primitives/divide.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "gemm_pick.h"
#include "gemm_variants.h"
#include "lattice.h"

namespace cnnkern::cuda {

// Groups that fit fragments of 8 columns: they are made several at a time, of as many maps as 128 bytes hold.
using GroupSizes = std::integer_sequence<int, 4, 8, 16, 32>;
template <class T> constexpr int kTileMaps = 128 / static_cast<int>(sizeof(T));
constexpr int kPoints = 128, kGroupedThreads = 128;  // of a tile, at most
constexpr int kMostShared = 96 * 1024;               // bytes of a block
static_assert(kMostShared <= kSharedOfEveryGpu);

// Tiles of a lattice: images x rows x columns of its points, more than one image only where a tile holds all its rows
// and columns. Of the input a tile reads a halo of halo_h x halo_w pixels of each image.
struct PointTiles {
  int images = 0, rows = 0, columns = 0;
  int halo_h = 0, halo_w = 0;
  int tiles_n = 0, tiles_h = 0, tiles_w = 0;
  Divider by_columns, by_rows, by_halo_w, by_halo_h, by_tiles_w, by_tiles_h;

  __device__ int slots() const { return images * halo_h * halo_w; }
  int64_t count() const { return int64_t{tiles_n} * tiles_h * tiles_w; }
};

// The tiles that read the least for n images of rows x columns points; none (images == 0) if no halo fits most_bytes.
// in_step: input pixels from point to point; span: from the first tap to the last.
inline PointTiles choose_tiles(int64_t n, int64_t rows, int64_t columns, int64_t in_step_h, int64_t in_step_w,
                               int64_t span_h, int64_t span_w, int64_t most_bytes) {
  PointTiles best;
  double least = 0;
  for (int64_t w = 1; w <= std::min<int64_t>(columns, kPoints); ++w) {
    const int64_t h = std::min(rows, kPoints / w);
    const int64_t images = w == columns && h == rows ? std::min(n, kPoints / (w * h)) : 1;
    const int64_t halo_h = (h - 1) * in_step_h + span_h + 1, halo_w = (w - 1) * in_step_w + span_w + 1;
    if (halo_h * halo_w > most_bytes / 128 / images) continue;
    const int64_t tiles_n = ceil_div(n, images), tiles_h = ceil_div(rows, h), tiles_w = ceil_div(columns, w);
    const double cost =
        static_cast<double>(tiles_n * tiles_h * tiles_w) *
        static_cast<double>(images * halo_h * halo_w + kPoints);  // all points are computed and some written
    if (best.images && cost >= least) continue;
    least = cost;
    const auto narrow = [](int64_t v) { return static_cast<int>(v); };
    best = {narrow(images),  narrow(h),       narrow(w),        narrow(halo_h),  narrow(halo_w),
            narrow(tiles_n), narrow(tiles_h), narrow(tiles_w),  Divider(w),      Divider(h),
            Divider(halo_w), Divider(halo_h), Divider(tiles_w), Divider(tiles_h)};
  }
  return best;
}

// A point of a tile: which image, row and column of it, or none.
struct TilePoint {
  int image, row, column;
  bool valid;
};

__device__ inline TilePoint point_of(const PointTiles& tiles, int i) {
  int rest = i;
  const int column = tiles.by_columns.split(rest), row = tiles.by_rows.split(rest);
  return {rest, row, column, rest < tiles.images};
}

// The input of one tile in shared memory: [slots][kTileMaps<T>], a slot being a pixel. A slot is a line of 128 bytes,
// whose 8 chunks are turned by the slot's number, so that the same chunk of 8 neighbouring pixels is in 8 different
// places.
template <class T> struct Halo {
  Shared<T> at_;

  __device__ Shared<T> at(int slot, int map) const {
    return at_ + (slot * kTileMaps<T> + ((map / kWidest<T>)^(slot % 8)) * kWidest<T> + map % kWidest<T>);
  }
};

// Where a tile's halo begins in the input, and the bounds there.
struct HaloPlace {
  int image, h, w;  // of the first slot
  int images, height, width;
  int map, maps;  // the first map, and how many there are from it on
};

// Starts the copies of a halo; pixels beyond the image, images beyond the batch and maps beyond the last are zero.
template <class T>
__device__ void fetch_halo(Halo<T> halo, const PointTiles& tiles, const HaloPlace& place, const T* from, int stride) {
  constexpr int kChunk = kWidest<T>;
  const int map = static_cast<int>(threadIdx.x) % 8 * kChunk;
  for (int slot = static_cast<int>(threadIdx.x) / 8; slot < tiles.slots(); slot += kGroupedThreads / 8) {
    int rest = slot;
    const int w = place.w + tiles.by_halo_w.split(rest), h = place.h + tiles.by_halo_h.split(rest);
    const int image = place.image + rest;
    const bool valid =
        image < place.images && h >= 0 && h < place.height && w >= 0 && w < place.width && map < place.maps;
    const int64_t pixel = valid ? (int64_t{image} * place.height + h) * place.width + w : 0;
    copy_async<16>(halo.at(slot, map), from + (pixel * stride + place.map + map), valid);
  }
}

// The tile in a kernel's name: maps of a block x maps of a group.
template <class T> std::string grouped_tile(int group) {
  return std::to_string(kTileMaps<T>) + "x" + std::to_string(group);
}

// Why groups cannot be made several at a time; empty if they can.
template <class T> std::string why_not_grouped(const ConvProblem& p, int group, const Flags& flags) {
  if (p.groups == 1) return "it has no groups";
  if (p.c_per_group() != group || p.k_per_group() != group)
    return "groups are not of " + std::to_string(group) + " maps";
  if (flags.unaligned) return "an operand does not begin at a multiple of 16 bytes";
  if (p.c % kWidest<T> || p.x_stride() % kWidest<T> || p.y_stride() % kWidest<T>)
    return "maps and pixel strides are no multiples of " + std::to_string(kWidest<T>);
  if (kDTypeOf<T> == DType::f32 && !flags.tf32) return "TF32 is not allowed";
  if (has_prologue(p)) return "it has no prologue";
  return beyond_32_bits(p);
}

}  // namespace cnnkern::cuda
