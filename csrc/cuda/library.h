// The face of libcnnkern_cuda: a C interface of problem strings, device pointers and streams. It knows neither Python nor
// torch, so one build serves every torch, and it can be loaded, and asked about its kernels, where there is no GPU.
//
// A char* that is returned is the library's own and lasts until the calling thread's next call.
#pragma once

#include <cstdint>

#include "kernel.h"
#include "tools.h"

#define CNNKERN_EXPORT __attribute__((visibility("default")))

extern "C" {

struct CnnkernCudaCall;  // a kernel and the problem that it is to compute

// Compute capabilities that the library has code for, as "80 90a".
CNNKERN_EXPORT const char* cnnkern_cuda_architectures();

// Names of all kernels in dispatch order, one a line.
CNNKERN_EXPORT const char* cnnkern_cuda_kernels();

// The kernels of the problem's direction and dtype in dispatch order, one a line: name, why_not, rather_not, with tabs
// between. flags has the bits of cnnkern/flags.py. Null where the problem is no problem: cnnkern_cuda_error says why.
CNNKERN_EXPORT const char* cnnkern_cuda_candidates(const char* problem, int64_t flags, int capability);

// A call of the named kernel, to be made any number of times and released in the end. Null if it cannot compute the
// problem: cnnkern_cuda_error says why.
CNNKERN_EXPORT CnnkernCudaCall* cnnkern_cuda_prepare(const char* kernel, const char* problem, int64_t flags,
                                                     int capability);
CNNKERN_EXPORT int64_t cnnkern_cuda_workspace_bytes(const CnnkernCudaCall* call);
// How many partial statistics of y the call leaves where operands have room for them; 0: it leaves none.
CNNKERN_EXPORT int64_t cnnkern_cuda_partials(const CnnkernCudaCall* call);
CNNKERN_EXPORT void cnnkern_cuda_release(CnnkernCudaCall* call);

// Puts the call on the stream of the device. Null, or what went wrong.
CNNKERN_EXPORT const char* cnnkern_cuda_run(const CnnkernCudaCall* call, const cnnkern::cuda::Operands* operands,
                                            int device, void* stream);

// The functions of tools.h: null, or what went wrong.
CNNKERN_EXPORT const char* cnnkern_cuda_channel_shuffle(const cnnkern::cuda::Shuffle* shuffle, int device,
                                                        void* stream);
CNNKERN_EXPORT const char* cnnkern_cuda_max_pool2d(const cnnkern::cuda::Pooling* pooling, const void* x,
                                                   int64_t x_pixel_stride, void* y, int64_t* indices, int device,
                                                   void* stream);
CNNKERN_EXPORT const char* cnnkern_cuda_max_pool2d_backward(const cnnkern::cuda::Pooling* pooling, const void* dy,
                                                            int64_t dy_pixel_stride, const int64_t* indices, void* dx,
                                                            int device, void* stream);
CNNKERN_EXPORT const char* cnnkern_cuda_avg_pool2d(const cnnkern::cuda::Pooling* pooling, const void* x,
                                                   int64_t x_pixel_stride, void* y, int device, void* stream);
CNNKERN_EXPORT const char* cnnkern_cuda_avg_pool2d_backward(const cnnkern::cuda::Pooling* pooling, const void* dy,
                                                            int64_t dy_pixel_stride, void* dx, int device,
                                                            void* stream);
CNNKERN_EXPORT int64_t cnnkern_cuda_global_avg_pool2d_workspace_bytes(int64_t n, int64_t pixels, int64_t c);
CNNKERN_EXPORT const char* cnnkern_cuda_global_avg_pool2d(int dtype, int64_t n, int64_t pixels, int64_t c,
                                                          const void* x, int64_t x_pixel_stride, void* y,
                                                          void* workspace, int device, void* stream);
CNNKERN_EXPORT int64_t cnnkern_cuda_batch_statistics_partials(int dtype, int64_t pixels, int64_t maps);
CNNKERN_EXPORT const char* cnnkern_cuda_batch_statistics(int dtype, int64_t pixels, int64_t maps, const void* z,
                                                         float* partials, int device, void* stream);
CNNKERN_EXPORT int64_t cnnkern_cuda_batch_moments_workspace_bytes(int64_t partials, int64_t maps);
CNNKERN_EXPORT const char* cnnkern_cuda_batch_moments(const cnnkern::cuda::BatchNorm* layer, const float* partials,
                                                      int64_t count, const cnnkern::cuda::RunningStatistics* running,
                                                      void* workspace, int device, void* stream);
CNNKERN_EXPORT const char* cnnkern_cuda_batch_norm(const cnnkern::cuda::BatchNorm* layer, void* y, int device,
                                                   void* stream);
CNNKERN_EXPORT int64_t cnnkern_cuda_batch_norm_backward_workspace_bytes(int dtype, int64_t pixels, int64_t maps);
CNNKERN_EXPORT const char* cnnkern_cuda_batch_norm_backward(const cnnkern::cuda::BatchNorm* layer,
                                                            const cnnkern::cuda::BatchNormGradients* gradients,
                                                            void* workspace, int device, void* stream);
// Null where a problem is none. flags as above.
CNNKERN_EXPORT const char* cnnkern_cuda_conv_max_pool2d_why_not(const char* problem,
                                                                const cnnkern::cuda::Pooling* pooling, int64_t flags,
                                                                int capability);
CNNKERN_EXPORT const char* cnnkern_cuda_conv_max_pool2d(const char* problem, const cnnkern::cuda::Pooling* pooling,
                                                        int64_t flags, int capability,
                                                        const cnnkern::cuda::Operands* operands, int device,
                                                        void* stream);
CNNKERN_EXPORT const char* cnnkern_cuda_separable_why_not(const char* depthwise, const char* pointwise, int64_t flags);
CNNKERN_EXPORT const char* cnnkern_cuda_separable(const char* depthwise, const char* pointwise, int64_t flags,
                                                  const cnnkern::cuda::Operands* first,
                                                  const cnnkern::cuda::Operands* second, int device, void* stream);

CNNKERN_EXPORT const char* cnnkern_cuda_error();
CNNKERN_EXPORT int64_t
cnnkern_cuda_operands_size();  // sizeof(Operands), by which a caller's own declaration is checked

}  // extern "C"
