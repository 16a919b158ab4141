// Pooling over windows of an NHWC image.
//
//   max       y = max over the window, indices = its place h * W + w: the first of equals, the last NaN, as in torch
//             dx = sum of dy over the windows that cover the pixel and picked it
//   average   y = sum over the window / divisor;  dx = sum of dy / divisor over the windows that cover the pixel
//
// A thread has one pixel and one vector of maps of what is written (16 bytes where everything lies so, else one map) and
// reads the taps of its window, or the windows that cover it: the backward passes gather, in order of p and q, so that
// nothing is added atomically and the bits are the same from every run. Overlapping windows are found in L1 and L2.
//
// Bound: memory. ResNet's 3x3/2 max pool of 64 maps of 112x112 pixels at N = 256 in bf16 moves 411 MB of x, 103 of y and
// 411 of indices: 0.21 ms at 4.3 TB/s, and as much in its backward pass. The average moves 514 MB: 0.12 ms.
#include <primitives/launcher.h>
#include <primitives/numeric.h>

#include <limits>

#include "pixel_tiling.h"
#include "tools.h"
#include "with_type.h"

namespace cnnkern::cuda {
namespace {

template <class T> struct Params {
  const T* from;     // x or dy
  T* to;             // y or dx
  int64_t* indices;  // max pooling
  int64_t from_pixel_stride;
  PixelTiling tiling;     // of what is written
  Divider width, height;  // of its images
  int maps;
  int h, w, p, q, r, s, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool count_include_pad;
};

// What a thread writes.
struct Place {
  int pixel, map, image, row, column;
  bool there;
};
template <int kVector, class T> __device__ Place place_of(const Params<T>& o) {
  Place at{};
  at.there = o.tiling.place(at.pixel, at.map);
  at.map *= kVector;
  at.image = at.pixel;
  if (at.there) at.column = o.width.split(at.image), at.row = o.height.split(at.image);
  return at;
}

// The window of an output position on an axis, cut off at the image: begin, begin + dilation, ... < end.
struct Span { int begin, end; };
__device__ inline Span window_of(int output, int size, int taps, int stride, int pad, int dilation) {
  const int first = output * stride - pad, end = min(first + (taps - 1) * dilation + 1, size);
  return {first < 0 ? first + (dilation - 1 - first) / dilation * dilation : first, end};
}
// The output positions whose windows, `extent` pixels long, cover an input position: begin .. end - 1.
__device__ inline Span covering(int position, int outputs, int extent, int stride, int pad) {
  const int first = position + pad - extent + 1;
  return {first <= 0 ? 0 : (first + stride - 1) / stride, min((position + pad) / stride + 1, outputs)};
}
// A window's share of the divisor on an axis: padding may count, what ceil_mode adds beyond it does not.
__device__ inline int window_length(int output, int size, int taps, int stride, int pad, bool count_pad) {
  const int begin = output * stride - pad, end = min(begin + taps, size + pad);
  return count_pad ? end - begin : min(end, size) - max(begin, 0);
}

template <class T, int kVector> __global__ void __launch_bounds__(kPixelThreads) max_pool(const Params<T> o) {
  const Place at = place_of<kVector>(o);
  if (!at.there) return;
  const Span rows = window_of(at.row, o.h, o.r, o.stride_h, o.pad_h, o.dilation_h);
  const Span columns = window_of(at.column, o.w, o.s, o.stride_w, o.pad_w, o.dilation_w);
  float best[kVector];
  int index[kVector];  // where nothing is greater than -inf, torch names the first tap inside the image
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    best[i] = -std::numeric_limits<float>::infinity();
    index[i] = rows.begin * o.w + columns.begin;
  }
  for (int h = rows.begin; h < rows.end; h += o.dilation_h) {
    const T* const row = o.from + (int64_t{at.image} * o.h + h) * o.w * o.from_pixel_stride + at.map;
    for (int w = columns.begin; w < columns.end; w += o.dilation_w) {
      const Vector<T, kVector> x = load_vector<kVector>(row + w * o.from_pixel_stride);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float value = to_float(x[i]);
        if (!(value > best[i] || value != value)) continue;
        best[i] = value;
        index[i] = h * o.w + w;
      }
    }
  }
  const int64_t out = int64_t{at.pixel} * o.maps + at.map;
  Vector<T, kVector> y;
#pragma unroll
  for (int i = 0; i < kVector; ++i) y[i] = from_float<T>(best[i]);
  store_vector(o.to + out, y);
  constexpr int kIndices = kVector == 1 ? 1 : 2;  // of 8 bytes, at once
#pragma unroll
  for (int i = 0; i < kVector; i += kIndices) {
    Vector<int64_t, kIndices> places;
#pragma unroll
    for (int j = 0; j < kIndices; ++j) places[j] = index[i + j];
    store_vector(o.indices + out + i, places);
  }
}

