"""Sources of kernels, in the order in which dispatch asks them."""

import functools

import torch

from cnnkern.backends import cuda, triton
from cnnkern.backends.base import Backend, Candidate, KernelName
from cnnkern.backends.cpu import CpuBackend
from cnnkern.backends.cuda import CudaBackend
from cnnkern.backends.reference import ReferenceBackend
from cnnkern.backends.triton import TritonBackend
from cnnkern.backends.vendor import VendorBackend

BACKENDS: tuple[Backend, ...] = (
    CpuBackend(),
    TritonBackend(),
    CudaBackend(),
    VendorBackend("cpu", "onednn"),
    VendorBackend("cuda", "cudnn"),
    ReferenceBackend(),
)
# The package's own, by type of device.
OWN_BACKENDS = {"cpu": (CpuBackend.name,), "cuda": (TritonBackend.name, CudaBackend.name)}


@torch.compiler.assume_constant_result  # what looks for packages and drivers cannot be traced into a graph
def why_no_gpu(device: torch.device | None = None) -> str:
    """Empty, or why none of the package's kernels can run on a GPU (None: on any of this machine)."""
    return _why_no_gpu(device)


@functools.cache
def _why_no_gpu(device: torch.device | None) -> str:
    reasons = dict.fromkeys((triton.why_missing(device), cuda.why_missing(device)))
    return "" if "" in reasons else "; ".join(reasons)


__all__ = [
    "BACKENDS",
    "OWN_BACKENDS",
    "Backend",
    "Candidate",
    "CpuBackend",
    "CudaBackend",
    "KernelName",
    "ReferenceBackend",
    "TritonBackend",
    "VendorBackend",
    "why_no_gpu",
]
