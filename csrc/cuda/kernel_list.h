// Every CUDA kernel, in dispatch order: a family stands before those that it is meant to outdo.
#pragma once

#include <string_view>

#include "kernel.h"

namespace cnnkern::cuda {

void append_depthwise(KernelList& list);
void append_pointwise_sm90(KernelList& list);
void append_implicit_gemm_sm90(KernelList& list);
void append_implicit_gemm_wgrad_sm90(KernelList& list);

const KernelList& kernels();

// Throws std::invalid_argument if there is none of that name.
const Kernel& kernel_named(std::string_view name);

}  // namespace cnnkern::cuda
