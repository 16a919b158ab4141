// Copies of input lines in which every tap of every output reads something, zeros off the image, and neighbouring
// outputs read neighbouring places: what a sweep with any padding, stride and dilation needs to run without branches.
//
//   fprop  column i is at x = i + pad, on plane x % stride, place x / stride
//          output o reads tap f at x = o * stride + f * dilation
//   dgrad  column i is at place i * stride + (taps - 1) * dilation - pad, zeros between
//          output o reads tap f at place o + (taps - 1 - f) * dilation
#pragma once

#include <utility>

#include "group_sweep.h"

namespace cnnkern::cpu::CNNKERN_ISA {

struct PaddedLine {
  explicit PaddedLine(const Axis& axis)
      : axis(axis),
        planes(axis.transposed ? 1 : axis.stride),
        places(axis.out + (axis.taps - 1) * axis.dilation / planes) {}

  // Place of input column 0 on a line of one plane; the columns are `axis.stride` places apart for dgrad.
  int64_t shift() const { return axis.transposed ? (axis.taps - 1) * axis.dilation - axis.pad : axis.pad; }

  // Where output 0 reads tap f: plane and place.
  std::pair<int64_t, int64_t> tap(int64_t f) const {
    if (axis.transposed) return {0, (axis.taps - 1 - f) * axis.dilation};
    return {f * axis.dilation % planes, f * axis.dilation / planes};
  }

  // body(column, plane, place) for every input column that some output reads.
  template <class Body> void for_each_column(const Body& body) const {
    for (int64_t i = 0; i < axis.in; ++i) {
      const int64_t x = (axis.transposed ? i * axis.stride : i) + shift(), place = x / planes;
      if (x >= 0 && place < places) body(i, x % planes, place);
    }
  }

  Axis axis;
  int64_t planes, places;
};

}  // namespace cnnkern::cpu::CNNKERN_ISA
