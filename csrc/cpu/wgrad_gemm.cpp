#include "wgrad_gemm.h"

#include <algorithm>
#include <utility>

#include "microkernels/wgrad.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 6, kVectors = 4;
#else
constexpr int kRows = 6, kVectors = 2;
#endif
constexpr int64_t kChunkPixels = 2048;         // of x: a panel of 64 fp32 columns is then 512 KiB
constexpr int64_t kMaxCopyBytes = 512 * 1024;  // of dw, for one copy a thread

template <class A>
using TileFunction = void (*)(int64_t, const PixelPair*, const A*, const A*, int64_t, A*, int64_t, int, bool);

template <class A> struct TileTable {
  TileFunction<A> functions[kRows * kVectors];
  template <int... kIndex>
  constexpr explicit TileTable(std::integer_sequence<int, kIndex...>)
      : functions{wgrad_tile<A, kIndex / kVectors + 1, kIndex % kVectors + 1>...} {}
  TileFunction<A> operator()(int rows, int vectors) const { return functions[(rows - 1) * kVectors + vectors - 1]; }
};
template <class A> constexpr TileTable<A> kTiles{std::make_integer_sequence<int, kRows * kVectors>{}};

// Copies n maps of one pixel; a full panel row with a length that the compiler knows.
template <class T> CNNKERN_INLINE void pack_maps(const T* from, int n, acc_t<T>* to) {
  if (n == kRows) {
    for (int i = 0; i < kRows; ++i) to[i] = to_acc(from[i]);
  } else {
    for (int i = 0; i < n; ++i) to[i] = to_acc(from[i]);
  }
}

}  // namespace

template <class T> void WgradGemm<T>::sum_rows(int64_t begin_row, int64_t end_row) const {
  constexpr int kLane = kLanes<T>;
  const int64_t width = kVectors * kLane;
  const int64_t row_panels = (rows + kRows - 1) / kRows;
  const int64_t col_panels = (columns + width - 1) / width;
  const int64_t tap_count = static_cast<int64_t>(taps.size());
  // x is read in place where its vectors are whole and its rows lie as a packed panel would, or are used too seldom to
  // repay the copy.
  constexpr int64_t kRepay = 24;
  const bool in_place = std::is_same_v<A, T> && columns % kLane == 0 && x_row_stride == in_w * x_pixel_stride &&
                        x_image_stride == in_h * x_row_stride &&
                        (x_pixel_stride <= width || row_panels * tap_count < kRepay);

  int64_t min_h = taps[0].h, max_h = taps[0].h;
  for (const WgradTap& tap : taps) min_h = std::min(min_h, tap.h), max_h = std::max(max_h, tap.h);
  const int64_t rows_per_chunk =
      std::clamp<int64_t>(kChunkPixels / std::max<int64_t>(in_w * in_step_h, 1), 1, end_row - begin_row);
  std::vector<int64_t> pair_count(tap_count);

  for (int64_t begin = begin_row; begin < end_row; begin += rows_per_chunk) {
    const int64_t end = std::min(end_row, begin + rows_per_chunk);
    // Input rows, counted over all images, between the first and the last that the chunk reads.
    const auto input_row = [&](int64_t output_row, int64_t h) {
      return output_row / out_h * in_h + std::clamp<int64_t>(output_row % out_h * in_step_h + h, 0, in_h - 1);
    };
    const int64_t x_first = input_row(begin, min_h), x_last = input_row(end - 1, max_h) + 1;
    const int64_t dy_pixels = (end - begin) * out_w, x_pixels = (x_last - x_first) * in_w;

    PixelPair* pairs = scratch<PixelPair>(Scratch::pairs, dy_pixels * tap_count);
    for (int64_t t = 0; t < tap_count; ++t) {
      PixelPair* pair = pairs + t * dy_pixels;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t h = row % out_h * in_step_h + taps[t].h;
        if (h < 0 || h >= in_h) continue;
        const int64_t x_row = (row / out_h * in_h + h - x_first) * in_w;
        for (int64_t q = 0; q < out_w; ++q) {
          const int64_t w = q * in_step_w + taps[t].w;
          if (w < 0 || w >= in_w) continue;
          *pair++ = {static_cast<int32_t>((row - begin) * out_w + q), static_cast<int32_t>(x_row + w)};
        }
      }
      pair_count[t] = pair - (pairs + t * dy_pixels);
    }

    const T* chunk_dy = dy + begin * out_w * dy_pixel_stride;
    A* packed_dy = scratch<A>(Scratch::packed_dy, dy_pixels * row_panels * kRows);
    parallel_for(dy_pixels, std::max<int64_t>(1, 8192 / rows), [&](int64_t first, int64_t last) {
      for (int64_t pixel = first; pixel < last; ++pixel)
        for (int64_t panel = 0; panel < row_panels; ++panel) {
          const int n = static_cast<int>(std::min<int64_t>(kRows, rows - panel * kRows));
          pack_maps(chunk_dy + pixel * dy_pixel_stride + panel * kRows, n,
                    packed_dy + panel * kRows * dy_pixels + pixel * n);
        }
    });
    A* packed_x = nullptr;
    if (!in_place) {
      packed_x = scratch<A>(Scratch::packed, x_pixels * col_panels * width);
      parallel_for(x_last - x_first, std::max<int64_t>(1, 8192 / (in_w * columns)), [&](int64_t first, int64_t last) {
        for (int64_t row = x_first + first; row < x_first + last; ++row)
          for (int64_t column = 0; column < columns; column += width) {
            const int n = static_cast<int>(std::min(width, columns - column));
            const int vectors = (n + kLane - 1) / kLane;
            const T* source = x + row / in_h * x_image_stride + row % in_h * x_row_stride + column;
            A* out = packed_x + x_pixels * column + (row - x_first) * in_w * vectors * kLane;
            for (int64_t pixel = 0; pixel < in_w; ++pixel, source += x_pixel_stride)
              for (int j = 0; j < vectors; ++j, out += kLane)
                store(out, load_n(source + j * kLane, std::min(kLane, n - j * kLane)));
          }
      });
    }

    const bool first_chunk = begin == begin_row && !accumulate;
    parallel_for(col_panels * tap_count * row_panels, 1, [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last; ++item) {
        const int64_t row_panel = item % row_panels, t = item / row_panels % tap_count;
        const int64_t column = item / row_panels / tap_count * width;
        const int n = static_cast<int>(std::min(width, columns - column));
        const int m = static_cast<int>(std::min<int64_t>(kRows, rows - row_panel * kRows));
        const int vectors = (n + kLane - 1) / kLane;
        const A* panel = packed_x + x_pixels * column;
        int64_t panel_stride = vectors * kLane;
        if constexpr (std::is_same_v<A, T>) {
          if (in_place) panel = x + x_first * x_row_stride + column, panel_stride = x_pixel_stride;
        }
        kTiles<A>(m, vectors)(pair_count[t], pairs + t * dy_pixels, packed_dy + row_panel * kRows * dy_pixels, panel,
                              panel_stride, dw + row_panel * kRows * dw_row_stride + taps[t].offset + column,
                              dw_row_stride, n, !first_chunk);
      }
    });
    if (dbias) {
      parallel_for(rows, 64, [&](int64_t first, int64_t last) {
        if (first_chunk) std::fill(dbias + first, dbias + last, A{});
        for (int64_t pixel = 0; pixel < dy_pixels; ++pixel)
          for (int64_t k = first; k < last; ++k) dbias[k] += to_acc(chunk_dy[pixel * dy_pixel_stride + k]);
      });
    }
  }
}

