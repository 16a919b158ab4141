// Every CUDA kernel, in dispatch order: a family stands before those that it is meant to outdo.
#pragma once

#include <string_view>

#include "kernel.h"

namespace cnnkern::cuda {

void append_depthwise_fprop(KernelList& list);
void append_depthwise_dgrad(KernelList& list);
void append_depthwise_wgrad(KernelList& list);
void append_depthwise(KernelList& list);
void append_grouped(KernelList& list);
void append_grouped_wgrad(KernelList& list);
void append_direct(KernelList& list);
void append_direct_ffma(KernelList& list);
void append_direct_wgrad(KernelList& list);
void append_pointwise_sm90(KernelList& list);
void append_pointwise(KernelList& list);
void append_implicit_gemm_sm90(KernelList& list);
void append_implicit_gemm_wgrad_sm90(KernelList& list);
void append_implicit_gemm(KernelList& list);
void append_implicit_gemm_wgrad(KernelList& list);
void append_im2col(KernelList& list);
void append_direct_any(KernelList& list);  // the last: it takes every problem

const KernelList& kernels();

// Throws std::invalid_argument if there is none of that name.
const Kernel& kernel_named(std::string_view name);

}  // namespace cnnkern::cuda
