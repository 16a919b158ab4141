"""Every Triton convolution kernel, in dispatch order: a family stands before those that it is meant to outdo."""

from __future__ import annotations

from cnnkern.triton_kernels import (
    depthwise,
    depthwise_wgrad,
    direct,
    direct_dgrad,
    grouped,
    grouped_wgrad,
    im2col,
    implicit_gemm,
    pointwise,
)
from cnnkern.triton_kernels.launch import TritonKernel

KERNELS: tuple[TritonKernel, ...] = (
    *depthwise.KERNELS,
    *depthwise_wgrad.KERNELS,
    *grouped.KERNELS,
    *grouped_wgrad.KERNELS,
    *direct.KERNELS,
    *direct_dgrad.KERNELS,
    *pointwise.KERNELS,
    *implicit_gemm.KERNELS,
    *im2col.KERNELS,
)
