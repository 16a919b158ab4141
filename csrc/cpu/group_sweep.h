// fprop and dgrad of convolutions whose groups have as many input as output maps, as one sweep over output rows.
//
// dgrad differs from fprop only in which tap joins which pixels, so at stride 2 it needs no zero-filled copy of dy.
// A band of kTileRows output rows of an image and a block of maps belong to one thread, which runs it in tiles of 7
// pixels (microkernels/group_tile.h); tiles off the border have no branch. Lines whose pixels evict each other from L1
// are copied first (pixel_lines.h).
#pragma once

#include <algorithm>
#include <utility>

#include "../kernel.h"
#include "microkernels/group_tile.h"
#include "packing.h"
#include "pixel_lines.h"
#include "threads.h"

namespace cnnkern::cpu::CNNKERN_ISA {

// fprop reads x and writes y; dgrad reads dy and writes dx.
template <class In, class Out> struct Sweep {
  int64_t n, maps, group;
  Axis rows, columns;
  const In* in;
  int64_t in_stride;
  Out* out;
  int64_t out_stride;
  const acc_t<Out>* w;  // packed as the tile wants it
  EpilogueArgs<Out> epilogue;
};

// All but the packed weights.
template <class In, class Out>
Sweep<In, Out> make_sweep(const ConvProblem& problem, const Operands& operands) {
  const bool transposed = problem.direction == Direction::dgrad;
  Sweep<In, Out> sweep{};
  sweep.n = problem.n;
  sweep.maps = problem.c;
  sweep.group = problem.c_per_group();
  sweep.rows = {problem.h, problem.p(), problem.r, problem.stride_h, problem.pad_top, problem.dilation_h, transposed};
  sweep.columns = {problem.w,        problem.q(),        problem.s, problem.stride_w,
                   problem.pad_left, problem.dilation_w, transposed};
  sweep.in = static_cast<const In*>(transposed ? operands.y : operands.x);
  sweep.in_stride = transposed ? problem.y_stride() : problem.x_stride();
  sweep.out = static_cast<Out*>(transposed ? operands.x : operands.y);
  sweep.out_stride = transposed ? problem.x_stride() : problem.y_stride();
  if (transposed) {
    std::swap(sweep.rows.in, sweep.rows.out);
    std::swap(sweep.columns.in, sweep.columns.out);
  } else {
    sweep.epilogue = {static_cast<const acc_t<Out>*>(operands.scale),
                      static_cast<const acc_t<Out>*>(operands.shift),
                      static_cast<const Out*>(operands.residual),
                      operands.residual_pixel_stride,
                      problem.epilogue.activation,
                      static_cast<acc_t<Out>>(problem.epilogue.alpha)};
  }
  return sweep;
}

struct Part {
  int64_t row, block_begin, block_end;  // row counts through the rows (or bands of rows) of all images
};

constexpr int64_t kThreadWork = 400'000;  // multiply-adds of a thread, so that they outweigh its start

// Splits rows x units (of maps) over the threads, `work` multiply-adds for each row of each unit. Units are divided,
// into blocks, only where there are fewer rows than threads. Else a thread has whole rows, even where they do not come
// out even: of two cores that write the same pixels each takes the other's cache lines away, which made 19 bands of 37
// pixels of 728 maps 2.5 times slower.
template <class Body>
void for_each_row(int64_t rows, int64_t units, int64_t work, const Body& body) {
  const int64_t blocks = std::clamp<int64_t>(thread_count() / std::max<int64_t>(rows, 1), 1, units);
  const int64_t grain = std::max<int64_t>(kThreadWork * blocks / std::max<int64_t>(work * units, 1), 1);
  parallel_for(blocks * rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / rows;
      body(Part{i % rows, block * units / blocks, (block + 1) * units / blocks});
    }
  });
}

// One row of tiles: `lines` start at column 0.
template <class Tap, Values kValues, class In, class Out>
void run_tile(const Sweep<In, Out>& sweep, GroupTile<In, Out> tile, const typename GroupTile<In, Out>::Line* lines,
              int64_t first) {
  const int64_t column = Tap::first_column(first, sweep.columns.pad);
  typename GroupTile<In, Out>::Line shifted[kTileRows * Tap::S];
  for (int64_t l = 0; l < tile.line_count; ++l) {
    shifted[l] = lines[l];
    shifted[l].in += column * sweep.in_stride;
  }
  tile.lines = shifted;
  tile.column_begin = static_cast<int>(std::clamp<int64_t>(-column, 0, Tap::kColumns));
  tile.column_end = static_cast<int>(std::clamp<int64_t>(sweep.columns.in - column, 0, Tap::kColumns));
  tile.pixel += first;
  tile.out += tile.pixel * tile.out_pixel_stride;
  tile.count = static_cast<int>(std::min<int64_t>(sweep.columns.out - first, kTilePixels));
  if (tile.ahead_in) tile.ahead_in += (column + Tap::kColumns - tile.ahead_columns) * sweep.in_stride;
  if (tile.column_begin == 0 && tile.column_end == Tap::kColumns && tile.count == kTilePixels) {
    group_tile<In, Out, Tap, kValues, true>(tile, sweep.epilogue);
  } else {
    group_tile<In, Out, Tap, kValues, false>(tile, sweep.epilogue);
  }
}

