// Pooling over windows of an NHWC image, one vector of maps at a time.
//
//   max      y = max over the window, indices = its place h * W + w; the first of equals, the last NaN, as torch
//   average  y = sum over the window / divisor;  dx = sum of dy / divisor over the windows that cover the pixel
//   global   y = sum over the image / pixels
//
// A thread owns rows of pixels of the output (of dx for the average's backward, which gathers, so that nothing is added
// atomically). The backward of max scatters; there a thread owns a block of maps of an image, small enough that its
// sums stay in L2. Bound: memory bandwidth; overlapping windows re-read rows from L1 and L2.
#include <algorithm>
#include <limits>

#include "naming.h"
#include "threads.h"
#include "tool_functions.h"

namespace cnnkern::cpu::CNNKERN_ISA {
namespace {

// The window of one output position along an axis, cut off at the image: positions begin, begin + step, ... < end.
struct Window { int64_t begin, end; };

Window window_of(int64_t output, int64_t size, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  int64_t begin = output * stride - pad;
  const int64_t end = std::min(begin + (taps - 1) * dilation + 1, size);
  if (begin < 0) begin += (-begin + dilation - 1) / dilation * dilation;
  return {begin, end};
}

// Lanes of the index of the maximum; as wide as the accumulator, so that its comparison masks select it.
template <class A> using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
template <class A> using IndexVec = Vec<Index<A>>;

template <class T>
void max_pixel(const PoolShape& shape, const T* image, Window rows, Window columns, T* y, int64_t* indices) {
  using A = acc_t<T>;
  for (int64_t c = 0; c < shape.c; c += kLanes<T>) {
    const int n = static_cast<int>(std::min<int64_t>(shape.c - c, kLanes<T>));
    Vec<A> best = broadcast(-std::numeric_limits<A>::infinity());
    IndexVec<A> place = broadcast(static_cast<Index<A>>(rows.begin * shape.w + columns.begin));
    for (int64_t h = rows.begin; h < rows.end; h += shape.dilation_h) {
      for (int64_t w = columns.begin; w < columns.end; w += shape.dilation_w) {
        const int64_t pixel = h * shape.w + w;
        const Vec<A> value = load_n(image + pixel * shape.c + c, n);
        const IndexVec<A> better = (value > best) | (value != value);
        best = better ? value : best;
        place = better ? broadcast(static_cast<Index<A>>(pixel)) : place;
      }
    }
    store_n(y + c, best, n);
    for (int i = 0; i < n; ++i) indices[c + i] = place[i];
  }
}

template <class T>
void run_max(const PoolShape& shape, const T* x, T* y, int64_t* indices) {
  parallel_for(shape.n * shape.p, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* image = x + row / shape.p * shape.h * shape.w * shape.c;
      const Window rows = window_of(row % shape.p, shape.h, shape.r, shape.stride_h, shape.pad_h, shape.dilation_h);
      for (int64_t q = 0; q < shape.q; ++q) {
        const Window columns = window_of(q, shape.w, shape.s, shape.stride_w, shape.pad_w, shape.dilation_w);
        const int64_t at = (row * shape.q + q) * shape.c;
        max_pixel(shape, image, rows, columns, y + at, indices + at);
      }
    }
  });
}

template <class T>
void run_max_backward(const PoolShape& shape, const T* dy, const int64_t* indices, T* dx) {
  using A = acc_t<T>;
  constexpr int64_t kBlock = kLanes<T>;
  const int64_t blocks = (shape.c + kBlock - 1) / kBlock, pixels = shape.h * shape.w, outputs = shape.p * shape.q;
  parallel_for(shape.n * blocks, 1, [&](int64_t begin, int64_t end) {
    A* sums = scratch<A>(Scratch::local, pixels * kBlock);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / blocks, c = i % blocks * kBlock;
      const int n = static_cast<int>(std::min(shape.c - c, kBlock));
      std::fill(sums, sums + pixels * kBlock, A(0));
      for (int64_t pixel = 0; pixel < outputs; ++pixel) {
        const int64_t at = (image * outputs + pixel) * shape.c + c;
        for (int j = 0; j < n; ++j) sums[indices[at + j] * kBlock + j] += to_acc(dy[at + j]);
      }
      for (int64_t pixel = 0; pixel < pixels; ++pixel)
        store_n(dx + (image * pixels + pixel) * shape.c + c, load(sums + pixel * kBlock), n);
    }
  });
}

// The divisor of a window along one axis; torch counts padding but not what ceil_mode adds beyond it.
int64_t window_length(const PoolShape& shape, int64_t output, int64_t size, int64_t taps, int64_t stride, int64_t pad) {
  const int64_t begin = output * stride - pad, end = std::min(begin + taps, size + pad);
  return shape.count_include_pad ? end - begin : std::min(end, size) - std::max<int64_t>(begin, 0);
}

