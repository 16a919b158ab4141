// The C interface of the kernels that are no single convolution (tools.h).
#include <string>

#include "library.h"
#include "library_error.h"

using namespace cnnkern;
using namespace cnnkern::cuda;

namespace {

const std::string kShuffle = "cuda_channel_shuffle", kMaxPool = "cuda_max_pool2d", kAvgPool = "cuda_avg_pool2d",
                  kGlobalPool = "cuda_global_avg_pool2d", kSeparable = "cuda_depthwise_separable";

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
