// Blocks of threads over pixels x maps, for kernels in which a thread has one pixel and one vector of maps: neighbouring
// threads have neighbouring maps, and a block has as many pixels as fill it.
#pragma once

#include <primitives/divide.h>

#include <cstdint>

namespace cnnkern::cuda {

constexpr int kPixelThreads = 128;

struct PixelTiling {
  Divider lanes, tiles;  // vectors of a block; blocks side by side that have all vectors
  int vectors, pixels, block_pixels;

  // pixels < 2^31
  PixelTiling(int64_t all_pixels, int64_t all_vectors) {
    const int64_t map_tiles = (all_vectors + kPixelThreads - 1) / kPixelThreads;
    const int64_t wide = (all_vectors + map_tiles - 1) / map_tiles;
    lanes = Divider(wide);
    tiles = Divider(map_tiles);
    vectors = static_cast<int>(all_vectors);
    pixels = static_cast<int>(all_pixels);
    block_pixels = static_cast<int>(kPixelThreads / wide);
  }
  int64_t blocks() const { return tiles.divisor() * ((pixels + int64_t{block_pixels} - 1) / block_pixels); }

  // The thread's pixel and vector; false if it has none.
  __device__ bool place(int& pixel, int& vector) const {
    int block = blockIdx.x, own = threadIdx.x;
    vector = tiles.split(block) * lanes.divisor();
    vector += lanes.split(own);
    const uint32_t at = static_cast<uint32_t>(block) * block_pixels + own;
    pixel = static_cast<int>(at);
    return own < block_pixels && vector < vectors && at < static_cast<uint32_t>(pixels);
  }
};

}  // namespace cnnkern::cuda
