// Lattices: the pixels that a convolution writes, as sets that read the same taps.
#pragma once

#include <primitives/cuda.h>

namespace cnnkern::cuda {

// One image axis of a lattice: points a fixed step of output pixels apart that all read the same taps, each tap a fixed
// step of input pixels from the one before. Point i reads pixel  i * in_step + in_first + tap * tap_step.
struct LatticeAxis {
  int in_step, in_first, tap_step;
  int out_step, out_first;             // point i is output pixel i * out_step + out_first
  int taps, first_tap, tap_increment;  // which taps of the filter these are
};

// The axis of y in fprop.
__device__ inline LatticeAxis fprop_axis(int taps, int pad, int stride, int dilation) {
  return {stride, -pad, dilation, 1, 0, taps, 0, 1};
}

// The axis of dx in dgrad made of the pixels  residue, residue + stride, ...
// Tap r takes pixel h to pixel (h + pad - r * dilation) / stride of dy where that is whole: for all pixels of a residue
// at the same taps, every tap_increment-th from the first such one, tap_increment = stride / gcd(stride, dilation).
__device__ inline LatticeAxis dgrad_axis(int residue, int taps, int pad, int stride, int dilation, int tap_increment) {
  int first = 0;
  while (first < taps && first < tap_increment && (residue + pad - first * dilation) % stride != 0) ++first;
  const bool none = first == taps || first == tap_increment;
  return {1,
          none ? 0 : (residue + pad - first * dilation) / stride,
          -(tap_increment * dilation / stride),
          stride,
          residue,
          none ? 0 : (taps - first + tap_increment - 1) / tap_increment,
          first,
          tap_increment};
}

}  // namespace cnnkern::cuda
