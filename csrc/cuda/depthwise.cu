// Depthwise convolution, any filter, stride and dilation: each map is convolved with a filter of its own.
//
//   fprop  y[n,p,q,k]  = epilogue( sum over r,s of prologue(x[n, p*u - pad + r*l, q*u - pad + s*l, k]) * w[k,r,s] )
//   dgrad  dx[n,h,w,c] = sum over r,s of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, c] * w[c,r,s]
//   wgrad  dw[k,r,s]   = sum over n,p,q of dy[n,p,q,k] * prologue(x[n, p*u - pad + r*l, q*u - pad + s*l, k])
//
// x, y: NHWC with pixel strides; w: [K][R][S]. In fprop and dgrad a thread has one pixel and one map of what is written;
// in wgrad a block has one tap of 32 maps, and its 8 warps share the pixels. Neighbouring threads have neighbouring maps,
// so that a warp reads and writes whole lines.
//
// Bound: bytes of x and y once, the taps of a pixel are found in L1 and L2; but a load and some ten integer instructions
// for each product keep fprop below that: 3x3 on 512 maps of 14x14 at N = 256, bf16, dilation 2, takes 231 million
// products, some 0.1 ms, where 103 MB could pass in 24 us. wgrad reads dy and x once for each tap.
#include <primitives/divide.h>
#include <primitives/epilogue.h>
#include <primitives/launcher.h>
#include <primitives/shared.h>

#include "kernel_list.h"
#include "naming.h"
#include "pixel_tiling.h"

