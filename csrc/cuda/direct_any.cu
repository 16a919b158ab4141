// The kernels of last resort: every problem, with any groups, filter, stride, dilation, alignment and number of pixels,
// and no workspace.
//
//   fprop  y[n,p,q,k]  = epilogue( sum over r,s,c of prologue(x[n, p*u - pad + r*l, q*u - pad + s*l, c]) * w[k,r,s,c] )
//   dgrad  dx[n,h,w,c] = sum over r,s,k of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, k] * w[k,r,s,c]
//   wgrad  dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * prologue(x[n, p*u - pad + r*l, q*u - pad + s*l, c])
//
// c and k run over one group. x, y: NHWC with pixel strides; w: [K][R][S][C / groups]. In fprop and dgrad a thread has one
// pixel and one map; in wgrad a block has 32 neighbouring weights of one filter, and its 8 warps share the rows of dy.
// Everything is counted in 64 bits.
//
// Bound: load instructions, two for each product. At a quarter of a load per clock and lane (32 lanes, 132
// multiprocessors, 1.75 GHz) some 1.8e12 products a second: 3x3 on 64 maps of 56x56 at N = 256, 30 GFMA, takes 16 ms.
#include <primitives/epilogue.h>
#include <primitives/launcher.h>
#include <primitives/shared.h>

#include "kernel_list.h"
#include "naming.h"

namespace cnnkern::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kParts = 8;  // warps of a block in wgrad

template <class T> struct Params {
  T *x, *w, *y;
  float* dbias;
  Affine<T> prologue;
  FusedEpilogue<T> epilogue;
  int64_t x_pixel_stride, y_pixel_stride;
  int64_t n, h, w_, p, q, k, c, r, s, c_per_group, k_per_group;
  int64_t stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  int lanes, map_tiles;  // maps of a block; blocks for all maps

  __device__ int64_t input_row(int64_t p_, int64_t r_) const { return p_ * stride_h - pad_top + r_ * dilation_h; }
  __device__ int64_t input_column(int64_t q_, int64_t s_) const { return q_ * stride_w - pad_left + s_ * dilation_w; }
  __device__ bool inside(int64_t h_, int64_t column) const { return h_ >= 0 && h_ < h && column >= 0 && column < w_; }
  __device__ const T* x_pixel(int64_t image, int64_t h_, int64_t column) const {
    return x + ((image * h + h_) * w_ + column) * x_pixel_stride;
  }
};

// The thread's pixel and map; the pixel is behind the last where it has none.
struct Place { int64_t pixel, map; };
template <class T> __device__ Place place_of(const Params<T>& o, int64_t pixels, int64_t maps) {
  const int block = blockIdx.x, thread = threadIdx.x, block_pixels = kThreads / o.lanes, own = thread / o.lanes;
  const int64_t map = int64_t{block % o.map_tiles} * o.lanes + thread % o.lanes;
  return {own < block_pixels && map < maps ? int64_t{block / o.map_tiles} * block_pixels + own : pixels, map};
}

template <class T> __global__ void __launch_bounds__(kThreads) direct_fprop_any(const Params<T> o) {
  const int64_t pixels = o.n * o.p * o.q;
  const auto [pixel, k] = place_of(o, pixels, o.k);
  if (pixel >= pixels) return;
  const int64_t q = pixel % o.q, p = pixel / o.q % o.p, image = pixel / o.q / o.p;
  const int64_t first = k / o.k_per_group * o.c_per_group;
  float sum = 0;
  for (int64_t r = 0; r < o.r; ++r) {
    for (int64_t s = 0; s < o.s; ++s) {
      const int64_t h = o.input_row(p, r), column = o.input_column(q, s);
      if (!o.inside(h, column)) continue;
      const T* const weights = o.w + ((k * o.r + r) * o.s + s) * o.c_per_group;
      const T* const x = o.x_pixel(image, h, column) + first;
      for (int c = 0; c < o.c_per_group; ++c)
        sum += o.prologue(to_float(x[c]), static_cast<int>(first) + c) * to_float(weights[c]);
    }
  }
  const float sums[] = {sum};
  o.y[pixel * o.y_pixel_stride + k] = o.epilogue(sums, pixel, static_cast<int>(k))[0];
}

// The pixel of dy that one axis of a tap meets, or -1 where there is none.
__device__ inline int64_t met(int64_t ahead, int64_t stride, int64_t size) {
  return ahead >= 0 && ahead % stride == 0 && ahead / stride < size ? ahead / stride : -1;
}

template <class T> __global__ void __launch_bounds__(kThreads) direct_dgrad_any(const Params<T> o) {
  const int64_t pixels = o.n * o.h * o.w_;
  const auto [pixel, c] = place_of(o, pixels, o.c);
  if (pixel >= pixels) return;
  const int64_t column = pixel % o.w_, h = pixel / o.w_ % o.h, image = pixel / o.w_ / o.h;
  const int64_t group = c / o.c_per_group, first = group * o.k_per_group;
  const int64_t filter = o.r * o.s * o.c_per_group;
  float sum = 0;
  for (int64_t r = 0; r < o.r; ++r) {
    const int64_t p = met(h + o.pad_top - r * o.dilation_h, o.stride_h, o.p);
    if (p < 0) continue;
    for (int64_t s = 0; s < o.s; ++s) {
      const int64_t q = met(column + o.pad_left - s * o.dilation_w, o.stride_w, o.q);
      if (q < 0) continue;
      const T* const dy = o.y + ((image * o.p + p) * o.q + q) * o.y_pixel_stride + first;
      const T* weight = o.w + ((first * o.r + r) * o.s + s) * o.c_per_group + (c - group * o.c_per_group);
      for (int64_t k = 0; k < o.k_per_group; ++k, weight += filter) sum += to_float(dy[k]) * to_float(*weight);
    }
  }
  o.x[pixel * o.x_pixel_stride + c] = from_float<T>(sum);
}

