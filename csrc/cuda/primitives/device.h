// Memory of a GPU, and time on it, for programs that run kernels without torch.
#pragma once

#include <primitives/cuda.h>

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <vector>

namespace cnnkern::cuda {

constexpr bool kOnGpu = true;

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

inline void* allocate(size_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, bytes));
  return memory;
}
inline void release(void* memory) { cudaFree(memory); }
inline void upload(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
// Waits for what runs.
inline void download(void* to, const void* from, size_t bytes) {
  check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
// Accesses there are errors from now on, where that can be had.
inline void forbid(void*, size_t) {}
inline void allow(void*, size_t) {}

inline int capability_of_device() {
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  return major * 10 + minor;
}

// The median time of a call, in seconds, over `rounds` of as many calls as take at least 2 ms.
inline double median_seconds(const std::function<void(void* stream)>& call, int rounds = 9) {
  cudaStream_t stream;
  cudaEvent_t begin, end;
  check_cuda(cudaStreamCreate(&stream));
  check_cuda(cudaEventCreate(&begin));
  check_cuda(cudaEventCreate(&end));
  const auto seconds = [&](int calls) {
    check_cuda(cudaEventRecord(begin, stream));
    for (int i = 0; i < calls; ++i) call(stream);
    check_cuda(cudaEventRecord(end, stream));
    check_cuda(cudaEventSynchronize(end));
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin, end));
    return milliseconds / 1e3;
  };
  seconds(3);
  const int calls = std::max(1, static_cast<int>(2e-3 / std::max(1e-7, seconds(1))));
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) times.push_back(seconds(calls) / calls);
  std::nth_element(times.begin(), times.begin() + rounds / 2, times.end());
  check_cuda(cudaEventDestroy(begin));
  check_cuda(cudaEventDestroy(end));
  check_cuda(cudaStreamDestroy(stream));
  return times[static_cast<size_t>(rounds / 2)];
}

}  // namespace cnnkern::cuda
