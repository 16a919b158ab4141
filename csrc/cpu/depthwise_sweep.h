// fprop and dgrad of depthwise S x S filters at stride 1 or 2, dilation 1, as one sweep over output rows.
//
// A band of rows of an image and a block of maps belong to one thread, which runs it in tiles of 7 pixels: 3x3 filters,
// whose weights fit the registers, by depthwise_tile (microkernels/depthwise_tile.h), all else line by line by
// group_tile. Lines whose pixels evict each other from L1 are copied first (pixel_lines.h).
#pragma once

#include "group_sweep.h"
#include "microkernels/depthwise_tile.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// One tile, at pixel `first` of its rows; `tile` starts at column 0 of the input and pixel 0 of the output.
template <class Lines, class Columns, class T>
void run_depthwise_tile(const Sweep<T, T>& sweep, DepthwiseTile<T> tile, int64_t first) {
  const int64_t column = Columns::first_column(first, sweep.columns.pad);
  tile.in += column * tile.in_pixel_stride;
  tile.columns = bits_inside(column, Columns::kColumns, sweep.columns.in);
  tile.out += first * tile.out_pixel_stride;
  tile.count = static_cast<int>(std::min<int64_t>(sweep.columns.out - first, kTilePixels));
  const bool inside = tile.lines == first_bits(Lines::kColumns) && tile.rows == kDepthwiseRows &&
                      tile.columns == first_bits(Columns::kColumns) && tile.count == kTilePixels;
  if (inside) depthwise_tile<T, Lines, Columns, true>(tile);
  else depthwise_tile<T, Lines, Columns, false>(tile);
}

// The output rows of one image whose taps are `Lines`, from `row` on.
template <class Lines, int U, bool kTransposed, class T>
void run_rows(const Sweep<T, T>& sweep, DepthwiseTile<T> tile, int64_t image, int64_t row) {
  const int64_t line = Lines::first_column(row, sweep.rows.pad);
  tile.in_pixel_stride = sweep.in_stride;
  tile.in_line_stride = sweep.columns.in * sweep.in_stride;
  tile.in = sweep.in + (image * sweep.rows.in + line) * tile.in_line_stride;
  tile.lines = bits_inside(line, Lines::kColumns, sweep.rows.in);
  if (tile.rows == 1) tile.lines &= first_bits(Lines::kFirstColumns);
  for (int64_t first = 0; first < sweep.columns.out; first += kTilePixels) {
    if (kTransposed && U == 2 && (first + sweep.columns.pad) % 2)
      run_depthwise_tile<Lines, Taps<Lines::S, U, kTransposed, U - 1>>(sweep, tile, first);
    else run_depthwise_tile<Lines, Taps<Lines::S, U, kTransposed, 0>>(sweep, tile, first);
  }
}

// run_band by depthwise_tile.
template <int S, int U, bool kTransposed, class T>
void run_depthwise_band(const Sweep<T, T>& sweep, int64_t image, int64_t row, int64_t vector_begin, int64_t vector_end,
                        bool fetches) {
  DepthwiseTile<T> tile{};
  tile.w = sweep.w;
  tile.maps = sweep.maps;
  tile.vector_begin = vector_begin;
  tile.vector_end = vector_end;
  tile.out_pixel_stride = sweep.out_stride;
  tile.out = sweep.out + (image * sweep.rows.out + row) * sweep.columns.out * sweep.out_stride;
  tile.row_pixels = sweep.columns.out;
  tile.rows = static_cast<int>(std::min<int64_t>(sweep.rows.out - row, kDepthwiseRows));
  tile.fetches = fetches && row + kDepthwiseRows < sweep.rows.out;
  if (kTransposed && U == 2 && (row + sweep.rows.pad) % 2)
    run_rows<AxisTaps<S, U, kTransposed, U - 1, kDepthwiseRows>, U, kTransposed>(sweep, tile, image, row);
  else run_rows<AxisTaps<S, U, kTransposed, 0, kDepthwiseRows>, U, kTransposed>(sweep, tile, image, row);
}

