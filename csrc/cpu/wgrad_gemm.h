// A weight gradient as a GEMM that reduces over pixels, one filter tap after another.
//
//   dw[k][tap][c] = sum over output pixels o of dy[o][k] * x[o * in_step + tap][c],   dbias[k] = sum over o of dy[o][k]
//
// Pixels are taken in chunks that keep a panel of x in L2; per chunk dy is packed (and converted), x too where its own
// rows would not do, then each (panel of x, tap, panel of dy) is one register tile. Threads split the pixels where dw is
// small, each summing into a copy of its own, else the tiles. Deterministic for a given number of threads: a tile is one
// thread's, chunks and copies add in order.
#pragma once

#include <vector>

#include "simd/vec.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA {

struct WgradTap {
  int64_t h, w;    // input pixel relative to output pixel * in_step
  int64_t offset;  // of dw[0][tap][0]
};

template <class T> struct WgradGemm {
  using A = acc_t<T>;

  int64_t images;
  const T* dy;
  int64_t out_h, out_w, dy_pixel_stride;
  int64_t rows;  // maps of dy: k
  const T* x;
  int64_t in_h, in_w, x_pixel_stride, x_row_stride, x_image_stride;
  int64_t columns;  // maps of x: c
  int64_t in_step_h, in_step_w;
  std::vector<WgradTap> taps;
  A* dw;
  int64_t dw_row_stride;    // from k to k + 1
  A* dbias;                 // [rows] or null
  bool accumulate = false;  // add to dw and dbias

  void run() const;

 private:
  void sum_rows(int64_t begin, int64_t end) const;  // output rows of the images laid end to end
};

}  // namespace cnnkern::cpu::CNNKERN_ISA