// The input lines of output rows row .. row + rows - 1 of an image: those lines in turn, each with its filter rows.
template <int S, class In, class Out>
int64_t list_lines(const Sweep<In, Out>& sweep, const In* image, int64_t row, int rows,
                   typename GroupTile<In, Out>::Line* lines) {
  int64_t count = 0, sources[kTileRows * S];
  for (int i = 0; i < rows; ++i) {
    for (int64_t f = 0; f < S; ++f) {
      const int64_t source = sweep.rows.source(row + i, f);
      if (source < 0) continue;
      const int64_t l = std::find(sources, sources + count, source) - sources;
      if (l == count) {
        sources[count++] = source;
        lines[l] = {image + source * sweep.columns.in * sweep.in_stride, {}};
      }
      lines[l].w[i] = sweep.w + f * S * sweep.group * kLanes<Out>;
    }
  }
  return count;
}

template <int S, class In, class Out> constexpr int64_t sweep_vector_elements(const Sweep<In, Out>& sweep) {
  return S * S * sweep.group * kLanes<Out>;
}

template <class In, class Out> int64_t bands_of(const Sweep<In, Out>& sweep) {
  return (sweep.rows.out + kTileRows - 1) / kTileRows;
}

// Of x and y together.
template <class In, class Out> int64_t sweep_bytes(const Sweep<In, Out>& sweep) {
  const int64_t pixels = sweep.n * (sweep.rows.in * sweep.columns.in + sweep.rows.out * sweep.columns.out);
  return pixels * sweep.maps * static_cast<int64_t>(sizeof(Out));
}
constexpr int64_t kFarInBytes = 4 << 20;    // more than this and the next band of rows comes from memory
constexpr int64_t kFarOutBytes = 32 << 20;  // more than this and no cache keeps y for the next layer

// kTileRows output rows of one image, from `row` on, for some vectors of maps. fetches: the next rows' input, meanwhile;
// far_out: no cache is to keep the output.
template <int S, int U, bool kTransposed, Values kValues, class In, class Out>
void run_band(const Sweep<In, Out>& sweep, int64_t image, int64_t row, int64_t vector_begin, int64_t vector_end,
              bool fetches, bool far_out) {
  typename GroupTile<In, Out>::Line lines[kTileRows * S];
  GroupTile<In, Out> tile{};
  tile.rows = static_cast<int>(std::min<int64_t>(sweep.rows.out - row, kTileRows));
  const In* pixels = sweep.in + image * sweep.rows.in * sweep.columns.in * sweep.in_stride;
  tile.line_count = list_lines<S>(sweep, pixels, row, tile.rows, lines);
  tile.in_pixel_stride = sweep.in_stride;
  tile.group = sweep.group;
  tile.vector_elements = sweep_vector_elements<S>(sweep);
  tile.maps = sweep.maps;
  tile.vector_begin = vector_begin;
  tile.vector_end = vector_end;
  tile.out = sweep.out;
  tile.out_pixel_stride = sweep.out_stride;
  tile.pixel = (image * sweep.rows.out + row) * sweep.columns.out;
  tile.row_pixels = sweep.columns.out;
  tile.far_out = far_out;
  if (fetches && row + kTileRows < sweep.rows.out && tile.line_count) {
    tile.ahead_in_line = sweep.columns.in * sweep.in_stride;
    const auto last = std::max_element(lines, lines + tile.line_count, [](auto& a, auto& b) { return a.in < b.in; });
    tile.ahead_in = last->in + tile.ahead_in_line;
    tile.ahead_lines = kTransposed ? (kTileRows + U - 1) / U : kTileRows * U;
    tile.ahead_columns = kTransposed ? kTilePixels / U : kTilePixels * U;
  }
  for (int64_t first = 0; first < sweep.columns.out; first += kTilePixels) {
    if (kTransposed && U == 2 && (first + sweep.columns.pad) % 2) {
      run_tile<Taps<S, U, kTransposed, U - 1>, kValues>(sweep, tile, lines, first);
    } else {
      run_tile<Taps<S, U, kTransposed, 0>, kValues>(sweep, tile, lines, first);
    }
  }
  if (tile.far_out) finish_streams();
}

// Empty, or why run_sweep cannot: what depends on the filter's geometry alone.
inline std::string why_not_swept(const ConvProblem& problem, int filter, int lanes) {
  if (problem.r != filter || problem.s != filter)
    return "needs a filter of " + std::to_string(filter) + "x" + std::to_string(filter);
  if (problem.dilated()) return "needs dilation 1";
  if (problem.stride_h != problem.stride_w || problem.stride_h > 2) return "needs stride 1 or 2 on both axes";
  if (problem.c < lanes) return "needs at least " + std::to_string(lanes) + " maps";
  return "";
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
