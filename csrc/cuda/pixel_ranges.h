// Blocks of threads over ranges of pixels x maps, for kernels in which what belongs to a map stays in registers: a
// thread has one vector of maps and every nth pixel of its block's range, neighbouring threads have neighbouring maps.
#pragma once

#include <primitives/divide.h>
#include <primitives/grid.h>

#include <algorithm>

namespace cnnkern::cuda {

constexpr int kRangeThreads = 256;

struct PixelRanges {
  // Of the thread: pixels first, first + rows, ... below end. `row` is not below `rows` where it has none.
  struct Own {
    int64_t range, first, end;
    int lane, row, vector;
    bool there;
  };

  int64_t pixels, range;  // all, and of a block
  Divider lanes, tiles;   // vectors of a block; blocks side by side that have all vectors
  int vectors, rows;      // all vectors; pixels that a block has at once

  // `range` pixels of each thread
  static PixelRanges short_ones(int64_t pixels, int64_t vectors, int64_t range) {
    PixelRanges all(pixels, vectors);
    all.range = range * all.rows;
    return all;
  }
  // About `blocks` in all
  static PixelRanges long_ones(int64_t pixels, int64_t vectors, int64_t blocks) {
    PixelRanges all(pixels, vectors);
    const int64_t ranges = std::max<int64_t>(blocks / all.tiles.divisor(), 1), each = (pixels + ranges - 1) / ranges;
    all.range = std::max<int64_t>((each + all.rows - 1) / all.rows, 1) * all.rows;
    return all;
  }
  int64_t ranges() const { return (pixels + range - 1) / range; }
  Grid grid(int shared_bytes = 0) const {
    return {.x = ranges() * tiles.divisor(), .threads = kRangeThreads, .shared_bytes = shared_bytes};
  }

  __device__ Own own() const {
    int block = static_cast<int>(blockIdx.x), row = static_cast<int>(threadIdx.x);
    const int tile = tiles.split(block), lane = lanes.split(row), vector = tile * lanes.divisor() + lane;
    const int64_t begin = block * range, end = begin + range < pixels ? begin + range : pixels;
    return {block, begin + row, end, lane, row, vector, row < rows && vector < vectors};
  }

 private:
  PixelRanges(int64_t all_pixels, int64_t all_vectors) : pixels(all_pixels), vectors(static_cast<int>(all_vectors)) {
    const int64_t side_by_side = (all_vectors + kRangeThreads - 1) / kRangeThreads;
    const int64_t wide = (all_vectors + side_by_side - 1) / side_by_side;
    tiles = Divider(side_by_side);
    lanes = Divider(wide);
    rows = static_cast<int>(kRangeThreads / wide);
  }
};

}  // namespace cnnkern::cuda
