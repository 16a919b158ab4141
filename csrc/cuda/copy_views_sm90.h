// A convolution's tensors as the copy engine of Hopper sees them (primitives/tensor_map.h).
#pragma once

#include <primitives/tensor_map.h>

#include <algorithm>
#include <string>

#include "kernel.h"

namespace cnnkern::cuda {

// How pixels walk over those that a tap of theirs meets: of y over x, or of dx over dy; by axis: columns, rows.
struct Walk {
  int64_t lower[2], upper[2], step[2];  // primitives/tensor_map.h
  int64_t first_tap[2], tap[2];         // offset of the first tap, and from tap to tap
};

inline Walk walk_of(const ConvProblem& p, Direction direction) {
  const int64_t before[] = {p.pad_left, p.pad_top}, after[] = {p.pad_right, p.pad_bottom};
  const int64_t stride[] = {p.stride_w, p.stride_h}, dilation[] = {p.dilation_w, p.dilation_h};
  const int64_t reach[] = {(p.s - 1) * p.dilation_w, (p.r - 1) * p.dilation_h};  // from the first tap to the last
  const int64_t x[] = {p.w, p.h}, y[] = {p.q(), p.p()};
  const bool over_x = direction != Direction::dgrad;
  Walk walk;
  for (const int i : {0, 1}) {
    walk.lower[i] = over_x ? -before[i] : before[i] - reach[i];
    walk.upper[i] = over_x ? after[i] - reach[i] : walk.lower[i] + x[i] - y[i];
    walk.step[i] = over_x ? stride[i] : 1;
    walk.first_tap[i] = over_x ? 0 : reach[i];
    walk.tap[i] = over_x ? dilation[i] : -dilation[i];
  }
  return walk;
}

// Why the copy engine cannot walk so; empty if it can.
inline std::string outside_of_copy_engine(const ConvProblem& p, Direction direction) {
  const Walk walk = walk_of(p, direction);
  for (const int i : {0, 1}) {
    for (const int64_t corner : {walk.lower[i], walk.upper[i]}) {
      if (corner < kLowestCorner || corner > kHighestCorner) return "the copy engine takes corners from -128 to 127";
    }
    if (walk.step[i] > kMostStep) return "the copy engine takes strides up to 8";
  }
  if ((p.s - 1) * p.dilation_w > kMostTapOffset || (p.r - 1) * p.dilation_h > kMostTapOffset)
    return "the copy engine reaches 254 pixels from tap to tap";
  const int64_t element = kDTypeSizes[static_cast<int>(p.dtype)];
  const int64_t image = std::max(p.h * p.w * p.x_stride(), p.p() * p.q() * p.y_stride());
  if (std::max(image, p.r * p.s * p.c) * element > kMostStrideBytes)
    return "the copy engine takes strides below 2^40 bytes";
  return "";
}

// x or, for dgrad, dy, of which a copy brings 128 bytes of maps of the pixels that a tap of `pixels` pixels meets.
inline TensorView view_of_walk(const ConvProblem& p, const Operands& operands, const Walk& walk, int pixels) {
  const bool over_x = p.direction != Direction::dgrad;
  const int64_t maps = over_x ? p.c : p.k, w = over_x ? p.w : p.q(), h = over_x ? p.h : p.p();
  const int64_t stride = over_x ? p.x_stride() : p.y_stride();
  TensorView view{.address = over_x ? operands.x : operands.y,
                  .dtype = p.dtype,
                  .as_tf32 = p.dtype == DType::f32,
                  .rank = 4,
                  .size = {maps, w, h, p.n},
                  .stride = {1, stride, w * stride, h * w * stride},
                  .box = {128 / kDTypeSizes[static_cast<int>(p.dtype)], pixels}};
  view.pixels.walked = true;
  for (const int i : {0, 1}) {
    view.pixels.lower[i] = static_cast<int>(walk.lower[i]);
    view.pixels.upper[i] = static_cast<int>(walk.upper[i]);
    view.pixels.step[i] = static_cast<int>(walk.step[i]);
  }
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
