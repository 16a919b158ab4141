// The tiles that Winograd's kernels cut images into, and the pixels that each reads.
#pragma once

#include <algorithm>
#include <string>

#include "../conv_problem.h"
#include "microkernels/winograd.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA::winograd {

// Images of outputs in tiles of side x side, the last ones of a row or a column hanging over.
struct Tiling {
  int64_t images, height, width, side;

  int64_t rows() const { return (height + side - 1) / side; }
  int64_t cols() const { return (width + side - 1) / side; }
  int64_t count() const { return images * rows() * cols(); }

  struct Place { int64_t image, h, w; };  // of a tile's first pixel
  Place place(int64_t tile) const {
    const int64_t row = tile / cols();
    return {row / rows(), row % rows() * side, tile % cols() * side};
  }
};

// Images, NHWC.
template <class T> struct Images {
  const T* data;
  int64_t height, width, pixel_stride, maps;
};

template <class T> struct Patch {
  const T* data;
  int64_t row, pixel;  // strides
};

// size x size pixels from (h, w): where they lie, or, where the image does not have them all, copied among zeros.
template <class T> Patch<T> patch(const Images<T>& from, int64_t image, int64_t h, int64_t w, int size) {
  const T* pixels = from.data + ((image * from.height + h) * from.width + w) * from.pixel_stride;
  if (h >= 0 && h + size <= from.height && w >= 0 && w + size <= from.width)
    return {pixels, from.width * from.pixel_stride, from.pixel_stride};
  T* copy = scratch<T>(Scratch::pairs, size * size * from.maps);
  T* to = copy;
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j, to += from.maps) {
      const bool inside = h + i >= 0 && h + i < from.height && w + j >= 0 && w + j < from.width;
      if (inside) std::copy_n(pixels + (i * from.width + j) * from.pixel_stride, from.maps, to);
      else std::fill_n(to, from.maps, T{});
    }
  return {copy, size * from.maps, from.maps};
}

template <int kFilter> std::string why_not(const ConvProblem& p) {
  if (p.r != kFilter || p.s != kFilter) return "its filters are " + std::to_string(kFilter) + " pixels wide and high";
  if (p.stride_h != 1 || p.stride_w != 1) return "the stride is not 1";
  if (p.dilation_h != 1 || p.dilation_w != 1) return "the filter is dilated";
  if (p.groups != 1) return "it computes one group";
  return "";
}

// "<side>x<side>" of the output tile.
template <int kFilter> std::string tile_name() {
  const std::string side = std::to_string(kOutOf(kFilter));
  return side + "x" + side;
}

}  // namespace cnnkern::cpu::CNNKERN_ISA::winograd
