// What the direct kernels for few input maps share on tensor cores: filters and window as a matrix product (direct.cu).
#pragma once

#include <primitives/mma_sm80.h>

#include "direct.h"

namespace cnnkern::cuda {

// How a Stem's product is cut for operands of type T. A half step is 16 bytes of gemm_k: kHalfTaps taps of 4 maps.
template <class T, class Stem> struct StemProduct : Stem {
  static constexpr int kPixelWords = kStemMaps * static_cast<int>(sizeof(T)) / 4;
  static constexpr int kHalfTaps = 4 / kPixelWords;
  static constexpr int kSteps = (Stem::kTaps + 2 * kHalfTaps - 1) / (2 * kHalfTaps);
  static constexpr int kColumnTiles = Stem::kMaps / 8;                 // of 8 maps
  static constexpr int kLaneMaps = 2 * kColumnTiles;                   // neighbouring maps whose sums a lane has
  static constexpr int kFilterWords = kSteps * kColumnTiles * 32 * 2;  // [step][pair of column tiles][lane][tile, half]
  // Shared memory: the filters, scale and shift as float, the window.
  static constexpr int kFilterBytes = kFilterWords * 4, kWindowAt = kFilterBytes + 2 * Stem::kMaps * 4;
  static constexpr int kWindowBytes = (Stem::kReadPixels * kPixelWords * 4 + 15) / 16 * 16;
};

// The filters as their registers, and scale and shift as float behind them; zero beyond the last map and the last tap.
template <class Tile, class T>
__device__ void stage_filters(const T* w, const Affine<T>& affine, int maps, int in_maps, int first_map) {
  constexpr int kElements = 4 / static_cast<int>(sizeof(T));  // of a word
  const Shared<T> filters = shared_memory<T>();
  for (int i = threadIdx.x; i < Tile::kFilterWords; i += Tile::kThreads) {
    const int half = i % 2, lane = i / 4 % 32, t = lane % 4, column = lane / 4;
    const int column_tile = i / 128 * 2 % Tile::kColumnTiles + i / 2 % 2;
    const int map = first_map + column / 2 * Tile::kLaneMaps + 2 * column_tile + column % 2;
    const int step = i / 64 / Tile::kColumnTiles;
    const int tap = (2 * step + half) * Tile::kHalfTaps + t / Tile::kPixelWords, c = t % Tile::kPixelWords * kElements;
    const bool there = map < maps && tap < Tile::kTaps;
    const T* const from = w + (int64_t{there ? map : 0} * Tile::kTaps + (there ? tap : 0)) * in_maps;
    Vector<T, kElements> word{};
#pragma unroll
    for (int j = 0; j < kElements; ++j)
      if (there && c + j < in_maps) word[j] = from[c + j];
    filters.store_vector(i * kElements, word);
  }
  const Shared<float> scale = shared_memory<float>(Tile::kFilterBytes), shift = scale + Tile::kMaps;
  for (int i = threadIdx.x; i < Tile::kMaps; i += Tile::kThreads) {
    const int map = first_map + i;
    scale.store(i, affine.scale && map < maps ? affine.scale[map] : 1);
    shift.store(i, affine.shift && map < maps ? affine.shift[map] : 0);
  }
}

// One warp's sums, of two rows of 16 pixels and all maps.
template <class T, class Tile> class StemSums {
 public:
  // Where a lane finds its words of the window, at the first tap of its first pixel, and of the filters.
  struct Operands {
    Shared<uint32_t> window, filters;
    int tap;  // of two

    __device__ Operands()
        : window(shared_memory<uint32_t>(Tile::kWindowAt)), filters(shared_memory<uint32_t>()), tap(0) {
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
      const int pixel = 2 * warp * Tile::kStride * Tile::kReadColumns + lane / 4 * Tile::kStride;
      window = window + (pixel * Tile::kPixelWords + lane % 4 % Tile::kPixelWords);
      filters = filters + 4 * lane;
      tap = lane % 4 / Tile::kPixelWords;
    }
  };

  // Adds the products of a window.
  __device__ void multiply(const Operands& own) {
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      uint32_t a[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Lanes of the same half step have one of two taps (float: all the same), which are as far apart in most steps:
        // by a multiple of own.tap, so that the compiler keeps an address for each distance and not for each step.
        const int first = (2 * step + half) * Tile::kHalfTaps, second = first + Tile::kHalfTaps - 1;
        const bool there = (own.tap ? second : first) < Tile::kTaps;
        const int from = Tile::offset(first < Tile::kTaps ? first : 0);
        const int offset = from + own.tap * (second < Tile::kTaps ? Tile::offset(second) - from : 0);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
#pragma unroll
          for (int eight = 0; eight < 2; ++eight) {
            const int pixel = row * Tile::kStride * Tile::kReadColumns + eight * 8 * Tile::kStride;
            a[row][2 * half + eight] = there ? own.window.load((pixel + offset) * Tile::kPixelWords) : 0;
          }
        }
      }
#pragma unroll
      for (int j = 0; j < Tile::kColumnTiles; j += 2) {
        const Vector<uint32_t, 4> b = own.filters.template load_vector<4>((step * Tile::kColumnTiles + j) * 64);
        const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          mma<T>(sums_[row][j], a[row], left);
          mma<T>(sums_[row][j + 1], a[row], right);
        }
      }
    }
  }

  // Calls write(row, column, map, y) for each of the lane's 2 x 2 pixels of the block's tile, 8 columns apart, with the
  // first of its neighbouring maps, and scale * sum + shift of them all, which are its to change.
  template <class Write> __device__ void each_pixel(const Write& write) const {
    constexpr int kVector = kWidest<T>;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int map = lane % 4 * Tile::kLaneMaps;
    const Shared<float> scale = shared_memory<float>(Tile::kFilterBytes) + map, shift = scale + Tile::kMaps;
    float tile[4][Tile::kLaneMaps];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kLaneMaps; ++j) tile[i][j] = sums_[i / 2][j / 2][i % 2 * 2 + j % 2];

#pragma unroll 1
    for (int i = 0; i < 4; ++i, rotate(tile)) {
      float (&y)[Tile::kLaneMaps] = tile[0];
#pragma unroll
      for (int part = 0; part < Tile::kLaneMaps; part += kVector) {
        const Vector<float, kVector> scales = scale.load_vector<kVector>(part);
        const Vector<float, kVector> shifts = shift.load_vector<kVector>(part);
#pragma unroll
        for (int v = 0; v < kVector; ++v) y[part + v] = y[part + v] * scales[v] + shifts[v];
      }
      write(2 * warp + i / 2, lane / 4 + i % 2 * 8, map, y);
    }
  }

 private:
  float sums_[2][Tile::kColumnTiles][4] = {};
};

}  // namespace cnnkern::cuda
