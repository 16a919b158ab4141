// A convolution as a batch-reduce GEMM over a lattice of output pixels.
//
// fprop, dgrad and im2col are one loop here; they differ in the lattice and in how the weights are packed.
//   y[point][j] = epilogue( sum over taps t, d < depth of x[point * in_step + tap t][d] * panel[tap_offset[t] + d][j] )
//
// Contract: a point of a lattice is written once, by one thread; panels of weights are read-only once packed; x and y
// do not overlap. Raggedness appears in two places: the last tile of a block of points has fewer rows, and the last
// panel fewer columns. Threads split the panels (few points: each packs its own weights into its L2) or the points (the
// weights packed once by all, or, where they are few, by each for itself).
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "microkernels/brgemm.h"
#include "packing.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA {

template <class In, class Out> using TileFunction = void (*)(const Tile<In, Out>&, const EpilogueArgs<Out>&);

// The register tile of so many rows and vectors: 1 x 1 to kWideTileRows x kWideTileVectors.
constexpr int kWideTileRows = 6, kWideTileVectors = kRegisters >= 32 ? 4 : 2;
template <class In, class Out> TileFunction<In, Out> register_tile(int rows, int vectors);

struct Tap {
  int64_t h, w;    // input pixel that it reads, relative to point * in_step
  int64_t offset;  // its first row in the packed panel
};

// rows x cols points per image. Point (i, j) reads around input pixel (i * in_step_h, j * in_step_w) and writes output
// pixel (first_h + i * step_h, first_w + j * step_w).
struct Lattice {
  int64_t rows, cols;
  int64_t in_step_h, in_step_w;
  int64_t first_h = 0, first_w = 0, step_h = 1, step_w = 1;
  std::vector<Tap> taps;
};

template <class In, class Out> struct Gemm {
  using Packed = typename Step<In>::Packed;

  int64_t images;
  const In* x;
  int64_t in_h, in_w, x_pixel_stride;
  int64_t depth;         // elements per tap, a multiple of Step<In>::kDepth
  int64_t packed_depth;  // rows of a panel
  Out* y;
  int64_t out_h, out_w, y_pixel_stride;
  int64_t columns;
  EpilogueArgs<Out> epilogue;
  // Packs columns [first, first + count) into a panel of `width` columns.
  struct Pack { virtual void operator()(int64_t first, int count, Packed* panel, int width) const = 0; };
  const Pack* pack;

  void run(std::span<const Lattice> lattices) const;
};

}  // namespace cnnkern::cpu::CNNKERN_ISA
