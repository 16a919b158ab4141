// Grouped fprop and dgrad where a vector of output maps spans groups that no permute inside the vector serves.
//
// For a vector of output maps the input lines are copied so that the lanes find map d of their own groups side by side:
//
//   spread[line][d][place][l] = x[line][column(place)][first(k + l) + d]
//
// A value is gathered once for all the taps that read it; what is left is a depthwise convolution with taps (r, s, d)
// over padded lines (padded_lines.h).
#pragma once

#include <cstring>

#include "microkernels/tap_sums.h"
#include "padded_lines.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// A vector of output maps of which each lane reads `depth` input maps from a place of its own.
struct LaneMaps {
  int64_t out_maps, out_group, depth;  // out_group output maps read the same `depth` input maps
  int64_t first(int64_t map) const { return map / out_group * depth; }
};

constexpr int64_t kSpreadElements = 1 << 16;  // of one thread's copied lines, about: they stay in the L2 cache

template <class T> struct SpreadLines {
  SpreadLines(const Sweep<T, T>& sweep, const LaneMaps& lanes)
      : sweep(sweep), lanes(lanes), line(sweep.columns), plane_elements(line.places * kLanes<T>) {}

  int64_t line_elements() const { return lanes.depth * line.planes * plane_elements; }

  // Output rows whose input lines are copied at once.
  int64_t band_rows() const {
    const int64_t lines = kSpreadElements / line_elements() - (sweep.rows.taps - 1) * sweep.rows.dilation;
    return std::clamp<int64_t>(lines, 4, sweep.rows.out);
  }

  int64_t most_lines() const {
    const int64_t reach = (sweep.rows.taps - 1) * sweep.rows.dilation + 1;
    return std::min((band_rows() - 1) * (sweep.rows.transposed ? 1 : sweep.rows.stride) + reach, sweep.rows.in);
  }

  // The lanes from output map `map` on; lanes beyond the last map repeat it.
  void copy_line(const T* from, int64_t map, acc_t<T>* to) const {
    constexpr int kLane = kLanes<T>;
    int64_t first[kLane];
    for (int l = 0; l < kLane; ++l) first[l] = lanes.first(std::min(map + l, lanes.out_maps - 1));
    line.for_each_column([&](int64_t column, int64_t plane, int64_t place) {
      const T* pixel = from + column * sweep.in_stride;
      acc_t<T>* out = to + plane * plane_elements + place * kLane;
      for (int64_t d = 0; d < lanes.depth; ++d, out += line.planes * plane_elements)
        for (int l = 0; l < kLane; ++l) out[l] = to_acc(pixel[first[l] + d]);
    });
  }

  // `lines`: the copies, counted from input line 0 of the image; w [taps][depth][lanes].
  void run_row(int64_t image, int64_t row, int64_t map, const acc_t<T>* w, const acc_t<T>* lines,
               Tap<acc_t<T>>* taps) const {
    constexpr int kLane = kLanes<T>;
    TapList<acc_t<T>> list{taps, 0};
    for (int64_t f = 0; f < sweep.rows.taps; ++f) {
      const int64_t source = sweep.rows.source(row, f);
      for (int64_t s = 0; source >= 0 && s < sweep.columns.taps; ++s) {
        const auto [plane, place] = line.tap(s);
        const acc_t<T>* in = lines + source * line_elements() + plane * plane_elements + place * kLane;
        for (int64_t d = 0; d < lanes.depth; ++d)
          taps[list.count++] = {in + d * line.planes * plane_elements,
                                ((f * sweep.columns.taps + s) * lanes.depth + d) * kLane};
      }
    }
    const EpilogueArgs<T> epilogue = sweep.epilogue;
    const int n = static_cast<int>(std::min<int64_t>(lanes.out_maps - map, kLane));
    const int64_t pixel = (image * sweep.rows.out + row) * sweep.columns.out;
    T* out = sweep.out + pixel * sweep.out_stride + map;
    sum_taps(list, w, 0, kLane, sweep.columns.out, [&](int64_t t, Vec<acc_t<T>> sum) {
      sum = affine<T>(sum, epilogue, map, pixel + t, n);
      store_n(out + t * sweep.out_stride, activate(sum, epilogue.activation, epilogue.alpha), n);
    });
  }

  Sweep<T, T> sweep;
  LaneMaps lanes;
  PaddedLine line;
  int64_t plane_elements;
};

// sweep.w: [vector][taps][depth][lanes].
template <class T>
void run_spread(const Sweep<T, T>& sweep, const LaneMaps& lanes) {
  using A = acc_t<T>;
  const SpreadLines<T> spread(sweep, lanes);
  const int64_t vectors = (lanes.out_maps + kLanes<T> - 1) / kLanes<T>, rows = spread.band_rows();
  const int64_t bands = (sweep.rows.out + rows - 1) / rows, taps = sweep.rows.taps * sweep.columns.taps * lanes.depth;
  const int64_t work = rows * sweep.columns.out * taps * kLanes<T>;
  parallel_for(sweep.n * bands * vectors, std::max<int64_t>(kThreadWork / (work + 1), 1),
               [&](int64_t begin, int64_t end) {
                 const int64_t room = spread.most_lines() * spread.line_elements();
                 A* lines = scratch<A>(Scratch::columns, room);
                 std::memset(static_cast<void*>(lines), 0, static_cast<size_t>(room) * sizeof(A));
                 Tap<A>* list = scratch<Tap<A>>(Scratch::local, taps);
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t v = i % vectors, band = i / vectors % bands, image = i / vectors / bands;
                   const int64_t row_end = std::min((band + 1) * rows, sweep.rows.out);
                   const auto [first, last] = lines_of(sweep.rows, band * rows, row_end);
                   for (int64_t l = first; l < last; ++l)
                     spread.copy_line(sweep.in + (image * sweep.rows.in + l) * sweep.columns.in * sweep.in_stride,
                                      v * kLanes<T>, lines + (l - first) * spread.line_elements());
                   for (int64_t row = band * rows; row < row_end; ++row)
                     spread.run_row(image, row, v * kLanes<T>, sweep.w + v * taps * kLanes<T>,
                                    lines - first * spread.line_elements(), list);
                 }
               });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
