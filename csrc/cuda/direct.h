// What the direct kernels for few input maps share: tiles of output pixels, and the window of x that one of them needs, in
// shared memory with its maps padded to 4, so that a pixel is 8 bytes (float: 16) and every tap is a whole word away.
#pragma once

#include <primitives/divide.h>
#include <primitives/launcher.h>
#include <primitives/shared.h>

#include <algorithm>

#include "naming.h"
#include "thread_tile.h"

namespace cnnkern::cuda {

constexpr int kStemMaps = 4;  // of x, at most

// kRows x kColumns pixels of y and kMaps of its maps, for a square filter; a warp for every two rows.
template <int kFilter_, int kStride_, int kMaps_, int kRows_ = 8> struct Stem {
  static constexpr int kFilter = kFilter_, kStride = kStride_, kMaps = kMaps_;
  static constexpr int kTaps = kFilter * kFilter;
  static constexpr int kRows = kRows_, kColumns = 16, kThreads = kRows / 2 * 32;
  static constexpr int kReadRows = (kRows - 1) * kStride + kFilter;
  static constexpr int kReadColumns = (kColumns - 1) * kStride + kFilter;
  static constexpr int kReadPixels = kReadRows * kReadColumns;
  // Where in the window, in pixels, a tap of its first pixel is.
  static constexpr __host__ __device__ int offset(int tap) { return tap / kFilter * kReadColumns + tap % kFilter; }
};

// The tiles of all images in one line, and x.
template <class T> struct StemInput {
  const T* x;
  Affine<T> prologue;
  bool has_prologue;
  int64_t pixel_stride;
  Divider tile_columns, tile_rows;  // of an image
  int tiles;                        // of all images
  int maps, h, w, pad_top, pad_left;
  int used_h, used_w;  // what no tap meets is not read

  template <class Tile> static StemInput of(const ConvProblem& p, const Operands& operands, Tile) {
    const int64_t columns = (p.q() + Tile::kColumns - 1) / Tile::kColumns;
    const int64_t rows = (p.p() + Tile::kRows - 1) / Tile::kRows;
    const auto whole = [](int64_t v) { return static_cast<int>(v); };
    return {.x = static_cast<const T*>(operands.x),
            .prologue = prologue_of<T>(p, operands),
            .has_prologue = p.prologue != Prologue{},
            .pixel_stride = p.x_stride(),
            .tile_columns = Divider(columns),
            .tile_rows = Divider(rows),
            .tiles = whole(p.n * rows * columns),
            .maps = whole(p.c),
            .h = whole(p.h),
            .w = whole(p.w),
            .pad_top = whole(p.pad_top),
            .pad_left = whole(p.pad_left),
            .used_h = whole(std::min(p.h, (p.p() - 1) * p.stride_h - p.pad_top + p.r)),
            .used_w = whole(std::min(p.w, (p.q() - 1) * p.stride_w - p.pad_left + p.s))};
  }
};

// A tile's image and the row and column of its first pixel.
struct StemPlace { int image, row, column; };

template <class Tile, class T> __device__ StemPlace stem_place(const StemInput<T>& in, int tile) {
  const int column = in.tile_columns.split(tile) * Tile::kColumns;
  const int row = in.tile_rows.split(tile) * Tile::kRows;
  return {tile, row, column};
}

// The window [kReadRows][kReadColumns][4] of a tile: zero outside of the image and in the maps that x does not have.
// Paired, each pixel has the next one beside it, so that two taps are 16 bytes at any pixel; behind the last are zeros.
template <class Tile, bool kPaired = false, class T>
__device__ void stage_window(const StemInput<T>& in, const StemPlace& place, Shared<T> window) {
  const int first_row = place.row * Tile::kStride - in.pad_top,
            first_column = place.column * Tile::kStride - in.pad_left;
#pragma unroll 4
  for (int i = threadIdx.x; i < Tile::kReadPixels; i += Tile::kThreads) {
    const int h = first_row + i / Tile::kReadColumns, w = first_column + i % Tile::kReadColumns;
    Vector<T, kStemMaps> pixel{};
    if (h >= 0 && h < in.used_h && w >= 0 && w < in.used_w) {
      const T* const from = in.x + ((int64_t{place.image} * in.h + h) * in.w + w) * in.pixel_stride;
#pragma unroll
      for (int c = 0; c < kStemMaps; ++c) {
        if (c >= in.maps) break;
        pixel[c] = in.has_prologue ? from_float<T>(in.prologue(to_float(from[c]), c)) : from[c];
      }
    }
    if constexpr (kPaired) {
      window.store_vector(2 * i * kStemMaps, pixel);
      if (i > 0) window.store_vector((2 * i - 1) * kStemMaps, pixel);
      else window.store_vector((2 * Tile::kReadPixels - 1) * kStemMaps, Vector<T, kStemMaps>{});
    } else {
      window.store_vector(i * kStemMaps, pixel);
    }
  }
}

// Why a stem's kernel cannot take a problem; empty if it can.
template <class Tile> std::string why_no_stem(const ConvProblem& p, const Flags&) {
  const std::string filter = std::to_string(Tile::kFilter);
  if (p.groups != 1) return "it has groups";
  if (p.c > kStemMaps) return "it has more than " + std::to_string(kStemMaps) + " input maps";
  if (p.r != Tile::kFilter || p.s != Tile::kFilter) return "its filter is not " + filter + "x" + filter;
  if (p.stride_h != Tile::kStride || p.stride_w != Tile::kStride)
    return "its stride is not " + std::to_string(Tile::kStride);
  return p.dilated() ? "it is dilated" : too_many_pixels(p);
}

}  // namespace cnnkern::cuda
