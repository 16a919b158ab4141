// Where the elements of a matrix product's operands are (gemm.h says what a source is): in a matrix, in x or dy seen
// from a lattice of pixels, or in x seen from the pixels of y.
#pragma once

#include <primitives/divide.h>
#include <primitives/epilogue.h>

#include "gemm.h"
#include "lattice.h"

namespace cnnkern::cuda {

// --- cursors: where a step of the sum is -----------------------------------------------------------------------------

// A range of k.
template <int kStep> struct RangeCursor {
  int k;
  const int end;

  __device__ int filter_offset() const { return 0; }
  __device__ void next() { k += kStep; }
};

// The taps of a filter one after the other, and for each its `end` maps from 0 on, the last step of a tap being cut
// off. So a step has one tap, and all threads work out the same one.
template <int kStep> struct TapCursor {
  int k = 0;
  const int end, taps_w;
  const int offset, offset_h, offset_w;  // elements of w: of the first tap, and from tap to tap
  int r = 0, s = 0;

  // Past the first `steps`, of which there are more.
  __device__ void skip(int steps) {
    const int of_tap = (end + kStep - 1) / kStep, tap = steps / of_tap;
    k = steps % of_tap * kStep;
    r = tap / taps_w;
    s = tap % taps_w;
  }

  __device__ int filter_offset() const { return offset + r * offset_h + s * offset_w; }
  __device__ void next() {
    k += kStep;
    if (k < end) return;
    k = 0;
    if (++s < taps_w) return;
    s = 0;
    ++r;
  }
};

// --- sources ---------------------------------------------------------------------------------------------------------

// A matrix whose rows are those of the product: [rows][k].
template <class T> struct RowsOfMatrix {
  const T* first;  // of the tile's first row
  int64_t stride;
  int rows;  // from the tile's first row on

  template <class Cursor> __device__ Place<T> at(int, int row, int column, const Cursor& cursor) const {
    return {first + row * stride + cursor.filter_offset() + cursor.k + column,
            row < rows && cursor.k + column < cursor.end};
  }
  template <class Cursor> __device__ float read(const T* from, int, const Cursor&) const { return to_float(*from); }
};

// A matrix whose columns are those of the product: [k][columns].
template <class T> struct ColumnsOfMatrix {
  const T* first;  // of the tile's first column
  int64_t stride;
  int columns;  // from the tile's first column on

  template <class Cursor> __device__ Place<T> at(int, int row, int column, const Cursor& cursor) const {
    return {first + (cursor.k + row) * stride + cursor.filter_offset() + column,
            column < columns && cursor.k + row < cursor.end};
  }
  template <class Cursor> __device__ float read(const T* from, int, const Cursor&) const { return to_float(*from); }
};

// An image whose rows are the points of a lattice, for each tap: [points][taps][maps]. kRows points for each thread.
template <class T, int kRows> class RowsOfLattice {
 public:
  // The points first + row(i) of `points`; `map` is the product's first.
  template <class Row>
  __device__ RowsOfLattice(const T* image, int stride, int height, int width, const LatticeAxis& h,
                           const LatticeAxis& w, Divider rows, Divider columns, int first, int points, int map,
                           const Affine<T>& prologue, Row row)
      : image_(image + map),
        stride_(stride),
        height_(height),
        width_(width),
        step_h_(h.tap_step),
        step_w_(w.tap_step),
        map_(map),
        prologue_(prologue) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int point = first + row(i);
      int rest = point < points ? point : 0;
      w_[i] = columns.split(rest) * w.in_step + w.in_first;
      const int at_h = rows.split(rest) * h.in_step + h.in_first;
      h_[i] = point < points ? at_h : kNowhere;
      pixel_[i] = (static_cast<uint32_t>(rest) * height + at_h) * width + w_[i];
    }
  }

  template <class Cursor> __device__ Place<T> at(int i, int, int column, const Cursor& cursor) const {
    const int h = cursor.r * step_h_, w = cursor.s * step_w_;
    const bool inside = static_cast<uint32_t>(h_[i] + h) < static_cast<uint32_t>(height_) &&
                        static_cast<uint32_t>(w_[i] + w) < static_cast<uint32_t>(width_);
    // Modulo 2^32, for what is not inside; what is counts less than 2^31 pixels.
    const uint32_t pixel =
        pixel_[i] + static_cast<uint32_t>(h) * static_cast<uint32_t>(width_) + static_cast<uint32_t>(w);
    return {image_ + (static_cast<int64_t>(pixel) * stride_ + cursor.k + column),
            inside && cursor.k + column < cursor.end};
  }
  template <class Cursor> __device__ float read(const T* from, int column, const Cursor& cursor) const {
    return prologue_(to_float(*from), map_ + cursor.k + column);
  }

 private:
  static constexpr int kNowhere = -(1 << 30);  // above the image at every tap

  const T* image_;
  int stride_, height_, width_, step_h_, step_w_, map_;
  int h_[kRows], w_[kRows];  // of the first tap
  uint32_t pixel_[kRows];
  const Affine<T>& prologue_;
};

// x as wgrad sees it: rows are the pixels of y, columns the taps and maps of the filter, [pixels][taps][maps].
template <class T> struct TapsOfPixels {
  const T* image;
  int stride, height, width;
  int stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  Divider p, q, s, maps;
  int first, columns;  // the tile's first column, and how many there are
  int map;             // the group's first
  const Affine<T>& prologue;

  template <class Cursor> __device__ Place<T> at(int, int row, int column, const Cursor& cursor) const {
    const bool there = cursor.k + row < cursor.end && first + column < columns;
    int tap = there ? first + column : 0, pixel = there ? cursor.k + row : 0;
    const int c = maps.split(tap), tap_w = s.split(tap);
    const int w = q.split(pixel) * stride_w - pad_left + tap_w * dilation_w;
    const int h = p.split(pixel) * stride_h - pad_top + tap * dilation_h;
    const bool inside = static_cast<uint32_t>(h) < static_cast<uint32_t>(height) &&
                        static_cast<uint32_t>(w) < static_cast<uint32_t>(width);
    const uint32_t at = (static_cast<uint32_t>(pixel) * height + h) * width + w;
    return {image + (static_cast<int64_t>(at) * stride + map + c), there && inside};
  }
  template <class Cursor> __device__ float read(const T* from, int column, const Cursor&) const {
    int tap = first + column;
    return prologue(to_float(*from), map + maps.split(tap));
  }
};

}  // namespace cnnkern::cuda
