// Depthwise fprop and dgrad with fewer maps than a vector has lanes, any filter, stride and dilation.
//
// A row of dense pixels is one line of elements, and a vector of it spans pixels: with padded copies of the input lines
// (padded_lines.h) element e of an output row is
//
//   y[e] = sum over taps of x[e + shift(tap)] * w[tap][e % C]
//
// so that all lanes work. C / gcd(C, lanes) vectors of weights repeat along the row.
#pragma once

#include <cstring>
#include <numeric>

#include "microkernels/tap_sums.h"
#include "padded_lines.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int64_t kBandRows = 16;  // output rows of a thread whose input lines are copied at once

// w [C][taps] -> [vector of a period][taps][lanes].
template <class T>
void pack_few(const T* w, int64_t maps, int64_t taps, int64_t vectors, acc_t<T>* packed) {
  constexpr int kLane = kLanes<T>;
  for (int64_t v = 0; v < vectors; ++v)
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t e = v * kLane; e < (v + 1) * kLane; ++e) *packed++ = to_acc(w[e % maps * taps + t]);
}

template <class T>
void copy_elements(const T* from, int64_t count, acc_t<T>* to) {
  for (int64_t e = 0; e < count; e += kLanes<T>) {
    const int n = static_cast<int>(std::min<int64_t>(count - e, kLanes<T>));
    store_n(to + e, load_n(from + e, n), n);
  }
}

template <class T> struct FewMaps {
  explicit FewMaps(const Sweep<T, T>& sweep)
      : sweep(sweep), line(sweep.columns), maps(sweep.maps), elements(sweep.columns.out * maps) {
    vectors = (elements + kLanes<T> - 1) / kLanes<T>;
    plane_elements = vectors * kLanes<T> + (line.places - sweep.columns.out) * maps;
    period = maps / std::gcd<int64_t>(maps, kLanes<T>);
  }

  int64_t line_elements() const { return line.planes * plane_elements; }

  // The places between and around the columns stay as they are.
  void copy_line(const T* from, acc_t<T>* to) const {
    if (sweep.columns.stride == 1 && sweep.in_stride == maps) {
      const int64_t shift = line.shift(), begin = std::max<int64_t>(-shift, 0);
      const int64_t end = std::min(sweep.columns.in, line.places - shift);
      return copy_elements(from + begin * maps, (end - begin) * maps, to + (begin + shift) * maps);
    }
    line.for_each_column([&](int64_t column, int64_t plane, int64_t place) {
      copy_elements(from + column * sweep.in_stride, maps, to + plane * plane_elements + place * maps);
    });
  }

  // `lines`: the copies, counted from input line 0 of the image.
  void sum_row(int64_t row, const acc_t<T>* lines, Tap<acc_t<T>>* taps, acc_t<T>* sums) const {
    constexpr int kLane = kLanes<T>;
    TapList<acc_t<T>> list{taps, 0};
    for (int64_t f = 0; f < sweep.rows.taps; ++f) {
      const int64_t source = sweep.rows.source(row, f);
      for (int64_t s = 0; source >= 0 && s < sweep.columns.taps; ++s) {
        const auto [plane, place] = line.tap(s);
        taps[list.count++] = {lines + source * line_elements() + plane * plane_elements + place * maps,
                              (f * sweep.columns.taps + s) * kLane};
      }
    }
    for (int64_t v = 0; v < std::min(period, vectors); ++v) {
      const acc_t<T>* w = sweep.w + v * sweep.rows.taps * sweep.columns.taps * kLane;
      acc_t<T>* to = sums + v * kLane;
      sum_taps(list, w, v * kLane, period * kLane, (vectors - v + period - 1) / period,
               [&](int64_t t, Vec<acc_t<T>> sum) { store(to + t * period * kLane, sum); });
    }
  }

  // The row's outputs are as dense as its sums: `repeated` has scale and shift for a whole row.
  void finish_dense(int64_t row, const acc_t<T>* sums, const EpilogueArgs<T>& repeated) const {
    for (int64_t e = 0; e < elements; e += kLanes<T>) {
      const int n = static_cast<int>(std::min<int64_t>(elements - e, kLanes<T>));
      const auto sum = affine<T>(load(sums + e), repeated, e, row, n);
      store_n(sweep.out + row * elements + e, activate(sum, repeated.activation, repeated.alpha), n);
    }
  }

  void finish_pixels(int64_t row, const acc_t<T>* sums) const {
    const int n = static_cast<int>(maps);
    const EpilogueArgs<T>& epilogue = sweep.epilogue;
    for (int64_t q = 0; q < sweep.columns.out; ++q) {
      const int64_t pixel = row * sweep.columns.out + q;
      const auto sum = affine<T>(load_n(sums + q * maps, n), epilogue, 0, pixel, n);
      store_n(sweep.out + pixel * sweep.out_stride, activate(sum, epilogue.activation, epilogue.alpha), n);
    }
  }

  Sweep<T, T> sweep;
  PaddedLine line;
  int64_t maps, elements, vectors, plane_elements, period;  // of an output row; period: vectors until weights repeat
};

