// An operand of a weight gradient, one chunk of its pixels at a time, cut into panels of neighbouring maps.
//
// A chunk is read where it lies, staged row by row (with the padding to its sides), or packed: per panel
// [pixel][width]. Offsets are relative to the chunk and the same for all panels of an operand.
#pragma once

#include <algorithm>
#include <functional>

#include "simd/vec.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pixels in rows, the rows counted over all images.
template <class T> struct PixelRows {
  const T* data;
  int64_t height, width, maps;
  int64_t pixel_stride, row_stride, image_stride;

  const T* row(int64_t i) const { return data + i / height * image_stride + i % height * row_stride; }
};

template <class T>
PixelRows<T> dense_rows(const T* data, int64_t height, int64_t width, int64_t maps, int64_t pixel_stride) {
  return {data, height, width, maps, pixel_stride, width * pixel_stride, height * width * pixel_stride};
}

// Copies rows first to last to scratch memory, converted, `row_stride` apart, with a panel's width of room behind them.
// In the copy pixels are pixel_stride of the PixelRows apart.
template <class A> struct RowStaging {
  std::function<const A*(int64_t first, int64_t last)> copy;
  int64_t row_stride;
};

template <class T> struct WgradPanels {
  using A = acc_t<T>;

  PixelRows<T> from;
  int64_t width, count;  // maps of a panel, panels
  bool packed;
  const RowStaging<A>* staging;  // or null
  int64_t first = 0, last = 0;   // rows of the current chunk

  WgradPanels(const PixelRows<T>& from, int64_t width, bool packed, const RowStaging<A>* staging)
      : from(from), width(width), count(ceil_div(from.maps, width)), packed(packed), staging(staging) {}

  void load_chunk(int64_t first_row, int64_t last_row, Scratch slot) {
    first = first_row, last = last_row;
    if (staging) data = staging->copy(first, last);
    else if (packed) data = pack(slot);
    else if constexpr (std::is_same_v<A, T>) data = from.row(first);
  }

  int64_t pixels() const { return (last - first) * from.width; }
  int maps_of(int64_t panel) const { return static_cast<int>(std::min(width, from.maps - panel * width)); }
  const A* panel(int64_t i) const { return data + i * width * (packed ? pixels() : 1); }
  int64_t pixel_stride() const { return packed ? width : from.pixel_stride; }
  int64_t row_offset(int64_t row) const {
    if (staging) return (row - first) * staging->row_stride;
    return packed ? (row - first) * from.width * width : from.row(row) - from.row(first);
  }

 private:
  const A* data = nullptr;

  const A* pack(Scratch slot) const {
    A* out = scratch<A>(slot, pixels() * count * width);
    parallel_for(last - first, std::max<int64_t>(1, 8192 / (from.width * from.maps)), [&](int64_t begin, int64_t end) {
      for (int64_t row = first + begin; row < first + end; ++row)
        for (int64_t pixel = 0; pixel < from.width; ++pixel)
          for (int64_t i = 0; i < count; ++i)
            pack_maps(from.row(row) + pixel * from.pixel_stride + i * width, maps_of(i),
                      out + i * width * pixels() + (row - first) * from.width * width + pixel * width);
    });
    return out;
  }

  // n maps of one pixel: in vectors where the panel is made of them, else in a loop, whose length the compiler knows
  // for the most usual width.
  void pack_maps(const T* maps, int n, A* to) const {
    constexpr int kLane = kLanes<T>, kUsual = 6;
    if (width % kLane == 0) {
      for (int j = 0; j < n; j += kLane) store(to + j, load_n(maps + j, std::min(kLane, n - j)));
    } else if (n == kUsual) {
      for (int i = 0; i < kUsual; ++i) to[i] = to_acc(maps[i]);
    } else {
      for (int i = 0; i < n; ++i) to[i] = to_acc(maps[i]);
    }
  }
};

}  // namespace cnnkern::cpu::CNNKERN_ISA