// grid: filters x runs of 32 of their weights
template <class T> __global__ void __launch_bounds__(32 * kParts) direct_wgrad_any(const Params<T> o) {
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const int64_t k = int64_t{blockIdx.x} % o.k, size = o.r * o.s * o.c_per_group;
  const int64_t weight = int64_t{blockIdx.x} / o.k * 32 + lane;
  const int64_t c = weight % o.c_per_group + k / o.k_per_group * o.c_per_group;
  const int64_t s = weight / o.c_per_group % o.s, r = weight / o.c_per_group / o.s;
  float sum = 0, bias = 0;
  if (weight < size) {
    int64_t image = 0, p = part;
    for (int64_t row = part; row < o.n * o.p; row += kParts, p += kParts) {
      for (; p >= o.p; p -= o.p) ++image;
      const int64_t h = o.input_row(p, r);
      for (int64_t q = 0; q < o.q; ++q) {
        const float dy = to_float(o.y[(row * o.q + q) * o.y_pixel_stride + k]);
        const int64_t column = o.input_column(q, s);
        bias += dy;
        if (o.inside(h, column)) sum += dy * o.prologue(to_float(o.x_pixel(image, h, column)[c]), static_cast<int>(c));
      }
    }
  }
  const Shared<float> sums = shared_memory<float>(), biases = sums + 32 * kParts;
  sums.store(threadIdx.x, sum);
  biases.store(threadIdx.x, bias);
  __syncthreads();  // the first warp reads what all have written
  if (part > 0 || weight >= size) return;
  for (int i = 1; i < kParts; ++i) {
    sum += sums.load(i * 32 + lane);
    bias += biases.load(i * 32 + lane);
  }
  o.w[k * size + weight] = from_float<T>(sum);
  if (o.dbias && weight == 0) o.dbias[k] = bias;
}

std::string why_not(const ConvProblem&, const Flags&) { return ""; }

template <class T> Params<T> params_of(const ConvProblem& p, const Operands& operands, int64_t maps) {
  const int64_t map_tiles = (maps + kThreads - 1) / kThreads;
  return {.x = static_cast<T*>(operands.x),
          .w = static_cast<T*>(operands.w),
          .y = static_cast<T*>(operands.y),
          .dbias = operands.dbias,
          .prologue = prologue_of<T>(p, operands),
          .epilogue = epilogue_of<T>(p, operands),
          .x_pixel_stride = p.x_stride(),
          .y_pixel_stride = p.y_stride(),
          .n = p.n,
          .h = p.h,
          .w_ = p.w,
          .p = p.p(),
          .q = p.q(),
          .k = p.k,
          .c = p.c,
          .r = p.r,
          .s = p.s,
          .c_per_group = p.c_per_group(),
          .k_per_group = p.k_per_group(),
          .stride_h = p.stride_h,
          .stride_w = p.stride_w,
          .pad_top = p.pad_top,
          .pad_left = p.pad_left,
          .dilation_h = p.dilation_h,
          .dilation_w = p.dilation_w,
          .lanes = static_cast<int>((maps + map_tiles - 1) / map_tiles),
          .map_tiles = static_cast<int>(map_tiles)};
}

template <class T> void run_pixels(void (*kernel)(Params<T>), int64_t pixels, int64_t maps, const Operands& operands,
                                   const Call& call) {
  const Params<T> o = params_of<T>(call.problem, operands, maps);
  const int64_t block_pixels = kThreads / o.lanes;
  launch(kernel, {.x = o.map_tiles * ((pixels + block_pixels - 1) / block_pixels), .threads = kThreads}, o, call);
}

template <class T> void run_fprop(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  run_pixels<T>(direct_fprop_any<T>, p.n * p.p() * p.q(), p.k, operands, call);
}

template <class T> void run_dgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  run_pixels<T>(direct_dgrad_any<T>, p.n * p.h * p.w, p.c, operands, call);
}

template <class T> void run_wgrad(const Operands& operands, const Call& call) {
  const ConvProblem& p = call.problem;
  const Params<T> o = params_of<T>(p, operands, p.k);
  const Grid grid{.x = p.k * ((p.r * p.s * p.c_per_group() + 31) / 32),
                  .threads = 32 * kParts,
                  .shared_bytes = 2 * 32 * kParts * static_cast<int>(sizeof(float))};
  launch(direct_wgrad_any<T>, grid, o, call);
}

template <class T> void append(KernelList& list) {
  const auto name = [](Direction direction) { return kernel_name("direct", direction, kDTypeOf<T>, "any"); };
  list.push_back({name(Direction::fprop), why_not, nullptr, nullptr, run_fprop<T>});
  list.push_back({name(Direction::dgrad), why_not, nullptr, nullptr, run_dgrad<T>});
  list.push_back({name(Direction::wgrad), why_not, nullptr, nullptr, run_wgrad<T>});
}

}  // namespace

void append_direct_any(KernelList& list) {
  append<float>(list);
  append<bf16>(list);
  append<f16>(list);
}

}  // namespace cnnkern::cuda
