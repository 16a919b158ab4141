// NCHW <-> NHWC is a transpose of each image: [c][h * w] <-> [h * w][c].
//
// A transpose runs over tiles of kTile x kTile elements, small enough that both sides of a tile stay in the L1 and L2
// caches while its cache lines are read and filled piece by piece; threads take whole tiles. Inside a tile, blocks of
// N x N elements are turned in N registers of 16 bytes: log2(N) rounds of interleaving register i with i + N / 2.
// One core of a Zen 4 moves 30 to 45 GB/s (read and written) so where memcpy moves 70 to 100 in cache, and a third of
// memcpy's rate out of memory.
#include "layout.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "threads.h"

namespace cnnkern::cpu {
namespace {

constexpr int64_t kTile = 64;
constexpr size_t kLineBytes = 64;
constexpr int64_t kGrainBytes = 64 << 10;  // less than this is not worth a second thread

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Units of work of `unit_bytes` that one thread should take at least.
int64_t grain_of(int64_t unit_bytes) { return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, unit_bytes)); }

// --- transposes -----------------------------------------------------------------------------------------------------

template <class T> constexpr int kLanes = 16 / static_cast<int>(sizeof(T));
template <class T> struct RegisterType {
  typedef T type __attribute__((vector_size(16), aligned(alignof(T)), may_alias));
};
template <class T> using Register = typename RegisterType<T>::type;

// First = 0: a0 b0 a1 b1 ... of the lower halves of a and b; First = N / 2: the same of the upper halves.
template <class T, int First, size_t... I>
Register<T> interleave(Register<T> a, Register<T> b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (First + static_cast<int>(I) / 2 + (I % 2 ? kLanes<T> : 0))...);
}

// target[j][i] = source[i][j] for i, j < N.
template <class T>
void transpose_block(const T* source, int64_t source_stride, T* target, int64_t target_stride) {
  constexpr int N = kLanes<T>;
  constexpr auto lanes = std::make_index_sequence<N>();
  Register<T> rows[N], mixed[N];
  for (int i = 0; i < N; ++i) rows[i] = *reinterpret_cast<const Register<T>*>(source + i * source_stride);
  for (int round = 1; round < N; round *= 2) {
    for (int i = 0; i < N / 2; ++i) {
      mixed[2 * i] = interleave<T, 0>(rows[i], rows[i + N / 2], lanes);
      mixed[2 * i + 1] = interleave<T, N / 2>(rows[i], rows[i + N / 2], lanes);
    }
    for (int i = 0; i < N; ++i) rows[i] = mixed[i];
  }
  for (int j = 0; j < N; ++j) *reinterpret_cast<Register<T>*>(target + j * target_stride) = rows[j];
}

// Whole cache lines of the target are gathered first: at a target stride of some KiB the lines of a tile compete for
// the same few places of the L1 cache, and a line written in four parts would be fetched four times.
template <class T>
void transpose_tile(const T* source, int64_t source_stride, int64_t rows, int64_t columns, T* target,
                    int64_t target_stride) {
  constexpr int64_t N = kLanes<T>, L = kLineBytes / sizeof(T);
  const int64_t line_rows = rows - rows % L, block_rows = rows - rows % N, block_columns = columns - columns % N;
  alignas(kLineBytes) T lines[N * L];
  for (int64_t i = 0; i < line_rows; i += L) {
    for (int64_t j = 0; j < block_columns; j += N) {
      for (int64_t k = 0; k < L; k += N) {
        transpose_block(source + (i + k) * source_stride + j, source_stride, lines + k, L);
      }
      for (int64_t k = 0; k < N; ++k) std::memcpy(target + (j + k) * target_stride + i, lines + k * L, kLineBytes);
    }
  }
  for (int64_t i = line_rows; i < block_rows; i += N) {
    for (int64_t j = 0; j < block_columns; j += N) {
      transpose_block(source + i * source_stride + j, source_stride, target + j * target_stride + i, target_stride);
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = j < block_columns ? block_rows : 0; i < rows; ++i) {
      target[j * target_stride + i] = source[i * source_stride + j];
    }
  }
}

// A matrix of `rows` x `columns` whose columns are adjacent, in each of `outer` x `inner` places; its transpose goes to
// the same places of the target.
struct Transposes {
  int64_t outer, inner, rows, columns;
  int64_t source_outer, source_inner, source_stride;
  int64_t target_outer, target_inner, target_stride;
};

template <class T>
void transpose_all(const Transposes& t, const T* source, T* target) {
  const int64_t row_tiles = ceil_div(t.rows, kTile), column_tiles = ceil_div(t.columns, kTile);
  const int64_t tile_bytes = std::min(t.rows, kTile) * std::min(t.columns, kTile) * static_cast<int64_t>(sizeof(T));
  parallel_for(t.outer * t.inner * row_tiles * column_tiles, grain_of(tile_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t row = tile % row_tiles * kTile, column = tile / row_tiles % column_tiles * kTile;
      const int64_t place = tile / row_tiles / column_tiles;
      const int64_t o = place / t.inner, i = place % t.inner;
      transpose_tile(source + o * t.source_outer + i * t.source_inner + row * t.source_stride + column, t.source_stride,
                     std::min(kTile, t.rows - row), std::min(kTile, t.columns - column),
                     target + o * t.target_outer + i * t.target_inner + column * t.target_stride + row,
                     t.target_stride);
    }
  });
}