namespace cnnkern::cuda {
namespace {

constexpr int kWgradParts = 8;  // warps of a block, each of which has every 8th pixel

template <class T> struct Params {
  const T *from, *w;  // from: x or dy
  T* to;              // y or dx
  Affine<T> prologue;
  FusedEpilogue<T> epilogue;
  int64_t from_pixel_stride, to_pixel_stride;
  PixelTiling tiling;     // of what is written, a map a vector
  Divider width, height;  // of its images
  int from_h, from_w, r, s, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};

// Where tap i of a filter meets pixel `at` of one axis: the coordinate read, or -1 where there is none.
template <bool kTransposed> __device__ int met(int at, int i, int stride, int pad, int dilation, int size) {
  if (!kTransposed) {
    const int from = at * stride - pad + i * dilation;
    return from < size ? from : -1;  // below 0: also none
  }
  const int ahead = at + pad - i * dilation;
  return ahead % stride == 0 && ahead / stride < size ? ahead / stride : -1;
}

template <class T, bool kTransposed> __global__ void __launch_bounds__(kPixelThreads) depthwise_any(const Params<T> o) {
  int pixel, k;
  if (!o.tiling.place(pixel, k)) return;
  int image = pixel;
  const int column = o.width.split(image), row = o.height.split(image);

  float sum = 0;
  for (int r = 0; r < o.r; ++r) {
    const int h = met<kTransposed>(row, r, o.stride_h, o.pad_top, o.dilation_h, o.from_h);
    if (h < 0) continue;
    for (int s = 0; s < o.s; ++s) {
      const int w = met<kTransposed>(column, s, o.stride_w, o.pad_left, o.dilation_w, o.from_w);
      if (w < 0) continue;
      const int64_t at = (int64_t{image} * o.from_h + h) * o.from_w + w;
      sum += o.prologue(to_float(o.from[at * o.from_pixel_stride + k]), k) *
             to_float(o.w[(int64_t{k} * o.r + r) * o.s + s]);
    }
  }
  const float sums[] = {sum};
  o.to[int64_t{pixel} * o.to_pixel_stride + k] = o.epilogue(sums, pixel, k)[0];
}

template <class T> struct WgradParams {
  const T *x, *dy;
  T* dw;
  float* dbias;
  Affine<T> prologue;
  int64_t x_pixel_stride, dy_pixel_stride;
  Divider map_tiles, filter_s, width, height;
  int maps, pixels, taps;  // pixels of dy
  int h, w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};

// grid: tiles of 32 maps x taps
template <class T> __global__ void __launch_bounds__(32 * kWgradParts) depthwise_wgrad_any(const WgradParams<T> o) {
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  int tap = blockIdx.x;
  const int k = o.map_tiles.split(tap) * 32 + lane;
  int r = tap;
  const int s = o.filter_s.split(r);
  float sum = 0, bias = 0;
  if (k < o.maps) {
    for (int64_t pixel = part; pixel < o.pixels; pixel += kWgradParts) {
      int image = static_cast<int>(pixel);
      const int q = o.width.split(image), p = o.height.split(image);
      const int h = met<false>(p, r, o.stride_h, o.pad_top, o.dilation_h, o.h);
      const int w = met<false>(q, s, o.stride_w, o.pad_left, o.dilation_w, o.w);
      const float dy = to_float(o.dy[pixel * o.dy_pixel_stride + k]);
      bias += dy;
      if (h < 0 || w < 0) continue;
      const int64_t at = (int64_t{image} * o.h + h) * o.w + w;
      sum += dy * o.prologue(to_float(o.x[at * o.x_pixel_stride + k]), k);
    }
  }
  const Shared<float> sums = shared_memory<float>(), biases = sums + 32 * kWgradParts;
  sums.store(threadIdx.x, sum);
  biases.store(threadIdx.x, bias);
  __syncthreads();  // the first warp reads what all have written
  if (part > 0 || k >= o.maps) return;
  for (int i = 1; i < kWgradParts; ++i) {
    sum += sums.load(i * 32 + lane);
    bias += biases.load(i * 32 + lane);
  }
  o.dw[int64_t{k} * o.taps + tap] = from_float<T>(sum);
  if (o.dbias && tap == 0) o.dbias[k] = bias;
}

std::string why_not(const ConvProblem& p, const Flags&) {
  return !p.depthwise() ? "it is not depthwise" : too_many_pixels(p);
}

int whole(int64_t v) { return static_cast<int>(v); }

template <class T, bool kTransposed> void run(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const int64_t h = kTransposed ? p.h : p.p(), w = kTransposed ? p.w : p.q();
  const Params<T> o{.from = static_cast<const T*>(kTransposed ? operands.y : operands.x),
                    .w = static_cast<const T*>(operands.w),
                    .to = static_cast<T*>(kTransposed ? operands.x : operands.y),
                    .prologue = prologue_of<T>(p, operands),
                    .epilogue = epilogue_of<T>(p, operands),
                    .from_pixel_stride = kTransposed ? p.y_stride() : p.x_stride(),
                    .to_pixel_stride = kTransposed ? p.x_stride() : p.y_stride(),
                    .tiling = PixelTiling(p.n * h * w, p.k),
                    .width = Divider(w),
                    .height = Divider(h),
                    .from_h = whole(kTransposed ? p.p() : p.h),
                    .from_w = whole(kTransposed ? p.q() : p.w),
                    .r = whole(p.r),
                    .s = whole(p.s),
                    .stride_h = whole(p.stride_h),
                    .stride_w = whole(p.stride_w),
                    .pad_top = whole(p.pad_top),
                    .pad_left = whole(p.pad_left),
                    .dilation_h = whole(p.dilation_h),
                    .dilation_w = whole(p.dilation_w)};
  launch(depthwise_any<T, kTransposed>, {.x = o.tiling.blocks(), .threads = kPixelThreads}, o, call);
}

template <class T> void run_wgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const int64_t map_tiles = (p.k + 31) / 32;
  const WgradParams<T> o{.x = static_cast<const T*>(operands.x),
                         .dy = static_cast<const T*>(operands.y),
                         .dw = static_cast<T*>(operands.w),
                         .dbias = operands.dbias,
                         .prologue = prologue_of<T>(p, operands),
                         .x_pixel_stride = p.x_stride(),
                         .dy_pixel_stride = p.y_stride(),
                         .map_tiles = Divider(map_tiles),
                         .filter_s = Divider(p.s),
                         .width = Divider(p.q()),
                         .height = Divider(p.p()),
                         .maps = whole(p.k),
                         .pixels = whole(p.n * p.p() * p.q()),
                         .taps = whole(p.r * p.s),
                         .h = whole(p.h),
                         .w = whole(p.w),
                         .stride_h = whole(p.stride_h),
                         .stride_w = whole(p.stride_w),
                         .pad_top = whole(p.pad_top),
                         .pad_left = whole(p.pad_left),
                         .dilation_h = whole(p.dilation_h),
                         .dilation_w = whole(p.dilation_w)};
  const Grid grid{.x = map_tiles * p.r * p.s,
                  .threads = 32 * kWgradParts,
                  .shared_bytes = 2 * 32 * kWgradParts * static_cast<int>(sizeof(float))};
  launch(depthwise_wgrad_any<T>, grid, o, call);
}

template <class T> void append(KernelList& list) {
  const auto name = [](Direction direction) { return kernel_name("depthwise", direction, kDTypeOf<T>, "any"); };
  list.push_back({name(Direction::fprop), why_not, nullptr, nullptr, run<T, false>});
  list.push_back({name(Direction::dgrad), why_not, nullptr, nullptr, run<T, true>});
  list.push_back({name(Direction::wgrad), why_not, nullptr, nullptr, run_wgrad<T>});
}

}  // namespace

void append_depthwise(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
