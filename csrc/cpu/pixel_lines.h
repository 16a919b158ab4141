// The lines of pixels that a sweep over output rows reads, and copies of them where they would evict each other.
#pragma once

#include <algorithm>
#include <utility>

#include "simd/vec.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// One spatial axis of a sweep: which input position joins output `o` through tap `f`.
struct Axis {
  int64_t in, out, taps, stride, pad, dilation;
  bool transposed;

  // -1: none.
  int64_t source(int64_t o, int64_t f) const {
    int64_t i = transposed ? o + pad - f * dilation : o * stride - pad + f * dilation;
    if (transposed) {
      if (i < 0 || i % stride) return -1;
      i /= stride;
    }
    return i >= 0 && i < in ? i : -1;
  }
};

// The input lines that output rows [begin, end) of an image read.
inline std::pair<int64_t, int64_t> lines_of(const Axis& rows, int64_t begin, int64_t end) {
  int64_t first = rows.in, last = 0;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t f = 0; f < rows.taps; ++f) {
      const int64_t line = rows.source(row, f);
      if (line >= 0) first = std::min(first, line), last = std::max(last, line + 1);
    }
  }
  return {std::min(first, last), last};
}

constexpr uint32_t first_bits(int64_t count) { return (uint32_t{1} << count) - 1; }

// Bit i: 0 <= first + i < size, for i < count.
inline uint32_t bits_inside(int64_t first, int count, int64_t size) {
  return first_bits(std::clamp<int64_t>(size - first, 0, count)) & ~first_bits(std::clamp<int64_t>(-first, 0, count));
}

// How many output rows to take at once for the copied lines that they read to stay in L2.
inline int64_t rows_per_copy(const Axis& rows, int64_t line_bytes) {
  constexpr int64_t kCopyBytes = 256 * 1024;
  const int64_t lines = kCopyBytes / line_bytes - rows.taps;
  return std::max<int64_t>(rows.transposed ? lines * rows.stride : lines / rows.stride, 1);
}

// Pixels of x or y, NHWC.
template <class T> struct Pixels {
  const T* data;
  int64_t stride;

  // Pixels 4096 bytes apart all fall into one set of L1, which holds fewer than a tile reads; 2048 bytes apart into two,
  // which hold fewer for as long as it takes to come back for the other half of a cache line.
  bool evict_each_other() const { return stride * static_cast<int64_t>(sizeof(T)) % (kVectorBytes * 64) == 0; }
};

// The same pixels for whoever reads only maps [map_begin, map_end) of pixels [begin, end): a copy of those, with an odd
// number of cache lines from pixel to pixel.
template <class T>
Pixels<T> copy_maps(Pixels<T> pixels, int64_t begin, int64_t end, int64_t map_begin, int64_t map_end, Scratch slot) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t maps = map_end - map_begin, stride = ((maps + kLine - 1) / kLine | 1) * kLine;
  T* copy = scratch<T>(slot, (end - begin) * stride);
  for (int64_t i = begin; i < end; ++i)
    std::copy_n(pixels.data + i * pixels.stride + map_begin, maps, copy + (i - begin) * stride);
  return {copy - begin * stride - map_begin, stride};
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
