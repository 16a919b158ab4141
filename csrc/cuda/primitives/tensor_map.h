// What the copy engine of Hopper is told of a tensor, as plain numbers, with the engine's limits
// (CUDA driver API, "Tensor Map Object Management").
#pragma once

#include <cstdint>
#include <string>

#include "../../conv_problem.h"

namespace cnnkern::cuda {

// A tensor of `rank` dimensions, the contiguous one first, and what one copy of it brings: a box, or the pixels that
// one tap of a filter meets. What lies outside of the tensor is read as 0 and not written.
struct TensorView {
  const void* address = nullptr;  // a multiple of 16
  DType dtype = DType::f32;
  bool as_tf32 = false;  // float is rounded to TF32 as it is read
  int rank = 0;
  int64_t size[4] = {}, stride[4] = {};  // elements; stride[0] is 1, bytes of the others are multiples of 16
  int box[4] = {};                       // elements of a copy; box[0] are at most 128 bytes

  // Of a tensor of maps, columns, rows and images instead of a box: the next box[1] pixels, image by image, row by row,
  // on a grid of steps from (lower, lower) up to (height - 1 + upper, width - 1 + upper), each with box[0] maps.
  struct Pixels {
    bool walked = false;
    int lower[2] = {}, upper[2] = {}, step[2] = {1, 1};  // column, row
    bool operator==(const Pixels&) const = default;
  };
  Pixels pixels = {};

  bool operator==(const TensorView&) const = default;
};

// For errors: sizes by strides, what a copy brings and, of a walk, its corners and steps.
inline std::string to_string(const TensorView& view) {
  const auto list = [](const auto* values, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += (i ? "x" : "") + std::to_string(values[i]);
    return text;
  };
  const auto& walk = view.pixels;
  std::string text = list(view.size, view.rank) + " by " + list(view.stride, view.rank) + ", " +
                     list(view.box, walk.walked ? 2 : view.rank) + " at once";
  if (walk.walked) {
    for (const int i : {0, 1})
      text += ", from " + std::to_string(walk.lower[i]) + " to " + std::to_string(walk.upper[i]) + " by " +
              std::to_string(walk.step[i]);
  }
  return text;
}

constexpr int kLowestCorner = -128, kHighestCorner = 127;  // of a walk over pixels of two coordinates
constexpr int kMostTapOffset = 254;                        // CUTLASS keeps below 255
constexpr int kMostStep = 8;
constexpr int64_t kMostStrideBytes = (int64_t{1} << 40) - 1;

}  // namespace cnnkern::cuda
