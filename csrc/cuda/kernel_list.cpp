#include "kernel_list.h"

#include <stdexcept>
#include <string>

namespace cnnkern::cuda {

const KernelList& kernels() {
  static const KernelList list = [] {
    KernelList all;
    for (const auto append : {append_direct, append_direct_ffma, append_direct_wgrad, append_depthwise_fprop,
                              append_depthwise_dgrad, append_depthwise_wgrad, append_depthwise, append_direct_any})
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