// By depthwise_tile (kWhole) or by group_tile; at least one vector of maps. copies: the inputs first.
template <int S, int U, bool kTransposed, bool kWhole, class In, class Out>
void run_bands(const Sweep<In, Out>& sweep, bool copies) {
  constexpr int kLane = kLanes<Out>, kRows = kWhole ? kDepthwiseRows : kTileRows;
  const int64_t bands = (sweep.rows.out + kRows - 1) / kRows, vectors = (sweep.maps + kLane - 1) / kLane;
  const Pixels<In> in{sweep.in, sweep.in_stride};
  int64_t parts = bands;  // of an image; of copied rows as few as stay in L2 and divide evenly among the threads
  if (copies) {
    const int64_t rows = rows_per_copy(sweep.rows, sweep.columns.in * in.stride * sizeof(In));
    const int64_t even = sweep.n % thread_count() ? thread_count() : 1;
    parts = std::min(((sweep.rows.out + rows - 1) / rows + even - 1) / even * even, bands);
  }
  const int64_t work = sweep.rows.out * sweep.columns.out * sweep_vector_elements<S>(sweep) / (kTransposed ? U * U : 1);
  const int64_t bytes = sweep_bytes(sweep);
  for_each_row(sweep.n * parts, vectors, work / parts, [&](const Part& part) {
    const int64_t image = part.row / parts, begin = part.row % parts * bands / parts;
    const int64_t end = (part.row % parts + 1) * bands / parts;
    Sweep<In, Out> own = sweep;
    if (copies) {
      const auto [line, line_end] = lines_of(sweep.rows, begin * kRows, std::min(end * kRows, sweep.rows.out));
      const int64_t first = image * sweep.rows.in, columns = sweep.columns.in;
      const Pixels<In> copy = copy_maps(in, (first + line) * columns, (first + line_end) * columns,
                                        vector_start<acc_t<Out>>(part.block_begin, sweep.maps),
                                        std::min(part.block_end * kLane, sweep.maps), Scratch::columns);
      own.in = copy.data;
      own.in_stride = copy.stride;
    }
    const bool fetches = !copies && bytes > kFarInBytes;
    for (int64_t band = begin; band < end; ++band) {
      if constexpr (kWhole)
        run_depthwise_band<S, U, kTransposed>(own, image, band * kRows, part.block_begin, part.block_end, fetches);
      else
        run_band<S, U, kTransposed, Values::each>(own, image, band * kRows, part.block_begin, part.block_end, fetches,
                                                  bytes > kFarOutBytes);
    }
  });
}

// Whether depthwise_tile has all that the outputs need: it knows no epilogue and no way past the caches, where the half
// lines of 14 pixels that AVX2 writes took three times as long as those of 7.
template <class In, class Out> bool sums_only(const Sweep<In, Out>& sweep) {
  const EpilogueArgs<Out>& epilogue = sweep.epilogue;
  return !epilogue.scale && !epilogue.shift && !epilogue.residual && epilogue.activation == Activation::none &&
         sweep_bytes(sweep) <= kFarOutBytes;
}

// Whether what depthwise_tile touches at once stays in L1, for pixels so far apart. Measured: at stride 1 its inputs do
// not where they lie 1024 bytes apart and are not copied, nor at stride 2, where a tile has 75, those 512 bytes apart;
// in dgrad at stride 2 the 14 outputs do not that lie 2048 bytes apart, and with AVX2, which comes back for the other
// half of each cache line, nor at stride 1 those 4096 bytes apart. At stride 2 AVX-512 gains nothing in fprop.
template <int U, bool kTransposed> bool stays_cached(int64_t bytes, bool copied) {
  constexpr bool kHalves = kVectorBytes < 64;
  if (kTransposed) return bytes % 2048 != 0;
  if (U == 2) return kHalves && bytes % 512 != 0;
  return copied ? !kHalves || bytes % 4096 != 0 : bytes % 1024 != 0;
}

// A depthwise S x S filter at stride U on both axes, dilation 1.
template <int S, int U, bool kTransposed, class In, class Out>
void run_sweep(const Sweep<In, Out>& sweep) {
  const bool copied = Pixels<In>{sweep.in, sweep.in_stride}.evict_each_other();
  if constexpr (S == 3 && std::is_same_v<In, acc_t<In>> && std::is_same_v<In, Out>) {
    if (sums_only(sweep) && stays_cached<U, kTransposed>(sweep.in_stride * sizeof(In), copied))
      return run_bands<S, U, kTransposed, true>(sweep, copied);
  }
  run_bands<S, U, kTransposed, false>(sweep, copied);
}

// Depthwise filters [maps][taps] -> [vector of maps][taps][lanes] in the accumulator's type; flipped: last tap first.
template <class T>
const acc_t<T>* pack_depthwise(const T* w, int64_t maps, int64_t taps, bool flipped, Scratch slot) {
  constexpr int kLane = kLanes<T>;
  const int64_t vectors = (maps + kLane - 1) / kLane;
  acc_t<T>* packed = scratch<acc_t<T>>(slot, vectors * taps * kLane);
  for (int64_t v = 0; v < vectors; ++v) {
    const T* source = w + vector_start<acc_t<T>>(v, maps) * taps;
    acc_t<T>* filters = packed + v * taps * kLane;
    pack_transposed(source, taps, kLane, taps, filters, kLane);
    for (int64_t tap = 0; flipped && tap < taps / 2; ++tap) {
      acc_t<T>*first = filters + tap * kLane, *last = filters + (taps - 1 - tap) * kLane;
      const auto weights = load(first);
      store(first, load(last));
      store(last, weights);
    }
  }
  return packed;
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
