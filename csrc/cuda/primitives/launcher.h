// The one way in which kernels are launched: limits of the grid, large shared memory, clusters, and errors that name the
// kernel and the problem. Nothing here waits for the GPU, so calls can be captured in a CUDA graph.
#pragma once

#include <primitives/cuda.h>
#include <primitives/grid.h>

namespace cnnkern::cuda {

inline void check(cudaError_t error, const Call& call) {
  if (error != cudaSuccess) fail(call, cudaGetErrorString(error));
}

// Makes a device the current one for as long as it lives. It is set even where it is the current one: that gives its
// context to a thread that has called nothing yet, as autograd's may have, and the driver's functions ask for one.
class DeviceGuard {
 public:
  DeviceGuard(int device, const Call& call) : device_(device) {
    check(cudaGetDevice(&before_), call);
    check(cudaSetDevice(device), call);
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_ = 0;
};

// Starts kernel(params) on the call's stream. A grid without blocks is nothing to do.
template <class Params>
void launch(void (*kernel)(Params), const Grid& grid, const Params& params, const Call& call) {
  if (!has_blocks(grid, call)) return;
  const DeviceGuard guard(call.device, call);
  constexpr int kSharedByDefault = 48 * 1024;
  if (grid.shared_bytes > kSharedByDefault) {
    // All that a block may have, and not this call's bytes: another thread may be starting the same kernel with more.
    int most = 0;
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, call.device), call);
    check(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        call);
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = static_cast<cudaStream_t>(call.stream);
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  void* arguments[] = {const_cast<Params*>(&params)};
  check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments), call);
}

}  // namespace cnnkern::cuda
