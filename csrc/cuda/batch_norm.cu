// Batch normalisation with the statistics of the batch itself, its residual and activation, forward and backward.
//
// Per map of z, over n pixels, with the moments of batch_statistics.cu and u = z - mean:
//
//   forward   v = scale * u + beta + residual,  y = act(v)
//   backward  g = dy * act'(v),  dbeta = sum g,  dgamma = sum g u / sqrt(var + eps),  dresidual = g
//             dz = A g + B u + C,  A = scale,  B = -scale / (var + eps) * (sum g u) / n,  C = -scale * (sum g) / n
//
// (mean passes on the sum of scale * g, u's own sum being zero; var, whose derivative is 2 u / n, that of g u times
// gamma * d(rstd)/d(var) = -scale / (var + eps) / 2.) The mean is subtracted before anything is multiplied: that keeps
// the digits that scale * z + shift loses where the mean is large against sigma. v is computed anew from z, so that
// nothing but z and the residual is kept.
//
// z, y, dz: [pixels][maps]; dy and residual with a pixel stride. A thread has one vector of maps (16 bytes where
// everything lies so, else one map), whose coefficients stay in registers, and every nth pixel of its block's range. Of
// a map's two sums a block leaves its part in the workspace, [ranges][2][maps], and one block for 32 maps adds them in
// order and works out B and C: the same bits from every run.
//
// Bound: bytes. In bf16 the forward pass moves 4 an element, the backward 4 for the sums and 6 for dz, a residual 2
// more in each and 2 for its gradient: ResNet's 64 maps of 56x56 pixels at N = 256, 51 million elements, on an H200
// (4.3 TB/s) 48 us forward and 119 us backward.
#include <primitives/launcher.h>

#include "moments.h"
#include "pixel_ranges.h"
#include "thread_tile.h"
#include "tools.h"
#include "with_type.h"

namespace cnnkern::cuda {
namespace {

constexpr int64_t kSumBlocks = 528;  // about four for each multiprocessor of an H200, a constant as the bits are by it
constexpr int64_t kPixels = 8;       // of a thread that writes
constexpr int kLanes = 32, kRows = 16;  // of a block that adds sums

template <class T> struct Params {
  const T *z = nullptr, *residual = nullptr, *dy = nullptr;
  T *to = nullptr, *dresidual = nullptr;  // to: y or dz
  const float *moments = nullptr, *beta = nullptr;
  float* sums = nullptr;                // [ranges][2][maps]
  const float* coefficients = nullptr;  // [2][maps]: B and C
  int64_t maps = 1, residual_pixel_stride = 0, dy_pixel_stride = 0;
  Activation activation = Activation::none;
  float alpha = 0;
  PixelRanges ranges;
};

// Neighbouring floats of a vector of maps; `otherwise` where there are none.
template <int kVector> struct Maps {
  float at[kVector];

  __device__ Maps(const float* from, int64_t map, float otherwise) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) at[i] = from ? from[map + i] : otherwise;
  }
  __device__ float operator[](int i) const { return at[i]; }
};

// act'(v), torch's where there are two.
__device__ inline float slope(float v, Activation activation, float alpha) {
  switch (activation) {
    case Activation::none: return 1;
    case Activation::relu: return v <= 0 ? 0 : 1;
    case Activation::relu6: return v <= 0 || v >= 6 ? 0 : 1;
    case Activation::leaky_relu: return v > 0 ? 1 : alpha;
    case Activation::elu: return v > 0 ? 1 : alpha * expf(v);
    case Activation::hardswish: return v <= -3 ? 0 : v < 3 ? v / 3 + 0.5f : 1;
    case Activation::silu: {
      const float sigmoid = 1 / (1 + expf(-v));
      return sigmoid * (1 + v * (1 - sigmoid));
    }
    case Activation::sigmoid: {
      const float sigmoid = 1 / (1 + expf(-v));
      return sigmoid * (1 - sigmoid);
    }
    case Activation::tanh: {
      const float y = tanhf(v);
      return 1 - y * y;
    }
  }
  return 1;
}