template <class T>
void run_average(const PoolShape& shape, const T* x, T* y) {
  using A = acc_t<T>;
  parallel_for(shape.n * shape.p, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* image = x + row / shape.p * shape.h * shape.w * shape.c;
      const int64_t p = row % shape.p;
      const Window rows = window_of(p, shape.h, shape.r, shape.stride_h, shape.pad_h, 1);
      const int64_t height = window_length(shape, p, shape.h, shape.r, shape.stride_h, shape.pad_h);
      for (int64_t q = 0; q < shape.q; ++q) {
        const Window columns = window_of(q, shape.w, shape.s, shape.stride_w, shape.pad_w, 1);
        const A divisor =
            static_cast<A>(height * window_length(shape, q, shape.w, shape.s, shape.stride_w, shape.pad_w));
        for (int64_t c = 0; c < shape.c; c += kLanes<T>) {
          const int n = static_cast<int>(std::min<int64_t>(shape.c - c, kLanes<T>));
          Vec<A> sum{};
          for (int64_t h = rows.begin; h < rows.end; ++h)
            for (int64_t w = columns.begin; w < columns.end; ++w)
              sum += load_n(image + (h * shape.w + w) * shape.c + c, n);
          store_n(y + (row * shape.q + q) * shape.c + c, sum / divisor, n);
        }
      }
    }
  });
}

// The outputs whose windows cover an input position: begin .. end - 1.
Window covering(int64_t position, int64_t outputs, int64_t taps, int64_t stride, int64_t pad) {
  const int64_t first = position + pad - taps + 1;
  return {first <= 0 ? 0 : (first + stride - 1) / stride, std::min((position + pad) / stride + 1, outputs)};
}

template <class T>
void run_average_backward(const PoolShape& shape, const T* dy, T* dx) {
  using A = acc_t<T>;
  parallel_for(shape.n * shape.h, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* image = dy + row / shape.h * shape.p * shape.q * shape.c;
      const Window rows = covering(row % shape.h, shape.p, shape.r, shape.stride_h, shape.pad_h);
      for (int64_t w = 0; w < shape.w; ++w) {
        const Window columns = covering(w, shape.q, shape.s, shape.stride_w, shape.pad_w);
        for (int64_t c = 0; c < shape.c; c += kLanes<T>) {
          const int n = static_cast<int>(std::min<int64_t>(shape.c - c, kLanes<T>));
          Vec<A> sum{};
          for (int64_t p = rows.begin; p < rows.end; ++p) {
            const int64_t height = window_length(shape, p, shape.h, shape.r, shape.stride_h, shape.pad_h);
            for (int64_t q = columns.begin; q < columns.end; ++q) {
              const A divisor =
                  static_cast<A>(height * window_length(shape, q, shape.w, shape.s, shape.stride_w, shape.pad_w));
              sum += load_n(image + (p * shape.q + q) * shape.c + c, n) / divisor;
            }
          }
          store_n(dx + (row * shape.w + w) * shape.c + c, sum, n);
        }
      }
    }
  });
}

template <class T>
void run_global_average(int64_t images, int64_t pixels, int64_t maps, const T* x, T* y) {
  using A = acc_t<T>;
  const int64_t blocks = (maps + kLanes<T> - 1) / kLanes<T>;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(pixels * kLanes<T>, 1));
  parallel_for(images * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / blocks, c = i % blocks * kLanes<T>;
      const int n = static_cast<int>(std::min<int64_t>(maps - c, kLanes<T>));
      const T* from = x + image * pixels * maps + c;
      Vec<A> sums[4]{};  // four chains, so that the adds overlap
      for (int64_t pixel = 0; pixel < pixels; ++pixel) sums[pixel % 4] += load_n(from + pixel * maps, n);
      store_n(y + image * maps + c, ((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<A>(pixels), n);
    }
  });
}

}  // namespace

void max_pool2d(const PoolShape& shape, DType dtype, const void* x, void* y, int64_t* indices) {
  with_dtype(dtype, [&]<class T>(T) { run_max(shape, static_cast<const T*>(x), static_cast<T*>(y), indices); });
}

void max_pool2d_backward(const PoolShape& shape, DType dtype, const void* dy, const int64_t* indices, void* dx) {
  with_dtype(dtype,
             [&]<class T>(T) { run_max_backward(shape, static_cast<const T*>(dy), indices, static_cast<T*>(dx)); });
}

void avg_pool2d(const PoolShape& shape, DType dtype, const void* x, void* y) {
  with_dtype(dtype, [&]<class T>(T) { run_average(shape, static_cast<const T*>(x), static_cast<T*>(y)); });
}

void avg_pool2d_backward(const PoolShape& shape, DType dtype, const void* dy, void* dx) {
  with_dtype(dtype, [&]<class T>(T) { run_average_backward(shape, static_cast<const T*>(dy), static_cast<T*>(dx)); });
}

void global_avg_pool2d(int64_t n, int64_t pixels, int64_t c, DType dtype, const void* x, void* y) {
  with_dtype(dtype,
             [&]<class T>(T) { run_global_average(n, pixels, c, static_cast<const T*>(x), static_cast<T*>(y)); });
}

}  // namespace cnnkern::cpu::CNNKERN_ISA