// --- copies of any strides ------------------------------------------------------------------------------------------

struct Shape {
  int64_t n, c, h, w;
  explicit Shape(const int64_t* sizes) : n(sizes[0]), c(sizes[1]), h(sizes[2]), w(sizes[3]) {}
};

// Maps adjacent: pixels are copied whole. Otherwise element by element; few tensors of this kind are ever met.
template <class T>
void copy_pixels(const T* source, const Shape& s, const int64_t* strides, T* target) {
  const int64_t row_bytes = s.w * s.c * static_cast<int64_t>(sizeof(T));
  parallel_for(s.n * s.h, grain_of(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = source + row / s.h * strides[0] + row % s.h * strides[2];
      T* to = target + row * s.w * s.c;
      if (strides[1] == 1) {
        for (int64_t w = 0; w < s.w; ++w) std::memcpy(to + w * s.c, from + w * strides[3], sizeof(T) * s.c);
        continue;
      }
      for (int64_t w = 0; w < s.w; ++w) {
        for (int64_t c = 0; c < s.c; ++c) to[w * s.c + c] = from[w * strides[3] + c * strides[1]];
      }
    }
  });
}

template <class T>
void to_nhwc(const void* source, const int64_t* sizes, const int64_t* strides, void* target) {
  const Shape s(sizes);
  const T* from = static_cast<const T*>(source);
  T* to = static_cast<T*>(target);
  if (s.w > 1 && strides[3] != 1) return copy_pixels(from, s, strides, to);
  if (s.w == 1 && strides[2] != 1) return copy_pixels(from, s, strides, to);
  const bool dense_image = s.h == 1 || s.w == 1 || strides[2] == s.w;
  const Transposes images{s.n, 1, s.c, s.h * s.w, strides[0], 0, strides[1], s.c * s.h * s.w, 0, s.c};
  const Transposes rows{s.n, s.h, s.c, s.w, strides[0], strides[2], strides[1], s.c * s.h * s.w, s.w * s.c, s.c};
  transpose_all(dense_image ? images : rows, from, to);
}

template <class T>
void to_nchw(const void* source, const int64_t* sizes, void* target) {
  const Shape s(sizes);
  const int64_t pixels = s.h * s.w, image = s.c * pixels;
  transpose_all(Transposes{s.n, 1, pixels, s.c, image, 0, s.c, image, 0, pixels}, static_cast<const T*>(source),
                static_cast<T*>(target));
}

// Calls body with an unsigned integer as wide as the element: copies do not care for its meaning.
template <class Body>
void with_element(size_t size, const Body& body) {
  if (size == 2) return body(uint16_t{});
  if (size == 4) return body(uint32_t{});
  body(uint64_t{});
}

}  // namespace

int64_t nhwc_pixel_stride(const int64_t* sizes, const int64_t* strides) {
  const Shape s(sizes);
  if (s.c != 1 && strides[1] != 1) return 0;
  const int64_t pixel = s.w > 1 ? strides[3] : s.h > 1 ? strides[2] : s.n > 1 ? strides[0] : s.c;
  if (pixel < s.c) return 0;
  if (s.h > 1 && strides[2] != s.w * pixel) return 0;
  if (s.n > 1 && strides[0] != s.h * s.w * pixel) return 0;
  return pixel;
}

bool suggests_channels_last(const int64_t* sizes, const int64_t* strides) {
  if (strides[1] == 0) return false;
  int64_t least = 0;
  for (const int dim : {1, 3, 2, 0}) {
    if (sizes[dim] == 0 || strides[dim] < least) return false;
    if (dim == 0 && least == strides[1]) return false;  // n x 1 x 1 x 1 with equal strides counts as contiguous
    least = strides[dim] * std::max<int64_t>(sizes[dim], 1);
  }
  return true;
}

void dense_strides(const int64_t* sizes, bool channels_last, int64_t* strides) {
  constexpr int kContiguous[] = {3, 2, 1, 0}, kChannelsLast[] = {1, 3, 2, 0};
  int64_t stride = 1;
  for (const int dim : channels_last ? kChannelsLast : kContiguous) {
    strides[dim] = stride;
    stride *= channels_last ? sizes[dim] : std::max<int64_t>(sizes[dim], 1);
  }
}

bool contiguous(const int64_t* sizes, const int64_t* strides) {
  int64_t dense[4];
  dense_strides(sizes, false, dense);
  const bool empty = !(sizes[0] && sizes[1] && sizes[2] && sizes[3]);
  for (int i = 0; i < 4; ++i) {
    if (!empty && sizes[i] != 1 && strides[i] != dense[i]) return false;
  }
  return true;
}

void copy_to_nhwc(const void* source, const int64_t* sizes, const int64_t* strides, size_t element_size, void* target) {
  with_element(element_size, [&](auto element) { to_nhwc<decltype(element)>(source, sizes, strides, target); });
}

void copy_to_nchw(const void* source, const int64_t* sizes, size_t element_size, void* target) {
  with_element(element_size, [&](auto element) { to_nchw<decltype(element)>(source, sizes, target); });
}

}  // namespace cnnkern::cpu