// What a thread's maps have in common over its pixels, and a pixel of them.
template <class T, int kVector> struct Layer {
  const Params<T>& o;
  const int64_t map;
  const Maps<kVector> mean{o.moments, map, 0}, scale{o.moments + 2 * o.maps, map, 0}, beta{o.beta, map, 0};

  // u and v of a pixel.
  __device__ void before_activation(int64_t pixel, float (&u)[kVector], float (&v)[kVector]) const {
    const Vector<T, kVector> z = load_vector<kVector>(o.z + pixel * o.maps + map);
    Vector<T, kVector> added{};
    if (o.residual) added = load_vector<kVector>(o.residual + pixel * o.residual_pixel_stride + map);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      u[i] = to_float(z[i]) - mean[i];
      v[i] = u[i] * scale[i] + beta[i] + (o.residual ? to_float(added[i]) : 0);
    }
  }
  // u and g of a pixel.
  __device__ void gradient(int64_t pixel, float (&u)[kVector], float (&g)[kVector]) const {
    const Vector<T, kVector> dy = load_vector<kVector>(o.dy + pixel * o.dy_pixel_stride + map);
    before_activation(pixel, u, g);
    with_activation(o.activation, [&]<Activation kActivation>() {
#pragma unroll
      for (int i = 0; i < kVector; ++i) g[i] = slope(g[i], kActivation, o.alpha);
    });
#pragma unroll
    for (int i = 0; i < kVector; ++i) g[i] *= to_float(dy[i]);
  }
};

template <class T, int kVector> __device__ void store(T* to, const float (&values)[kVector]) {
  Vector<T, kVector> rounded;
#pragma unroll
  for (int i = 0; i < kVector; ++i) rounded[i] = from_float<T>(values[i]);
  store_vector(to, rounded);
}

template <class T, int kVector> __global__ void __launch_bounds__(kRangeThreads) normalise(const Params<T> o) {
  const PixelRanges::Own own = o.ranges.own();
  if (!own.there) return;
  const Layer<T, kVector> layer{o, int64_t{own.vector} * kVector};
  for (int64_t pixel = own.first; pixel < own.end; pixel += o.ranges.rows) {
    float u[kVector], v[kVector];
    layer.before_activation(pixel, u, v);
    activate_each(v, o.activation, o.alpha);
    store(o.to + pixel * o.maps + layer.map, v);
  }
}

// The sums of g and of g * u.
struct Sums {
  float g = 0, gu = 0;

  __device__ void merge(const Sums& other) {
    g += other.g;
    gu += other.gu;
  }
};
template <int kVector> struct SumsOfMaps {
  Sums at[kVector];

  __device__ void merge(const SumsOfMaps& other) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) at[i].merge(other.at[i]);
  }
};

template <class T, int kVector> __global__ void __launch_bounds__(kRangeThreads) sum_gradients(const Params<T> o) {
  const PixelRanges::Own own = o.ranges.own();
  SumsOfMaps<kVector> sums;
  if (own.there) {
    const Layer<T, kVector> layer{o, int64_t{own.vector} * kVector};
    for (int64_t pixel = own.first; pixel < own.end; pixel += o.ranges.rows) {
      float u[kVector], g[kVector];
      layer.gradient(pixel, u, g);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums.at[i].merge({g[i], g[i] * u[i]});
    }
  }
  merge_rows(sums, own.row, o.ranges.rows, own.lane, o.ranges.lanes.divisor());
  if (own.row > 0 || !own.there) return;
  float* const to = o.sums + own.range * 2 * o.maps + int64_t{own.vector} * kVector;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    to[i] = sums.at[i].g;
    to[o.maps + i] = sums.at[i].gu;
  }
}

struct CoefficientParams {
  const float *sums, *moments;
  float *dgamma, *dbeta, *coefficients;
  int64_t ranges, maps;
  float pixels, eps;
};

// grid: tiles of 32 maps
__global__ void __launch_bounds__(kLanes* kRows) find_coefficients(const CoefficientParams o) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, row = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t map = int64_t{blockIdx.x} * kLanes + lane;
  Sums all;
  if (map < o.maps) {
#pragma unroll 4
    for (int64_t range = row; range < o.ranges; range += kRows) {
      const float* const from = o.sums + range * 2 * o.maps + map;
      all.merge({from[0], from[o.maps]});
    }
  }
  merge_rows(all, row, kRows, lane, kLanes);
  if (row > 0 || map >= o.maps) return;
  const float rstd = 1 / sqrtf(o.moments[o.maps + map] + o.eps), scale = o.moments[2 * o.maps + map];
  o.coefficients[map] = -scale * rstd * rstd * all.gu / o.pixels;
  o.coefficients[o.maps + map] = -scale * all.g / o.pixels;
  if (o.dgamma) o.dgamma[map] = rstd * all.gu;
  if (o.dbeta) o.dbeta[map] = all.g;
}

template <class T, int kVector> __global__ void __launch_bounds__(kRangeThreads) find_dz(const Params<T> o) {
  const PixelRanges::Own own = o.ranges.own();
  if (!own.there) return;
  const Layer<T, kVector> layer{o, int64_t{own.vector} * kVector};
  const Maps<kVector> b(o.coefficients, layer.map, 0), c(o.coefficients + o.maps, layer.map, 0);
  for (int64_t pixel = own.first; pixel < own.end; pixel += o.ranges.rows) {
    float u[kVector], g[kVector], dz[kVector];
    layer.gradient(pixel, u, g);
#pragma unroll
    for (int i = 0; i < kVector; ++i) dz[i] = layer.scale[i] * g[i] + (b[i] * u[i] + c[i]);
    store(o.to + pixel * o.maps + layer.map, dz);
    if (o.dresidual) store(o.dresidual + pixel * o.maps + layer.map, g);
  }
}

