// wgrad of 3x3 convolutions with groups of as many input as output maps, at stride 1 or 2.
//
//   dw[k][f][s][d] = sum over n,p,q of x[n, p*U - pad + f, q*U - pad + s, first(k) + d] * dy[n,p,q,k],  dbias = sum of dy
//
// Rows go by in blocks of which one vector of k's share stays in L1 for all three filter rows and all d. That share is
// copied to lie together: pixels a power of two apart evict each other from L1, and dy gets zeros for what lies outside
// of it (microkernels/group_wgrad_tile.h). The copy fetches what the next one reads, or it takes a third of the time.
// wgrad_split.h has which thread owns what.
#pragma once

#include <algorithm>

#include "group_blocks.h"
#include "microkernels/group_wgrad_tile.h"
#include "wgrad_split.h"

namespace cnnkern::cpu::CNNKERN_ISA {

constexpr int64_t kBlockBytes = 24 * 1024;  // of x and dy, in L1

// Rows of pixels, one after another.
template <class T> struct Rows {
  const T* data;
  int64_t columns;
  int64_t stride;  // from pixel to pixel

  int64_t row_stride() const { return columns * stride; }
};

// `width` neighbouring maps of some rows, [row][column][width], converted, with columns of zeros before and after.
template <class T> struct Staging {
  int64_t width, before, after;

  int64_t row_elements(const Rows<T>& rows) const { return (before + rows.columns + after) * width; }

  // Maps [map, map + width) of rows [begin, end), while what is read next, `ahead` elements from there, is fetched.
  void copy(const Rows<T>& rows, int64_t begin, int64_t end, int64_t map, int64_t ahead, acc_t<T>* to) const {
    const T* from = rows.data + begin * rows.row_stride() + map;
    for (int64_t row = begin; row < end; ++row) {
      to = std::fill_n(to, before * width, acc_t<T>(0));
      for (int64_t i = 0; i < rows.columns; ++i, from += rows.stride, to += width) {
        for (int64_t m = 0; m < width; m += kLanes<T>) {
          store(to + m, load(from + m));
          __builtin_prefetch(from + m + ahead, 0, 2);
        }
      }
      to = std::fill_n(to, after * width, acc_t<T>(0));
    }
  }
};

template <class T, int kGroup>
void run_wgrad(const ConvProblem& problem, const Operands& operands) {
  using A = acc_t<T>;
  constexpr int kLane = kLanes<T>;
  const int64_t maps = problem.k, group = problem.c_per_group(), p_count = problem.p(), q_count = problem.q();
  const int64_t stride = problem.stride_w, vectors = vectors_of<T>(maps), unit = vectors_of_group<T>(group);
  const Axis lines{problem.h, p_count, problem.r, problem.stride_h, problem.pad_top, problem.dilation_h, false};
  const Rows<T> x{static_cast<const T*>(operands.x), problem.w, problem.x_stride()};
  const Rows<T> dy{static_cast<const T*>(operands.y), q_count, problem.y_stride()};
  const Staging<T> x_staging{unit * kLane, 0, 0};
  const int64_t beyond = (problem.w - 1 + problem.pad_left) / stride + 1 - q_count;
  const Staging<T> dy_staging{kLane, kFilter - 1, std::max<int64_t>(beyond, 0)};
  const int64_t x_row = x_staging.row_elements(x), dy_row = dy_staging.row_elements(dy);
  const auto tile = stride == 1                 ? group_wgrad_tile<A, kFilter, 1, 0, kGroup>
                    : problem.pad_left % 2 == 0 ? group_wgrad_tile<A, kFilter, 2, 0, kGroup>
                                                : group_wgrad_tile<A, kFilter, 2, 1, kGroup>;

  const WgradSplit split(problem.n * p_count, vectors / unit, Divide::maps);
  const int64_t vector_elements = kTaps * group * kLane;
  const int64_t elements = vectors * vector_elements + maps;  // and dbias behind
  A* sums = zeroed_sums<A>(split, elements);
  const int64_t block_rows =
      std::max<int64_t>(kBlockBytes / ((stride * x_row + dy_row) * static_cast<int64_t>(sizeof(A))), 1);

  const auto add_block = [&](const Block<T>& block, int64_t row_begin, int64_t row_end, A* own) {
    const auto image_line = [&](int64_t row) { return row / p_count * problem.h; };
    const int64_t line_begin = image_line(row_begin) + lines_of(lines, row_begin % p_count, p_count).first;
    const int64_t line_end = image_line(row_end - 1) + lines_of(lines, 0, (row_end - 1) % p_count + 1).second;
    A* in = scratch<A>(Scratch::columns, std::max<int64_t>(line_end - line_begin, 0) * x_row);
    A* gradient = scratch<A>(Scratch::packed_dy, (row_end - row_begin) * dy_row);
    FilterRow<A> filter_rows[kFilter];
    for (int64_t f = 0; f < kFilter; ++f) {
      filter_rows[f] = {{}, x_staging.width, x.columns, problem.pad_left, group};
      for (int64_t row = row_begin; row < row_end; ++row) {
        const int64_t line = lines.source(row % p_count, f);
        if (line < 0) continue;
        filter_rows[f].pairs.push_back({in + (image_line(row) + line - line_begin) * x_row,
                                        gradient + (row - row_begin) * dy_row + dy_staging.before * kLane});
      }
    }
    for (int64_t v = block.begin; v < block.end; ++v) {
      const int64_t k = vector_start<A>(v, maps);
      const auto ahead = [&](const Rows<T>& rows, int64_t next_rows, int64_t next_vector) {
        if (next_vector < block.end) return vector_start<A>(next_vector, maps) - k;
        return next_rows * rows.row_stride() + vector_start<A>(block.begin, maps) - k;
      };
      if (v % unit == 0) x_staging.copy(x, line_begin, line_end, k, ahead(x, block_rows * stride, v + unit), in);
      dy_staging.copy(dy, row_begin, row_end, k, ahead(dy, block_rows, v + 1), gradient);
      for (int64_t f = 0; f < kFilter; ++f)
        tile(filter_rows[f], own + v * vector_elements + f * kFilter * group * kLane);
    }
    for (int64_t row = row_begin; operands.dbias && row < row_end; ++row)
      add_bias(dy.data + row * q_count * dy.stride, dy.stride, q_count, own + vectors * vector_elements,
               block.begin * kLane, std::min(block.end * kLane, maps));
  };
  split.run([&](int64_t chunk, int64_t row_begin, int64_t row_end, int64_t unit_begin, int64_t unit_end) {
    for_each_block<T>(unit_begin * unit, unit_end * unit, maps, group, [&](const Block<T>& block) {
      for (int64_t row = row_begin; row < row_end; row += block_rows)
        add_block(block, row, std::min(row + block_rows, row_end), sums + chunk * elements);
    });
  });
  parallel_for(vectors, std::max<int64_t>(1, 32768 / vector_elements), [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v)
      write_filters(split, sums + v * vector_elements, elements, v, maps, kTaps, group, static_cast<T*>(operands.w));
  });
  if (!operands.dbias) return;
  for (int64_t k = 0; k < maps; ++k)
    static_cast<A*>(operands.dbias)[k] = total(split, sums, elements, vectors * vector_elements + k);
}

// Calls run_wgrad with the maps of a group where a vector has several groups, else with 0.
template <class T>
void run_square_wgrad(const ConvProblem& problem, const Operands& operands) {
  const int64_t group = problem.c_per_group();
  if constexpr (kLanes<T> > 4) {
    if (group == 4) return run_wgrad<T, 4>(problem, operands);
  }
  if constexpr (kLanes<T> > 8) {
    if (group == 8) return run_wgrad<T, 8>(problem, operands);
  }
  run_wgrad<T, 0>(problem, operands);
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