template <class T, int kVector> __global__ void __launch_bounds__(kPixelThreads) max_pool_backward(const Params<T> o) {
  const Place at = place_of<kVector>(o);
  if (!at.there) return;
  const Span rows = covering(at.row, o.p, (o.r - 1) * o.dilation_h + 1, o.stride_h, o.pad_h);
  const Span columns = covering(at.column, o.q, (o.s - 1) * o.dilation_w + 1, o.stride_w, o.pad_w);
  const int own = at.row * o.w + at.column;
  float sums[kVector] = {};
  for (int p = rows.begin; p < rows.end; ++p) {
    for (int q = columns.begin; q < columns.end; ++q) {
      const int64_t pixel = (int64_t{at.image} * o.p + p) * o.q + q;
      const Vector<T, kVector> dy = load_vector<kVector>(o.from + pixel * o.from_pixel_stride + at.map);
      constexpr int kIndices = kVector == 1 ? 1 : 2;
#pragma unroll
      for (int i = 0; i < kVector; i += kIndices) {
        const auto places = load_vector<kIndices>(o.indices + pixel * o.maps + at.map + i);
#pragma unroll
        for (int j = 0; j < kIndices; ++j)
          if (places[j] == own) sums[i + j] += to_float(dy[i + j]);
      }
    }
  }
  Vector<T, kVector> dx;
#pragma unroll
  for (int i = 0; i < kVector; ++i) dx[i] = from_float<T>(sums[i]);
  store_vector(o.to + int64_t{at.pixel} * o.maps + at.map, dx);
}

template <class T, int kVector> __global__ void __launch_bounds__(kPixelThreads) avg_pool(const Params<T> o) {
  const Place at = place_of<kVector>(o);
  if (!at.there) return;
  const Span rows = window_of(at.row, o.h, o.r, o.stride_h, o.pad_h, 1);
  const Span columns = window_of(at.column, o.w, o.s, o.stride_w, o.pad_w, 1);
  float sums[kVector] = {};
  for (int h = rows.begin; h < rows.end; ++h) {
    const T* const row = o.from + (int64_t{at.image} * o.h + h) * o.w * o.from_pixel_stride + at.map;
    for (int w = columns.begin; w < columns.end; ++w) {
      const Vector<T, kVector> x = load_vector<kVector>(row + w * o.from_pixel_stride);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums[i] += to_float(x[i]);
    }
  }
  const int height = window_length(at.row, o.h, o.r, o.stride_h, o.pad_h, o.count_include_pad);
  const int width = window_length(at.column, o.w, o.s, o.stride_w, o.pad_w, o.count_include_pad);
  const float divisor = static_cast<float>(height) * static_cast<float>(width);
  Vector<T, kVector> y;
#pragma unroll
  for (int i = 0; i < kVector; ++i) y[i] = from_float<T>(sums[i] / divisor);
  store_vector(o.to + int64_t{at.pixel} * o.maps + at.map, y);
}

template <class T, int kVector> __global__ void __launch_bounds__(kPixelThreads) avg_pool_backward(const Params<T> o) {
  const Place at = place_of<kVector>(o);
  if (!at.there) return;
  const Span rows = covering(at.row, o.p, o.r, o.stride_h, o.pad_h);
  const Span columns = covering(at.column, o.q, o.s, o.stride_w, o.pad_w);
  float sums[kVector] = {};
  for (int p = rows.begin; p < rows.end; ++p) {
    const int height = window_length(p, o.h, o.r, o.stride_h, o.pad_h, o.count_include_pad);
#pragma unroll 1
    for (int q = columns.begin; q < columns.end; ++q) {
      const int width = window_length(q, o.w, o.s, o.stride_w, o.pad_w, o.count_include_pad);
      const float divisor = static_cast<float>(height) * static_cast<float>(width);
      const int64_t pixel = (int64_t{at.image} * o.p + p) * o.q + q;
      const Vector<T, kVector> dy = load_vector<kVector>(o.from + pixel * o.from_pixel_stride + at.map);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums[i] += to_float(dy[i]) / divisor;
    }
  }
  Vector<T, kVector> dx;
#pragma unroll
  for (int i = 0; i < kVector; ++i) dx[i] = from_float<T>(sums[i]);
  store_vector(o.to + int64_t{at.pixel} * o.maps + at.map, dx);
}

