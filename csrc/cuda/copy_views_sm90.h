// A convolution's tensors as the copy engine of Hopper sees them (primitives/tensor_map.h).
#pragma once

#include <primitives/cuda.h>
#include <primitives/tensor_map.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>

#include "kernel.h"

namespace cnnkern::cuda {

// How the pixels along one axis walk over those that a tap of theirs meets, and which taps do.
struct AxisWalk {
  int64_t size = 0;                        // pixels that walk
  int64_t lower = 0, upper = 0, step = 1;  // primitives/tensor_map.h
  int64_t taps = 0, first = 0, every = 1;  // how many, which of the filter's is the first, and from each to the next
  int64_t offset = 0, offset_step = 0;     // of the first, and from each to the next
};

// y over x.
inline AxisWalk walk_over_x(int64_t y, int64_t filter, int64_t before, int64_t after, int64_t stride,
                            int64_t dilation) {
  return {.size = y,
          .lower = -before,
          .upper = after - (filter - 1) * dilation,
          .step = stride,
          .taps = filter,
          .first = 0,
          .every = 1,
          .offset = 0,
          .offset_step = dilation};
}

// dx over dy: pixels parity, parity + stride, ... of dx. Pixel stride * i + parity meets, with tap r, pixel
// i + (parity + before - r * dilation) / stride of dy where that is whole: with every nth tap, or with none.
inline AxisWalk walk_over_dy(int64_t x, int64_t y, int64_t filter, int64_t before, int64_t stride, int64_t dilation,
                             int64_t parity) {
  const auto ahead = [&](int64_t r) { return parity + before - r * dilation; };
  const int64_t size = (x - parity + stride - 1) / stride, every = stride / std::gcd(stride, dilation);
  int64_t first = 0;
  while (first < every && ahead(first) % stride) ++first;
  if (first == every || first >= filter) return {.size = size, .upper = size - y};
  const int64_t taps = (filter - 1 - first) / every + 1, last = first + (taps - 1) * every;
  const int64_t lower = ahead(last) / stride;
  return {.size = size,
          .lower = lower,
          .upper = lower + size - y,
          .step = 1,
          .taps = taps,
          .first = first,
          .every = every,
          .offset = ahead(first) / stride - lower,
          .offset_step = -every * dilation / stride};
}

struct Walk { AxisWalk row, column; };

// Where pixel i of those that walk begins, and the offset of tap i of those that meet any: coordinates of a copy.
__device__ inline int start(const AxisWalk& walk, int i) {
  return i * static_cast<int>(walk.step) + static_cast<int>(walk.lower);
}
__device__ inline int offset(const AxisWalk& walk, int i) {
  return static_cast<int>(walk.offset) + i * static_cast<int>(walk.offset_step);
}

// The parities are those of dgrad with a stride.
inline Walk walk_of(const ConvProblem& p, Direction direction, int64_t parity_h = 0, int64_t parity_w = 0) {
  if (direction != Direction::dgrad)
    return {walk_over_x(p.p(), p.r, p.pad_top, p.pad_bottom, p.stride_h, p.dilation_h),
            walk_over_x(p.q(), p.s, p.pad_left, p.pad_right, p.stride_w, p.dilation_w)};
  return {walk_over_dy(p.h, p.p(), p.r, p.pad_top, p.stride_h, p.dilation_h, parity_h),
          walk_over_dy(p.w, p.q(), p.s, p.pad_left, p.stride_w, p.dilation_w, parity_w)};
}

// Why the copy engine cannot walk so; empty if it can.
inline std::string outside_of_copy_engine(const AxisWalk& walk) {
  for (const int64_t corner : {walk.lower, walk.upper}) {
    if (corner < kLowestCorner || corner > kHighestCorner) return "the copy engine takes corners from -128 to 127";
  }
  if (walk.step > kMostStep) return "the copy engine takes strides up to 8";
  const int64_t reach = walk.taps ? (walk.taps - 1) * std::abs(walk.offset_step) : 0;
  return reach > kMostTapOffset ? "the copy engine reaches 254 pixels from tap to tap" : "";
}

inline std::string outside_of_copy_engine(const ConvProblem& p, Direction direction) {
  const bool parities = direction == Direction::dgrad;
  for (int64_t h = 0; h < (parities ? p.stride_h : 1); ++h) {
    for (int64_t w = 0; w < (parities ? p.stride_w : 1); ++w) {
      const Walk walk = walk_of(p, direction, h, w);
      for (const AxisWalk& axis : {walk.row, walk.column}) {
        if (const std::string reason = outside_of_copy_engine(axis); !reason.empty()) return reason;
      }
    }
  }
  const int64_t element = kDTypeSizes[static_cast<int>(p.dtype)];
  const int64_t image = std::max(p.h * p.w * p.x_stride(), p.p() * p.q() * p.y_stride());
  const bool fits = std::max(image, p.r * p.s * p.c) * element <= kMostStrideBytes;
  return fits ? "" : "the copy engine takes strides below 2^40 bytes";
}

// x or, for dgrad, dy, of which a copy brings 128 bytes of maps of the pixels that a tap of `pixels` pixels meets.
inline TensorView view_of_walk(const ConvProblem& p, const Operands& operands, const Walk& walk, int pixels) {
  const bool over_x = p.direction != Direction::dgrad;
  const int64_t maps = over_x ? p.c : p.k, w = over_x ? p.w : p.q(), h = over_x ? p.h : p.p();
  const int64_t stride = over_x ? p.x_stride() : p.y_stride();
  const auto both = [](int64_t column, int64_t row, int (&to)[2]) {
    to[0] = static_cast<int>(column);
    to[1] = static_cast<int>(row);
  };
  TensorView view{.address = over_x ? operands.x : operands.y,
                  .dtype = p.dtype,
                  .as_tf32 = p.dtype == DType::f32,
                  .rank = 4,
                  .size = {maps, w, h, p.n},
                  .stride = {1, stride, w * stride, h * w * stride},
                  .box = {128 / kDTypeSizes[static_cast<int>(p.dtype)], pixels}};
  view.pixels.walked = true;
  both(walk.column.lower, walk.row.lower, view.pixels.lower);
  both(walk.column.upper, walk.row.upper, view.pixels.upper);
  both(walk.column.step, walk.row.step, view.pixels.step);
  return view;
}

// A tensor in the order of its pixels, as maps, 1 and pixels, of which a copy brings 128 bytes of maps of 64 pixels.
inline TensorView view_of_pixels(const ConvProblem& p, const void* address, int64_t maps, int64_t pixels,
                                 int64_t stride) {
  return {.address = address,
          .dtype = p.dtype,
          .rank = 3,
          .size = {maps, 1, pixels},
          .stride = {1, stride, stride},
          .box = {128 / kDTypeSizes[static_cast<int>(p.dtype)], 1, 64}};
}

}  // namespace cnnkern::cuda
