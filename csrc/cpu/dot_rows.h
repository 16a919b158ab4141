// Rows of output pixels by dot products: the loop around dot_tile of convolutions that write few maps.
//
// A tile is neighbouring points of a lattice's row. In dense NHWC the taps of a filter row are one run of memory, which
// fills the vectors where there are few maps to read. A point whose taps are not all inside x is a tile of its own.
#pragma once

#include <array>
#include <utility>

#include "conv_gemm.h"
#include "microkernels/dot.h"

namespace cnnkern::cpu::CNNKERN_ISA {

template <class X, class W, class Out> using DotFunction = void (*)(const DotTile<X, W, Out>&);

template <class X, class W, class Out> struct DotFunctions { DotFunction<X, W, Out> many, one; };

template <class X, class W, class Out, int... kColumn>
constexpr std::array<DotFunctions<X, W, Out>, kDotColumns> dot_functions(std::integer_sequence<int, kColumn...>) {
  return {{{dot_tile<X, W, Out, dot_rows(kColumn + 1), kColumn + 1>, dot_tile<X, W, Out, 1, kColumn + 1>}...}};
}

// For each number of columns, the tile of dot_rows() points and that of one.
template <class X, class W, class Out>
constexpr auto kDotFunctions = dot_functions<X, W, Out>(std::make_integer_sequence<int, kDotColumns>{});

template <class X, class W, class Out> struct DotRows {
  const X* x;
  int64_t in_h, in_w, x_pixel_stride;
  int64_t depth;  // elements per tap
  const W* w;     // of a lattice: its taps' offsets are from here
  int64_t w_row_stride;
  Out* y;
  int64_t out_h, out_w, y_pixel_stride;
  int columns;
  const EpilogueArgs<Out>* epilogue;

  // Points [begin, end) of row i of image n. The lattice's taps are in the order in which x has them, `row_taps` of each
  // filter row, and w has them in the same order. dots: room to work in.
  void run(const Lattice& lattice, int64_t row_taps, int64_t n, int64_t i, int64_t begin, int64_t end,
           std::vector<DotTap>& dots) const {
    const std::vector<Tap>& taps = lattice.taps;
    const int64_t step = lattice.in_step_w, x_row = n * in_h + i * lattice.in_step_h;
    const int64_t y_row = (n * out_h + lattice.first_h + i * lattice.step_h) * out_w + lattice.first_w;
    const bool one_run = x_pixel_stride == depth && (row_taps < 2 || taps[1].w == taps[0].w + 1);
    DotTile<X, W, Out> tile{};
    tile.x_row_stride = step * x_pixel_stride;
    tile.w = w;
    tile.w_row_stride = w_row_stride;
    tile.y_row_stride = lattice.step_w * y_pixel_stride;
    tile.epilogue = epilogue;

    // Taps [first, last) of every filter row that reaches row i.
    const auto use_taps = [&](int64_t first, int64_t last) {
      const int64_t run = one_run ? last - first : 1;
      dots.clear();
      for (size_t row = 0; row < taps.size(); row += row_taps) {
        const int64_t h = i * lattice.in_step_h + taps[row].h;
        if (h < 0 || h >= in_h) continue;
        for (int64_t t = first; t < last; t += run)
          dots.push_back({((x_row + taps[row].h) * in_w + taps[row + t].w) * x_pixel_stride, taps[row + t].offset});
      }
      tile.taps = dots.data();
      tile.tap_count = dots.size();
      tile.depth = run * depth;
    };
    const auto run_tile = [&](DotFunction<X, W, Out> function, int64_t j) {
      tile.x = x + j * tile.x_row_stride;
      tile.pixel = y_row + j * lattice.step_w;
      tile.y = y + tile.pixel * y_pixel_stride;
      function(tile);
    };
    const auto [many, one] = kDotFunctions<X, W, Out>[columns - 1];
    const auto run_border = [&](int64_t j, int64_t last_j) {
      for (; j < last_j; ++j) {
        const auto from = taps.begin(), to = from + row_taps;
        const auto first = std::find_if(from, to, [&](const Tap& t) { return j * step + t.w >= 0; });
        const auto last = std::find_if(first, to, [&](const Tap& t) { return j * step + t.w >= in_w; });
        use_taps(first - from, last - from);
        run_tile(one, j);
      }
    };
    // Points [left, right) have all their taps inside x.
    int64_t left = begin, right = end;
    if (row_taps) {
      left = std::clamp((step - 1 - taps[0].w) / step, begin, end);
      right = std::clamp((in_w - taps[row_taps - 1].w + step - 1) / step, left, end);
    }
    run_border(begin, left);
    use_taps(0, row_taps);
    const int rows = dot_rows(columns);
    int64_t j = left;
    for (; j + rows <= right; j += rows) {
      if (!dots.empty()) fetch(x + dots.back().x + (j + 2 * rows) * tile.x_row_stride, rows * tile.x_row_stride);
      run_tile(many, j);
    }
    for (; j < right; ++j) run_tile(one, j);
    run_border(right, end);
  }

 private:
  // Into L2, the one row of x that is new to it: a third faster where x is 205 MB, on one Zen 4 core.
  static void fetch(const X* x, int64_t elements) {
    constexpr int64_t kLine = 64 / sizeof(X);
    for (int64_t at = 0; at < elements; at += kLine) __builtin_prefetch(x + at, 0, 2);
  }
};

}  // namespace cnnkern::cpu::CNNKERN_ISA