// --- host ------------------------------------------------------------------------------------------------------------

template <class T> bool in_vectors(const BatchNorm& layer, const BatchNormGradients& gradients = {}) {
  const auto fits = [](const void* at, int64_t stride) {
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 && stride % kWidest<T> == 0;
  };
  return layer.maps % kWidest<T> == 0 && fits(layer.residual, layer.residual_pixel_stride) &&
         fits(gradients.dy, gradients.dy_pixel_stride);
}

PixelRanges sum_ranges(int64_t pixels, int64_t vectors) { return PixelRanges::long_ones(pixels, vectors, kSumBlocks); }

template <class T> Params<T> params_of(const BatchNorm& layer, T* to, const PixelRanges& ranges) {
  return {.z = static_cast<const T*>(layer.z),
          .residual = static_cast<const T*>(layer.residual),
          .to = to,
          .moments = layer.moments,
          .beta = layer.beta,
          .maps = layer.maps,
          .residual_pixel_stride = layer.residual_pixel_stride,
          .activation = layer.activation,
          .alpha = layer.alpha,
          .ranges = ranges};
}

template <class T, int kVector> void run_forward(const BatchNorm& layer, void* y, const Call& call) {
  const auto ranges = PixelRanges::short_ones(layer.pixels, layer.maps / kVector, kPixels);
  launch(normalise<T, kVector>, ranges.grid(), params_of(layer, static_cast<T*>(y), ranges), call);
}

template <class T, int kVector>
void run_backward(const BatchNorm& layer, const BatchNormGradients& gradients, void* workspace, const Call& call) {
  const int64_t vectors = layer.maps / kVector;
  auto* const coefficients = static_cast<float*>(workspace);
  Params<T> o = params_of(layer, static_cast<T*>(gradients.dz), sum_ranges(layer.pixels, vectors));
  o.dy = static_cast<const T*>(gradients.dy);
  o.dy_pixel_stride = gradients.dy_pixel_stride;
  o.dresidual = static_cast<T*>(gradients.dresidual);
  o.coefficients = coefficients;
  o.sums = coefficients + 2 * layer.maps;
  launch(sum_gradients<T, kVector>, o.ranges.grid(kRangeThreads * kVector * static_cast<int>(sizeof(Sums))), o, call);

  const CoefficientParams found{.sums = o.sums,
                                .moments = layer.moments,
                                .dgamma = gradients.dgamma,
                                .dbeta = gradients.dbeta,
                                .coefficients = coefficients,
                                .ranges = o.ranges.ranges(),
                                .maps = layer.maps,
                                .pixels = static_cast<float>(layer.pixels),
                                .eps = layer.eps};
  const Grid grid{.x = (layer.maps + kLanes - 1) / kLanes,
                  .threads = kLanes * kRows,
                  .shared_bytes = kLanes * kRows * static_cast<int>(sizeof(Sums))};
  launch(find_coefficients, grid, found, call);

  o.ranges = PixelRanges::short_ones(layer.pixels, vectors, kPixels);
  launch(find_dz<T, kVector>, o.ranges.grid(), o, call);
}

}  // namespace

void batch_norm(const BatchNorm& layer, void* y, const Call& call) {
  with_type(layer.dtype, call, [&]<class T>(T) {
    if (in_vectors<T>(layer)) run_forward<T, kWidest<T>>(layer, y, call);
    else run_forward<T, 1>(layer, y, call);
  });
}

int64_t batch_norm_backward_workspace_bytes(DType dtype, int64_t pixels, int64_t maps) {
  // Whichever of the two ways of run_backward has more ranges.
  const int64_t vector = 16 / kDTypeSizes[static_cast<int>(dtype)];
  const int64_t single = sum_ranges(pixels, maps).ranges();
  const int64_t ranges = maps % vector ? single : std::max(single, sum_ranges(pixels, maps / vector).ranges());
  return 2 * (1 + ranges) * maps * static_cast<int64_t>(sizeof(float));
}

void batch_norm_backward(const BatchNorm& layer, const BatchNormGradients& gradients, void* workspace,
                         const Call& call) {
  with_type(layer.dtype, call, [&]<class T>(T) {
    if (in_vectors<T>(layer, gradients)) run_backward<T, kWidest<T>>(layer, gradients, workspace, call);
    else run_backward<T, 1>(layer, gradients, workspace, call);
  });
}

}  // namespace cnnkern::cuda
