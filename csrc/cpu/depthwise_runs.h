// Depthwise fprop and dgrad with a vector of maps or more, any filter, stride and dilation.
//
// Outputs whose taps all lie inside the image and whose inputs are evenly apart make a run: the list of its taps is
// built once, and several of its outputs share each tap's weights (microkernels/tap_sums.h). At the border an output is
// a run by itself, with a shorter list. Rows too wide for the cache are swept in blocks of columns.
#pragma once

#include "depthwise_sweep.h"
#include "microkernels/tap_sums.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// Outputs first, first + step, ... whose inputs are in_step apart.
struct Run { int64_t first, step, count, in_step; };

// The runs among outputs [first, last).
template <class Body>
void for_each_run(const Axis& axis, int64_t first, int64_t last, const Body& body) {
  const int64_t step = axis.transposed ? axis.stride : 1, in_step = axis.transposed ? 1 : axis.stride;
  for (int64_t phase = 0; phase < std::min(step, axis.out); ++phase) {
    int64_t low = axis.in, high = -axis.in;  // the inputs that output `phase` reads, inside the image or not
    for (int64_t f = 0; f < axis.taps; ++f) {
      const int64_t x = axis.transposed ? phase + axis.pad - f * axis.dilation : f * axis.dilation - axis.pad;
      if (x % step) continue;
      low = std::min(low, x / step);
      high = std::max(high, x / step);
    }
    const int64_t space = axis.in - 1 - high;
    const int64_t k_begin = std::max<int64_t>(first - phase + step - 1, 0) / step;
    const int64_t k_end = std::max<int64_t>((last - phase + step - 1) / step, k_begin);
    const int64_t begin = std::clamp<int64_t>((in_step - 1 - low) / in_step, k_begin, k_end);
    const int64_t end = std::clamp<int64_t>(space < 0 ? 0 : space / in_step + 1, begin, k_end);
    for (int64_t k = k_begin; k < begin; ++k) body(Run{phase + k * step, step, 1, in_step});
    if (begin < end) body(Run{phase + begin * step, step, end - begin, in_step});
    for (int64_t k = end; k < k_end; ++k) body(Run{phase + k * step, step, 1, in_step});
  }
}

template <class T>
TapList<T> list_taps(const Sweep<T, T>& sweep, int64_t image, int64_t row, int64_t column, Tap<T>* taps) {
  TapList<T> list{taps, 0};
  for (int64_t f = 0; f < sweep.rows.taps; ++f) {
    const int64_t i = sweep.rows.source(row, f);
    const T* line = sweep.in + (image * sweep.rows.in + i) * sweep.columns.in * sweep.in_stride;
    for (int64_t s = 0; i >= 0 && s < sweep.columns.taps; ++s) {
      const int64_t j = sweep.columns.source(column, s);
      if (j >= 0) taps[list.count++] = {line + j * sweep.in_stride, (f * sweep.columns.taps + s) * kLanes<T>};
    }
  }
  return list;
}

constexpr int64_t kLineBytes = 256 << 10;  // of the input lines that are read again by the next rows, in the L2 cache

// Outputs of a row whose input lines stay cached from row to row.
template <class T>
int64_t cached_columns(const Sweep<T, T>& sweep) {
  const int64_t lines = (sweep.rows.taps - 1) * sweep.rows.dilation + 1;
  const int64_t pixel_bytes = lines * sweep.in_stride * static_cast<int64_t>(sizeof(T));
  const int64_t in_columns = std::max<int64_t>(kLineBytes / pixel_bytes, 2 * kTapOutputs);
  const int64_t columns =
      sweep.columns.transposed ? in_columns * sweep.columns.stride : in_columns / sweep.columns.stride;
  return std::max<int64_t>(columns / kTapOutputs * kTapOutputs, kTapOutputs);
}

template <class T>
void run_runs(const ConvProblem& problem, const Operands& operands) {
  Sweep<T, T> sweep = make_sweep<T, T>(problem, operands);
  const int64_t taps = problem.r * problem.s;
  sweep.w = pack_depthwise(static_cast<const T*>(operands.w), problem.c, taps, false, Scratch::packed);
  const int64_t vectors = (sweep.maps + kLanes<T> - 1) / kLanes<T>;
  const int64_t width = cached_columns(sweep), blocks = (sweep.columns.out + width - 1) / width;
  const int64_t work = sweep.columns.out * taps * kLanes<T> / blocks;
  for_each_row(sweep.n * blocks * sweep.rows.out, vectors, work, [&](const Part& part) {
    const int64_t row = part.row % sweep.rows.out, block = part.row / sweep.rows.out % blocks;
    const int64_t image = part.row / sweep.rows.out / blocks;
    const int64_t last = std::min((block + 1) * width, sweep.columns.out);
    Tap<T>* room = scratch<Tap<T>>(Scratch::local, taps);
    const EpilogueArgs<T> epilogue = sweep.epilogue;
    for_each_run(sweep.columns, block * width, last, [&](const Run& run) {
      const TapList<T> list = list_taps(sweep, image, row, run.first, room);
      const int64_t pixel = (image * sweep.rows.out + row) * sweep.columns.out + run.first;
      for (int64_t v = part.block_begin; v < part.block_end; ++v) {
        const int64_t c = vector_start<acc_t<T>>(v, sweep.maps);
        T* out = sweep.out + pixel * sweep.out_stride + c;
        sum_taps(list, sweep.w + v * taps * kLanes<T>, c, run.in_step * sweep.in_stride, run.count,
                 [&](int64_t t, Vec<acc_t<T>> sum) {
                   sum = affine<T>(sum, epilogue, c, pixel + t * run.step, kLanes<T>);
                   store(out + t * run.step * sweep.out_stride, activate(sum, epilogue.activation, epilogue.alpha));
                 });
      }
    });
  });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
