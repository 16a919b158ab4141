// Sums that are split over blocks: each block writes its part to a float slice of the workspace, and the slices are
// added in order. No atomics: every run gives the same bits.
#pragma once

#include <primitives/epilogue.h>

#include "kernel.h"

namespace cnnkern::cuda {

// Slices [how_many][rows][columns], and where their sums go: rows are `stride` elements apart there.
template <class T> struct Slices {
  const float* from = nullptr;
  int64_t how_many = 1, rows = 1, columns = 1;
  T* to = nullptr;
  int64_t stride = 0;
  FusedEpilogue<T> epilogue = {};
};

// to[row][column] = epilogue(the sum over j, in order, of from[j][row][column]).
template <class T> void add_slices(const Slices<T>& slices, const Call& call);
// out[i] = the sum over j, in order, of slices[j][i], for i < count.
template <class T> void add_slices(const float* slices, int64_t count, int64_t how_many, T* out, const Call& call) {
  add_slices<T>({.from = slices, .how_many = how_many, .columns = count, .to = out}, call);
}

// dbias[k] = the sum over all pixels of dy[pixel][k]. Nothing where dbias is null.
template <class T> void sum_pixels(const Operands& operands, float* workspace, const Call& call);
// What sum_pixels needs of the workspace, in bytes.
int64_t sum_pixels_bytes(const ConvProblem& p);

}  // namespace cnnkern::cuda