// What one call reads and writes.
struct Tensors {
  const void* from;
  int64_t from_pixel_stride;
  void* to;
  int64_t* indices;
  bool backward;
};

template <class T> using PoolKernel = void (*)(Params<T>);

template <class T>
void run(PoolKernel<T> wide, PoolKernel<T> narrow, const Pooling& s, const Tensors& tensors, const Call& call) {
  const int64_t rows = tensors.backward ? s.h : s.p, columns = tensors.backward ? s.w : s.q;
  if (s.n * s.h * s.w >= int64_t{1} << 31 || s.n * s.p * s.q >= int64_t{1} << 31)
    fail(call, "its pixels are counted in 32 bits");
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  const bool vectors = s.c % kWidest<T> == 0 && tensors.from_pixel_stride % kWidest<T> == 0 && aligned(tensors.from) &&
                       aligned(tensors.to) && aligned(tensors.indices);
  const auto whole = [](int64_t v) { return static_cast<int>(v); };
  const Params<T> o{.from = static_cast<const T*>(tensors.from),
                    .to = static_cast<T*>(tensors.to),
                    .indices = tensors.indices,
                    .from_pixel_stride = tensors.from_pixel_stride,
                    .tiling = PixelTiling(s.n * rows * columns, vectors ? s.c / kWidest<T> : s.c),
                    .width = Divider(columns),
                    .height = Divider(rows),
                    .maps = whole(s.c),
                    .h = whole(s.h),
                    .w = whole(s.w),
                    .p = whole(s.p),
                    .q = whole(s.q),
                    .r = whole(s.r),
                    .s = whole(s.s),
                    .stride_h = whole(s.stride_h),
                    .stride_w = whole(s.stride_w),
                    .pad_h = whole(s.pad_h),
                    .pad_w = whole(s.pad_w),
                    .dilation_h = whole(s.dilation_h),
                    .dilation_w = whole(s.dilation_w),
                    .count_include_pad = s.count_include_pad};
  launch(vectors ? wide : narrow, {.x = o.tiling.blocks(), .threads = kPixelThreads}, o, call);
}

}  // namespace

void max_pool2d(const Pooling& pooling, const void* x, int64_t x_pixel_stride, void* y, int64_t* indices,
                const Call& call) {
  with_type(pooling.dtype, call, [&]<class T>(T) {
    run<T>(max_pool<T, kWidest<T>>, max_pool<T, 1>, pooling, {x, x_pixel_stride, y, indices, false}, call);
  });
}

void max_pool2d_backward(const Pooling& pooling, const void* dy, int64_t dy_pixel_stride, const int64_t* indices,
                         void* dx, const Call& call) {
  const Tensors tensors{dy, dy_pixel_stride, dx, const_cast<int64_t*>(indices), true};
  with_type(pooling.dtype, call, [&]<class T>(T) {
    run<T>(max_pool_backward<T, kWidest<T>>, max_pool_backward<T, 1>, pooling, tensors, call);
  });
}

void avg_pool2d(const Pooling& pooling, const void* x, int64_t x_pixel_stride, void* y, const Call& call) {
  with_type(pooling.dtype, call, [&]<class T>(T) {
    run<T>(avg_pool<T, kWidest<T>>, avg_pool<T, 1>, pooling, {x, x_pixel_stride, y, nullptr, false}, call);
  });
}

void avg_pool2d_backward(const Pooling& pooling, const void* dy, int64_t dy_pixel_stride, void* dx, const Call& call) {
  with_type(pooling.dtype, call, [&]<class T>(T) {
    run<T>(avg_pool_backward<T, kWidest<T>>, avg_pool_backward<T, 1>, pooling, {dy, dy_pixel_stride, dx, nullptr, true},
           call);
  });
}

}  // namespace cnnkern::cuda
