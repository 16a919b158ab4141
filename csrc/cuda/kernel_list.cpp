#include "kernel_list.h"

#include <stdexcept>
#include <string>

namespace cnnkern::cuda {

const KernelList& kernels() {
  static const KernelList list = [] {
    KernelList all;
    for (const auto append : {append_depthwise, append_grouped, append_grouped_wgrad, append_pointwise,
                              append_implicit_gemm, append_implicit_gemm_wgrad, append_im2col})
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
