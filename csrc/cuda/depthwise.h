// What the depthwise kernels that walk down the rows of an image share: which thread has what, and rows of vectors.
//
// A block has up to 32 vectors of neighbouring maps (its lanes) and, for each, as many groups of columns as fill its
// threads. The groups of all images stand in one line, so that small images fill blocks as well.
#pragma once

#include <primitives/divide.h>
#include <primitives/launcher.h>
#include <primitives/shared.h>

#include <algorithm>

#include "naming.h"
#include "thread_tile.h"

namespace cnnkern::cuda {

constexpr int kDepthwiseThreads = 128;

struct DepthwiseTiling {
  Divider lanes, map_tiles;  // vectors of maps of a block; blocks side by side that have all maps
  Divider width;             // groups of columns of an image
  int block_groups;          // of columns, of a block
  int groups;                // of columns, of all images

  DepthwiseTiling(int64_t maps, int64_t vector, int64_t images, int64_t columns, int64_t group_columns) {
    constexpr int64_t kMostLanes = 32;
    const int64_t vectors = maps / vector, tiles = (vectors + kMostLanes - 1) / kMostLanes;
    const int64_t wide = (vectors + tiles - 1) / tiles;
    lanes = Divider(wide);
    map_tiles = Divider(tiles);
    width = Divider((columns + group_columns - 1) / group_columns);
    block_groups = static_cast<int>(kDepthwiseThreads / wide);
    groups = static_cast<int>(images * ((columns + group_columns - 1) / group_columns));
  }
};

// So that the pixels of a row that one thread has are within 32 bits of each other.
constexpr int64_t kMostPixelStride = 1 << 24;

// x as a sweep reads it: kPixels neighbours of one row, kMaps maps of each; zero where there is no image.
template <class T, int kPixels, int kMaps> struct PixelRow {
  Packed<T, kMaps> at[kPixels];
  uint32_t inside;  // bit j: pixel j is in the image

  // `from` is where pixel 0 is or would be; bit j of `columns` says whether there is a column j.
  template <class Stride>
  __device__ void load(const T* from, Stride pixel_stride, uint32_t columns, bool row_inside) {
    inside = row_inside ? columns : 0;
#pragma unroll
    for (int j = 0; j < kPixels; ++j)
      at[j] = inside >> j & 1 ? Packed<T, kMaps>(load_vector<kMaps>(from + j * pixel_stride)) : Packed<T, kMaps>{};
  }

  // act(scale * x + shift), rounded as a tensor of it would be; the padding is put around that.
  __device__ void apply(const Vector<float, kMaps>& scale, const Vector<float, kMaps>& shift, const Clamp& clamp) {
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      Vector<T, kMaps> t;
#pragma unroll
      for (int i = 0; i < kMaps; ++i) t[i] = from_float<T>(clamp(to_float(at[j][i]) * scale[i] + shift[i]));
      if (inside >> j & 1) at[j] = Packed<T, kMaps>(t);
    }
  }
};

// Which of kPixels columns from `first` on there are in an image of `width`.
template <int kPixels> __device__ uint32_t columns_inside(int first, int width) {
  static_assert(kPixels <= 32);
  uint32_t inside = 0;
#pragma unroll
  for (int j = 0; j < kPixels; ++j)
    if (first + j >= 0 && first + j < width) inside |= 1u << j;
  return inside;
}

// Why a kernel for square filters at one stride, with `vector` maps at a time, cannot take a problem.
inline std::string not_swept(const ConvProblem& p, int64_t filter, int64_t stride, int64_t vector, const Flags& flags) {
  if (!p.depthwise()) return "it is not depthwise";
  if (p.r != filter || p.s != filter)
    return "its filter is not " + std::to_string(filter) + "x" + std::to_string(filter);
  if (p.stride_h != stride || p.stride_w != stride) return "its stride is not " + std::to_string(stride);
  if (p.dilated()) return "it is dilated";
  if (flags.unaligned) return "an operand does not begin at a multiple of 16 bytes";
  if (p.c % vector || p.x_stride() % vector || p.y_stride() % vector)
    return "maps and pixel strides are no multiples of " + std::to_string(vector);
  if (p.x_stride() >= kMostPixelStride || p.y_stride() >= kMostPixelStride) return "a pixel stride takes over 24 bits";
  if (const std::string reason = why_no_clamp(p.prologue); !reason.empty()) return reason;
  return too_many_pixels(p);
}

}  // namespace cnnkern::cuda
