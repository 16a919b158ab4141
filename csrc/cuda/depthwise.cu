// Depthwise convolution, any filter: each map is convolved with a filter of its own.
//
//   fprop  y[n,p,q,k]  = epilogue( sum over r,s of prologue(x[n, p*u - pad + r*l, q*u - pad + s*l, k]) * w[k,r,s] )
//   dgrad  dx[n,h,w,c] = sum over r,s of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, c] * w[c,r,s]
//
// x, y: NHWC with pixel strides; w: [K][R][S]. A thread has one pixel and one map of what is written; neighbouring
// threads have neighbouring maps, so that a warp reads and writes whole lines.
//
// Bound: bytes of x and y once; the taps of a pixel are found in L1 and L2.
#include <primitives/divide.h>
#include <primitives/epilogue.h>
#include <primitives/launcher.h>

#include "kernel_list.h"
#include "naming.h"

namespace cnnkern::cuda {
namespace {

constexpr int kThreads = 128;

template <class T> struct Params {
  const T *from, *w;  // from: x or dy
  T* to;              // y or dx
  Affine<T> prologue;
  FusedEpilogue<T> epilogue;
  int64_t from_pixel_stride, to_pixel_stride;
  int64_t elements;  // of what is written
  Divider maps, width, height;
  int from_h, from_w, r, s, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};

// Where tap i of a filter meets pixel `at` of one axis: the coordinate read, or -1 where there is none.
template <bool kTransposed> __device__ int tap(int at, int i, int stride, int pad, int dilation, int size) {
  if (!kTransposed) {
    const int from = at * stride - pad + i * dilation;
    return from < size ? from : -1;  // below 0: also none
  }
  const int ahead = at + pad - i * dilation;
  return ahead % stride == 0 && ahead / stride < size ? ahead / stride : -1;
}

template <class T, bool kTransposed> __global__ void __launch_bounds__(kThreads) depthwise_any(const Params<T> o) {
  const int64_t element = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (element >= o.elements) return;
  const int k = static_cast<int>(element % o.maps.divisor());
  const int pixel = static_cast<int>(element / o.maps.divisor());
  int rest = pixel;
  const int column = o.width.split(rest), row = o.height.split(rest), image = rest;

  float sum = 0;
  for (int r = 0; r < o.r; ++r) {
    const int h = tap<kTransposed>(row, r, o.stride_h, o.pad_top, o.dilation_h, o.from_h);
    if (h < 0) continue;
    for (int s = 0; s < o.s; ++s) {
      const int w = tap<kTransposed>(column, s, o.stride_w, o.pad_left, o.dilation_w, o.from_w);
      if (w < 0) continue;
      const int64_t at = (int64_t{image} * o.from_h + h) * o.from_w + w;
      sum += o.prologue(to_float(o.from[at * o.from_pixel_stride + k]), k) *
             to_float(o.w[(int64_t{k} * o.r + r) * o.s + s]);
    }
  }
  const float sums[] = {sum};
  o.to[pixel * o.to_pixel_stride + k] = o.epilogue(sums, pixel, k)[0];
}

std::string why_not(const ConvProblem& p, const Flags&) {
  return !p.depthwise() ? "it is not depthwise" : too_many_pixels(p);
}

template <class T, bool kTransposed> void run(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const int64_t h = kTransposed ? p.h : p.p(), w = kTransposed ? p.w : p.q();
  Params<T> o{.from = static_cast<const T*>(kTransposed ? operands.y : operands.x),
              .w = static_cast<const T*>(operands.w),
              .to = static_cast<T*>(kTransposed ? operands.x : operands.y),
              .prologue = prologue_of<T>(p, operands),
              .epilogue = epilogue_of<T>(p, operands),
              .from_pixel_stride = kTransposed ? p.y_stride() : p.x_stride(),
              .to_pixel_stride = kTransposed ? p.x_stride() : p.y_stride(),
              .elements = p.n * h * w * p.k,
              .maps = Divider(p.k),
              .width = Divider(w),
              .height = Divider(h),
              .from_h = static_cast<int>(kTransposed ? p.p() : p.h),
              .from_w = static_cast<int>(kTransposed ? p.q() : p.w),
              .r = static_cast<int>(p.r),
              .s = static_cast<int>(p.s),
              .stride_h = static_cast<int>(p.stride_h),
              .stride_w = static_cast<int>(p.stride_w),
              .pad_top = static_cast<int>(p.pad_top),
              .pad_left = static_cast<int>(p.pad_left),
              .dilation_h = static_cast<int>(p.dilation_h),
              .dilation_w = static_cast<int>(p.dilation_w)};
  const Grid grid{.x = (o.elements + kThreads - 1) / kThreads, .threads = kThreads};
  launch(depthwise_any<T, kTransposed>, grid, o, call);
}

template <class T> void append(KernelList& list) {
  const auto name = [](Direction direction) { return kernel_name("depthwise", direction, kDTypeOf<T>, "any"); };
  list.push_back({name(Direction::fprop), why_not, nullptr, nullptr, run<T, false>});
  list.push_back({name(Direction::dgrad), why_not, nullptr, nullptr, run<T, true>});
}

}  // namespace

void append_depthwise(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
