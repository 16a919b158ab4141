// The C interface of the kernels that are no single convolution (tools.h).
#include <string>

#include "library.h"
#include "library_error.h"

using namespace cnnkern;
using namespace cnnkern::cuda;

namespace {

const std::string kShuffle = "cuda_channel_shuffle", kMaxPool = "cuda_max_pool2d", kAvgPool = "cuda_avg_pool2d",
                  kGlobalPool = "cuda_global_avg_pool2d", kBatchNorm = "cuda_batch_norm",
                  kConvMaxPool = "cuda_conv_max_pool2d", kSeparable = "cuda_depthwise_separable";

// A pooling or a shuffle as far as a problem can say it, for errors.
ConvProblem problem_of(const Pooling& p) {
  ConvProblem problem{.n = p.n,
                      .c = p.c,
                      .h = p.h,
                      .w = p.w,
                      .k = p.c,
                      .r = p.r,
                      .s = p.s,
                      .groups = p.c,
                      .prologue = {},
                      .epilogue = {},
                      .dtype = p.dtype};
  problem.stride_h = p.stride_h, problem.stride_w = p.stride_w;
  problem.pad_top = problem.pad_bottom = p.pad_h, problem.pad_left = problem.pad_right = p.pad_w;
  problem.dilation_h = p.dilation_h, problem.dilation_w = p.dilation_w;
  return problem;
}

ConvProblem pixels_problem(int64_t pixels, int64_t channels, int64_t groups) {
  return {.n = pixels, .c = channels, .k = channels, .groups = groups, .prologue = {}, .epilogue = {}};
}

}  // namespace

