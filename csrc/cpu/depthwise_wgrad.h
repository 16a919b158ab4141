// wgrad of a depthwise S x S filter at stride U, dilation 1: dw[c][f][s] = sum over n,p,q of
// x[n, p*U - pad + f, q*U - pad + s, c] * dy[n,p,q,c], and dbias[c] = sum of dy.
//
// A band of rows of dy goes by in tiles of 7 pixels (microkernels/depthwise_wgrad_tile.h) that add to one
// array of sums a thread.
#pragma once

#include <algorithm>

#include "../kernel.h"
#include "microkernels/depthwise_tile.h"
#include "microkernels/depthwise_wgrad_tile.h"
#include "packing.h"
#include "pixel_lines.h"
#include "wgrad_split.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// Threads divide the rows. With a part of each pixel a core, its prefetches take what another one reads: 16 images of
// 64 maps of 112x112 at stride 2 took 3.2 ms on two Zen 4 cores so, and take 1.8 ms. Only for few pixels do the sums of
// each chunk cost more: 1024 maps of 10x10 took 37 us by maps and 42 us by rows.
inline Divide depthwise_divide(const ConvProblem& problem) {
  constexpr int64_t kChunkPixels = 128;
  return problem.n * problem.p() * problem.q() < kChunkPixels * thread_count() ? Divide::maps : Divide::rows;
}

// Whether the inputs of a tile of two rows stay in L1 until AVX2 comes back for the other half of each cache line.
template <int U> bool two_rows_stay(int64_t bytes) { return kVectorBytes == 64 || bytes % (1024 / U) != 0; }

// One tile, at pixel `first` of its rows; `tile` starts at column 0 of x and pixel 0 of dy.
template <class T, int S, int U, int kRows>
void run_wgrad_tile(DepthwiseWgradTile<T> tile, const ConvProblem& problem, int64_t first) {
  using Tap = Taps<S, U, false, 0>;
  constexpr int kLines = (kRows - 1) * U + S;
  const int64_t column = Tap::first_column(first, problem.pad_left);
  tile.in += column * tile.in_pixel_stride;
  tile.dy += first * tile.dy_pixel_stride;
  tile.columns = bits_inside(column, Tap::kColumns, problem.w);
  tile.count = static_cast<int>(std::min<int64_t>(problem.q() - first, kTilePixels));
  const bool inside =
      tile.lines == first_bits(kLines) && tile.columns == first_bits(Tap::kColumns) && tile.count == kTilePixels;
  if (inside) depthwise_wgrad_tile<T, S, U, kRows, true>(tile);
  else depthwise_wgrad_tile<T, S, U, kRows, false>(tile);
}

template <class T, int S, int U>
void run_wgrad_tiles(const ConvProblem& problem, const Operands& operands) {
  using A = acc_t<T>;
  constexpr int kLane = kLanes<T>;
  constexpr int64_t kFarBytes = 16 << 20;  // more than this of x and dy comes from memory
  const int64_t maps = problem.c, p_count = problem.p(), q_count = problem.q();
  const Pixels<T> all_x{static_cast<const T*>(operands.x), problem.x_stride()};
  const bool copies = all_x.evict_each_other();
  const int64_t band_rows = copies || two_rows_stay<U>(all_x.stride * sizeof(T)) ? kDepthwiseRows : 1;
  const int64_t bands = (p_count + band_rows - 1) / band_rows;
  const Axis lines{problem.h, p_count, S, U, problem.pad_top, 1, false};
  const Pixels<T> all_dy{static_cast<const T*>(operands.y), problem.y_stride()};
  const int64_t bands_at_once =
      copies ? std::max<int64_t>(rows_per_copy(lines, problem.w * all_x.stride * sizeof(T)) / band_rows, 1) : bands;
  const int64_t pixels = problem.n * (problem.h * problem.w + p_count * q_count);
  const bool far = !copies && pixels * maps * static_cast<int64_t>(sizeof(T)) > kFarBytes;

  const WgradSplit split(problem.n * bands, (maps + kLane - 1) / kLane, depthwise_divide(problem));
  const int64_t filters = split.vectors * S * S * kLane, elements = filters + maps;  // and dbias behind them
  A* sums = zeroed_sums<A>(split, elements);
  split.run([&](int64_t chunk, int64_t band_begin, int64_t band_end, int64_t vector_begin, int64_t vector_end) {
    const int64_t map_begin = vector_start<A>(vector_begin, maps), map_end = std::min(vector_end * kLane, maps);
    DepthwiseWgradTile<T> tile{};
    tile.sums = sums + chunk * elements;
    tile.maps = maps;
    tile.vector_begin = vector_begin;
    tile.vector_end = vector_end;
    for (int64_t first_band = band_begin, last_band; first_band < band_end; first_band = last_band) {
      const int64_t image = first_band / bands;
      last_band = std::min({first_band + bands_at_once, (image + 1) * bands, band_end});
      const int64_t first_row = first_band % bands * band_rows;
      const int64_t last_row = std::min((last_band - image * bands) * band_rows, p_count);
      Pixels<T> x = all_x, dy = all_dy;
      if (copies) {
        const auto [line, line_end] = lines_of(lines, first_row, last_row);
        const int64_t top = image * problem.h, dy_top = image * p_count;
        x = copy_maps(x, (top + line) * problem.w, (top + line_end) * problem.w, map_begin, map_end, Scratch::columns);
        dy = copy_maps(dy, (dy_top + first_row) * q_count, (dy_top + last_row) * q_count, map_begin, map_end,
                       Scratch::packed_dy);
      }
      tile.in_pixel_stride = x.stride;
      tile.in_line_stride = problem.w * x.stride;
      tile.dy_pixel_stride = dy.stride;
      tile.dy_row_stride = q_count * dy.stride;
      for (int64_t row = first_row; row < last_row; row += band_rows) {
        const int64_t line = row * U - problem.pad_top, rows = std::min<int64_t>(last_row - row, band_rows);
        tile.in = x.data + (image * problem.h + line) * tile.in_line_stride;
        tile.dy = dy.data + (image * p_count + row) * tile.dy_row_stride;
        tile.lines = bits_inside(line, (rows - 1) * U + S, problem.h);
        const bool ahead = far && row + band_rows < p_count;
        tile.ahead_in = ahead ? ((band_rows - 1) * U + S) * tile.in_line_stride : 0;
        tile.ahead_dy = ahead ? band_rows * tile.dy_row_stride : 0;
        for (int64_t first = 0; first < q_count; first += kTilePixels) {
          if (rows == kDepthwiseRows) run_wgrad_tile<T, S, U, kDepthwiseRows>(tile, problem, first);
          else run_wgrad_tile<T, S, U, 1>(tile, problem, first);
        }
        for (int64_t i = 0; operands.dbias && i < rows; ++i)
          add_bias(tile.dy + i * tile.dy_row_stride, tile.dy_pixel_stride, q_count, tile.sums + filters,
                   vector_begin * kLane, map_end);
      }
    }
  });
  for (int64_t v = 0; v < split.vectors; ++v)
    write_filters(split, sums + v * S * S * kLane, elements, v, maps, 1, S * S, static_cast<T*>(operands.w));
  if (!operands.dbias) return;
  for (int64_t c = 0; c < maps; ++c) static_cast<A*>(operands.dbias)[c] = total(split, sums, elements, filters + c);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
