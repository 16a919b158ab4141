// The CUDA kernels that are no single convolution, as functions. Nothing here waits for the GPU.
//
// Pointers are device pointers, tensors NHWC. A Call names the tool and what it was called for, in errors only; its
// problem is the tool's shape as far as a ConvProblem can say it (pooling: a depthwise one). Calls without elements
// never come here; one of 2^31 pixels or more fails.
#pragma once

#include <cstdint>
#include <string>

#include "kernel.h"

namespace cnnkern::cuda {

// y[pixel][j * groups + g] = x[pixel][g * (channels / groups) + j], on elements of 1, 2, 4 or 8 bytes; strides are from
// pixel to pixel, in elements.
struct Shuffle {
  const void* x = nullptr;
  void* y = nullptr;
  int64_t pixels = 1, channels = 1, groups = 1;
  int64_t x_pixel_stride = 0, y_pixel_stride = 0;
  int element_size = 4;
};
void channel_shuffle(const Shuffle& shuffle, const Call& call);

// Pooling of n images of h x w pixels with c maps by windows of r x s into p x q pixels. The output size is given, as
// torch's ceil_mode has rules of its own for it; windows are cut off at the image's borders. What is read has a pixel
// stride, in elements; what is written is dense.
struct Pooling {
  DType dtype = DType::f32;  // f32, bf16 or f16
  int64_t n = 1, c = 1, h = 1, w = 1, p = 1, q = 1;
  int64_t r = 1, s = 1;
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  bool count_include_pad = true;  // average: divide by the window's size with its padding
};
// indices: [n, p, q, c], the maximum's place h * W + w in its image plane; NaN counts as the largest, as in torch.
void max_pool2d(const Pooling& pooling, const void* x, int64_t x_pixel_stride, void* y, int64_t* indices,
                const Call& call);
void max_pool2d_backward(const Pooling& pooling, const void* dy, int64_t dy_pixel_stride, const int64_t* indices,
                         void* dx, const Call& call);
void avg_pool2d(const Pooling& pooling, const void* x, int64_t x_pixel_stride, void* y, const Call& call);
void avg_pool2d_backward(const Pooling& pooling, const void* dy, int64_t dy_pixel_stride, void* dx, const Call& call);

// y [n, c] = the means of x [n, pixels, c]. A null workspace is enough where workspace bytes are 0.
int64_t global_avg_pool2d_workspace_bytes(int64_t n, int64_t pixels, int64_t c);
void global_avg_pool2d(DType dtype, int64_t n, int64_t pixels, int64_t c, const void* x, int64_t x_pixel_stride,
                       void* y, void* workspace, const Call& call);

// A batch-normalised layer in training (batch_norm.cu has its formulas): z, what is added to it, and what is done to
// each of its maps over all pixels. z is dense and aligned to 16 bytes; a null gamma is 1, a null beta and residual are
// 0.
struct BatchNorm {
  DType dtype = DType::f32;  // of z, residual, y and their gradients: f32, bf16 or f16
  int64_t pixels = 1, maps = 1;
  const void *z = nullptr, *residual = nullptr;
  int64_t residual_pixel_stride = 0;
  const float *gamma = nullptr, *beta = nullptr;  // [maps]
  float* moments = nullptr;                       // [4][maps]: mean, var, scale, shift
  float eps = 0, alpha = 0;
  Activation activation = Activation::none;
};
// They are moved by `momentum` towards mean and unbiased variance; null: there are none.
struct RunningStatistics {
  float *mean = nullptr, *var = nullptr;
  float momentum = 0;
};

// Statistics of z (dense, aligned to 16 bytes), a partial [3][maps] for each of some ranges of pixels.
int64_t batch_statistics_partials(DType dtype, int64_t pixels, int64_t maps);
void batch_statistics(DType dtype, int64_t pixels, int64_t maps, const void* z, float* partials, const Call& call);
// The layer's moments, of partials.
int64_t batch_moments_workspace_bytes(int64_t partials, int64_t maps);
void batch_moments(const BatchNorm& layer, const float* partials, int64_t count, const RunningStatistics& running,
                   void* workspace, const Call& call);

// y, dense.
void batch_norm(const BatchNorm& layer, void* y, const Call& call);
// dz and dresidual, dense, dgamma and dbeta; all but dz may be null.
struct BatchNormGradients {
  const void* dy = nullptr;
  int64_t dy_pixel_stride = 0;
  void *dz = nullptr, *dresidual = nullptr;
  float *dgamma = nullptr, *dbeta = nullptr;  // [maps]
};
int64_t batch_norm_backward_workspace_bytes(DType dtype, int64_t pixels, int64_t maps);
void batch_norm_backward(const BatchNorm& layer, const BatchNormGradients& gradients, void* workspace,
                         const Call& call);

// Max pooling of a convolution's result, which is not kept:  y = max over windows of act(scale * conv(x) + shift).
// `problem` is the convolution's, with its epilogue; `pooling` is of its result. y of the operands is the pooled one,
// dense. Empty where it can be computed, else a clause that says why it cannot.
std::string conv_max_pool2d_why_not(const ConvProblem& problem, const Pooling& pooling, const Flags& flags);
void conv_max_pool2d(const ConvProblem& problem, const Pooling& pooling, const Flags& flags, const Operands& operands,
                     const Call& call);

// A depthwise convolution and the 1x1 on what it gives, in one kernel:
//   y = act(scale * conv1x1(act(scale * depthwise(x) + shift)) + shift),  scale and shift of each step its own.
// `depthwise` and `pointwise` are the fprop problems of the two steps, with their epilogues.
// Empty where the pair can be computed, else a clause that says why it cannot.
std::string separable_why_not(const ConvProblem& depthwise, const ConvProblem& pointwise, const Flags& flags);
// x and w, scale and shift of `first` are the depthwise step's; w, y, scale and shift of `second` the 1x1's.
void separable(const ConvProblem& depthwise, const ConvProblem& pointwise, const Flags& flags, const Operands& first,
               const Operands& second, const Call& call);

}  // namespace cnnkern::cuda
