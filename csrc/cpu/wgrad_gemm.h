// A weight gradient as a GEMM that reduces over pixels, one filter tap after another.
//
//   dw[k][tap][c] = sum over output pixels o of dy[o][k] * x[o * in_step + tap][c],   dbias[k] = sum over o of dy[o][k]
//
// Of a pixel one operand gives vectors, the other scalars that are broadcast: x gives the vectors, or dy where its maps
// fill them better (those of a stem's x do not). Pixels are taken in chunks; per chunk each (panel of vectors, tap, panel
// of scalars) is one register tile. Where dw is small a chunk stays in L2, the tiles fetch the next one meanwhile, and
// threads split the pixels, each summing into a copy of its own; else they split the tiles. Deterministic for a given
// number of threads: a tile is one thread's, chunks and copies add in order.
#pragma once

#include <utility>
#include <vector>

#include "microkernels/wgrad.h"
#include "wgrad_panels.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// wgrad_tile of so many rows and vectors: of 1 to kWgradVectors vectors and, with v of them, 1 to wgrad_rows(v) rows.
template <class A>
using WgradTileFunction = void (*)(int64_t, const PixelPair*, const A*, const A*, const char*, A*, int64_t, int, bool);
constexpr int kWgradVectors = kRegisters == 32 ? 4 : 2;
template <class A> WgradTileFunction<A> wgrad_register_tile(int rows, int vectors);

struct WgradTap {
  int64_t h, w;    // input pixel relative to output pixel * in_step
  int64_t offset;  // of dw[0][tap][0]
};

template <class T> struct WgradGemm {
  using A = acc_t<T>;

  int64_t images;
  PixelRows<T> dy, x;
  const RowStaging<A>* x_staging = nullptr;  // how x is to be read, or null: as it lies
  int64_t in_step_h, in_step_w;
  std::vector<WgradTap> taps;
  A* dw;
  int64_t dw_row_stride;    // from k to k + 1
  A* dbias;                 // [k] or null
  bool accumulate = false;  // add to dw and dbias

  void run() const;

 private:
  bool vectors_of_dy() const;
  bool cached() const;  // whether dw stays in L2
  int64_t rows_per_chunk() const;
  std::pair<WgradPanels<T>, WgradPanels<T>> panels() const;  // of the scalars, of the vectors
  void sum_rows(int64_t begin, int64_t end) const;           // output rows of the images laid end to end
};

}  // namespace cnnkern::cpu::CNNKERN_ISA
