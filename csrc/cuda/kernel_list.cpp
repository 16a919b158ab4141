#include "kernel_list.h"

#include <stdexcept>
#include <string>

// 0 where the library is built without code for sm_90a.
#ifndef CNNKERN_SM90
#define CNNKERN_SM90 1
#endif

namespace cnnkern::cuda {

const KernelList& kernels() {
  static const KernelList list = [] {
    KernelList all;
    for (const auto append : {
             append_depthwise_fprop,
             append_depthwise_dgrad,
             append_depthwise_wgrad,
             append_depthwise,
             append_grouped,
             append_grouped_wgrad,
             append_direct,
             append_direct_ffma,
             append_direct_wgrad,
#if CNNKERN_SM90
             append_pointwise_sm90,
#endif
             append_pointwise,
#if CNNKERN_SM90
             append_implicit_gemm_sm90,
#endif
#if CNNKERN_SM90
             append_implicit_gemm_wgrad_sm90,
#endif
             append_implicit_gemm,
             append_implicit_gemm_wgrad,
             append_im2col,
             append_direct_any,
         })
      append(all);
    return all;
  }();
  return list;
}

const Kernel& kernel_named(std::string_view name) {
  for (const Kernel& kernel : kernels()) {
    if (kernel.name == name) return kernel;
  }
  throw std::invalid_argument("no CUDA kernel is named '" + std::string(name) + "'");
}

}  // namespace cnnkern::cuda