template <class T>
void run_few(const ConvProblem& problem, const Operands& operands) {
  using A = acc_t<T>;
  FewMaps<T> few(make_sweep<T, T>(problem, operands));
  Sweep<T, T>& sweep = few.sweep;
  const int64_t taps = problem.r * problem.s, packed_elements = few.period * taps * kLanes<T>;
  const bool dense =
      sweep.out_stride == few.maps && (!sweep.epilogue.residual || sweep.epilogue.residual_pixel_stride == few.maps);
  EpilogueArgs<T> repeated = sweep.epilogue;
  A* packed = scratch<A>(Scratch::packed, packed_elements + 2 * few.elements);
  pack_few(static_cast<const T*>(operands.w), few.maps, taps, few.period, packed);
  sweep.w = packed;
  A* room = packed + packed_elements;
  for (const A** vector : {&repeated.scale, &repeated.shift}) {
    if (!dense || !*vector) continue;
    for (int64_t e = 0; e < few.elements; ++e) room[e] = (*vector)[e % few.maps];
    *vector = room;
    room += few.elements;
  }
  repeated.residual_pixel_stride = few.elements;

  const int64_t bands = (sweep.rows.out + kBandRows - 1) / kBandRows;
  const int64_t grain = std::max<int64_t>(kThreadWork / (kBandRows * few.elements * taps + 1), 1);
  parallel_for(sweep.n * bands, grain, [&](int64_t begin, int64_t end) {
    const int64_t reach = (sweep.rows.taps - 1) * sweep.rows.dilation + 1;
    const int64_t most = (kBandRows - 1) * (sweep.rows.transposed ? 1 : sweep.rows.stride) + reach;
    const int64_t room_elements = std::min(most, sweep.rows.in) * few.line_elements();
    A* lines = scratch<A>(Scratch::columns, room_elements);
    std::memset(static_cast<void*>(lines), 0, static_cast<size_t>(room_elements) * sizeof(A));
    A* sums = scratch<A>(Scratch::sums, few.vectors * kLanes<T>);
    Tap<A>* list = scratch<Tap<A>>(Scratch::local, taps);
    for (int64_t band = begin; band < end; ++band) {
      const int64_t image = band / bands, row_begin = band % bands * kBandRows;
      const int64_t row_end = std::min(row_begin + kBandRows, sweep.rows.out);
      const auto [first, last] = lines_of(sweep.rows, row_begin, row_end);
      for (int64_t i = first; i < last; ++i)
        few.copy_line(sweep.in + (image * sweep.rows.in + i) * sweep.columns.in * sweep.in_stride,
                      lines + (i - first) * few.line_elements());
      for (int64_t row = row_begin; row < row_end; ++row) {
        few.sum_row(row, lines - first * few.line_elements(), list, sums);
        if (dense) few.finish_dense(image * sweep.rows.out + row, sums, repeated);
        else few.finish_pixels(image * sweep.rows.out + row, sums);
      }
    }
  });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