extern "C" {

const char* cnnkern_cuda_channel_shuffle(const Shuffle* shuffle, int device, void* stream) {
  return error_of([&] {
    const ConvProblem problem = pixels_problem(shuffle->pixels, shuffle->channels, shuffle->groups);
    channel_shuffle(*shuffle, {problem, kShuffle, device, stream});
  });
}

const char* cnnkern_cuda_max_pool2d(const Pooling* pooling, const void* x, int64_t x_pixel_stride, void* y,
                                    int64_t* indices, int device, void* stream) {
  return error_of(
      [&] { max_pool2d(*pooling, x, x_pixel_stride, y, indices, {problem_of(*pooling), kMaxPool, device, stream}); });
}

const char* cnnkern_cuda_max_pool2d_backward(const Pooling* pooling, const void* dy, int64_t dy_pixel_stride,
                                             const int64_t* indices, void* dx, int device, void* stream) {
  return error_of([&] {
    max_pool2d_backward(*pooling, dy, dy_pixel_stride, indices, dx, {problem_of(*pooling), kMaxPool, device, stream});
  });
}

const char* cnnkern_cuda_avg_pool2d(const Pooling* pooling, const void* x, int64_t x_pixel_stride, void* y, int device,
                                    void* stream) {
  return error_of(
      [&] { avg_pool2d(*pooling, x, x_pixel_stride, y, {problem_of(*pooling), kAvgPool, device, stream}); });
}

const char* cnnkern_cuda_avg_pool2d_backward(const Pooling* pooling, const void* dy, int64_t dy_pixel_stride, void* dx,
                                             int device, void* stream) {
  return error_of([&] {
    avg_pool2d_backward(*pooling, dy, dy_pixel_stride, dx, {problem_of(*pooling), kAvgPool, device, stream});
  });
}

int64_t cnnkern_cuda_global_avg_pool2d_workspace_bytes(int64_t n, int64_t pixels, int64_t c) {
  return global_avg_pool2d_workspace_bytes(n, pixels, c);
}

const char* cnnkern_cuda_global_avg_pool2d(int dtype, int64_t n, int64_t pixels, int64_t c, const void* x,
                                           int64_t x_pixel_stride, void* y, void* workspace, int device, void* stream) {
  return error_of([&] {
    const ConvProblem problem = pixels_problem(n * pixels, c, c);
    global_avg_pool2d(static_cast<DType>(dtype), n, pixels, c, x, x_pixel_stride, y, workspace,
                      {problem, kGlobalPool, device, stream});
  });
}

int64_t cnnkern_cuda_batch_statistics_partials(int dtype, int64_t pixels, int64_t maps) {
  return batch_statistics_partials(static_cast<DType>(dtype), pixels, maps);
}

const char* cnnkern_cuda_batch_statistics(int dtype, int64_t pixels, int64_t maps, const void* z, float* partials,
                                          int device, void* stream) {
  return error_of([&] {
    const ConvProblem problem = pixels_problem(pixels, maps, maps);
    batch_statistics(static_cast<DType>(dtype), pixels, maps, z, partials, {problem, kBatchNorm, device, stream});
  });
}

int64_t cnnkern_cuda_batch_moments_workspace_bytes(int64_t partials, int64_t maps) {
  return batch_moments_workspace_bytes(partials, maps);
}

const char* cnnkern_cuda_batch_moments(const BatchNorm* layer, const float* partials, int64_t count,
                                       const RunningStatistics* running, void* workspace, int device, void* stream) {
  return error_of([&] {
    const ConvProblem problem = pixels_problem(layer->pixels, layer->maps, layer->maps);
    batch_moments(*layer, partials, count, *running, workspace, {problem, kBatchNorm, device, stream});
  });
}

const char* cnnkern_cuda_batch_norm(const BatchNorm* layer, void* y, int device, void* stream) {
  return error_of([&] {
    const ConvProblem problem = pixels_problem(layer->pixels, layer->maps, layer->maps);
    batch_norm(*layer, y, {problem, kBatchNorm, device, stream});
  });
}

int64_t cnnkern_cuda_batch_norm_backward_workspace_bytes(int dtype, int64_t pixels, int64_t maps) {
  return batch_norm_backward_workspace_bytes(static_cast<DType>(dtype), pixels, maps);
}

const char* cnnkern_cuda_batch_norm_backward(const BatchNorm* layer, const BatchNormGradients* gradients,
                                             void* workspace, int device, void* stream) {
  return error_of([&] {
    const ConvProblem problem = pixels_problem(layer->pixels, layer->maps, layer->maps);
    batch_norm_backward(*layer, *gradients, workspace, {problem, kBatchNorm, device, stream});
  });
}

const char* cnnkern_cuda_conv_max_pool2d_why_not(const char* problem, const Pooling* pooling, int64_t flags,
                                                 int capability) {
  return caught([&] {
    return kept(conv_max_pool2d_why_not(ConvProblem::parse(problem), *pooling, flags_of(flags, capability)));
  });
}

const char* cnnkern_cuda_conv_max_pool2d(const char* problem, const Pooling* pooling, int64_t flags, int capability,
                                         const Operands* operands, int device, void* stream) {
  return error_of([&] {
    const ConvProblem p = ConvProblem::parse(problem);
    conv_max_pool2d(p, *pooling, flags_of(flags, capability), *operands, {p, kConvMaxPool, device, stream});
  });
}

const char* cnnkern_cuda_separable_why_not(const char* depthwise, const char* pointwise, int64_t flags) {
  return caught([&] {
    return kept(separable_why_not(ConvProblem::parse(depthwise), ConvProblem::parse(pointwise), flags_of(flags, 0)));
  });
}

const char* cnnkern_cuda_separable(const char* depthwise, const char* pointwise, int64_t flags, const Operands* first,
                                   const Operands* second, int device, void* stream) {
  return error_of([&] {
    const ConvProblem problem = ConvProblem::parse(depthwise);
    separable(problem, ConvProblem::parse(pointwise), flags_of(flags, 0), *first, *second,
              {problem, kSeparable, device, stream});
  });
}

}  // extern "C"