template <class T> void WgradGemm<T>::run() const {
  const int64_t output_rows = images * out_h, threads = thread_count();
  int64_t size = 0;  // of dw, from its first to its last element
  for (const WgradTap& tap : taps) size = std::max(size, (rows - 1) * dw_row_stride + tap.offset + columns);
  const int64_t copies = std::min(threads, output_rows);
  if (copies == 1 || copies * size * static_cast<int64_t>(sizeof(A)) > kMaxCopyBytes) return sum_rows(0, output_rows);

  const int64_t stride = size + rows;  // a copy of dw and one of dbias
  A* sums = scratch<A>(Scratch::sums, copies * stride);
  parallel_for(copies, 1, [&](int64_t first, int64_t last) {
    for (int64_t copy = first; copy < last; ++copy) {
      WgradGemm part = *this;
      part.dw = sums + copy * stride;
      if (dbias) part.dbias = part.dw + size;
      part.accumulate = false;
      part.sum_rows(output_rows * copy / copies, output_rows * (copy + 1) / copies);
    }
  });
  const auto reduce = [&](A* to, const A* from, int64_t count) {
    if (!accumulate) std::fill_n(to, count, A{});
    for (int64_t copy = 0; copy < copies; ++copy)
      for (int64_t i = 0; i < count; ++i) to[i] += from[copy * stride + i];
  };
  parallel_for(rows, std::max<int64_t>(1, 32768 * rows / size), [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k)
      for (const WgradTap& tap : taps) {
        const int64_t at = k * dw_row_stride + tap.offset;
        reduce(dw + at, sums + at, columns);
      }
  });
  if (dbias) reduce(dbias, sums + size, rows);
}

template struct WgradGemm<bf16>;
#if !defined(__AVX512BF16__)
template struct WgradGemm<float>;
template struct WgradGemm<double>;
template struct WgradGemm<f16>;
#endif

}  // namespace cnnkern::cpu::CNNKERN_ISA
