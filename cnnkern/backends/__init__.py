"""Sources of kernels, in the order in which dispatch asks them."""

from cnnkern.backends.base import Backend, Candidate, KernelName
from cnnkern.backends.cpu import CpuBackend
from cnnkern.backends.reference import ReferenceBackend
from cnnkern.backends.triton import TritonBackend
from cnnkern.backends.vendor import VendorBackend

BACKENDS: tuple[Backend, ...] = (
    CpuBackend(),
    TritonBackend(),
    VendorBackend("cpu", "onednn"),
    VendorBackend("cuda", "cudnn"),
    ReferenceBackend(),
)
# The package's own, by type of device.
OWN_BACKENDS = {"cpu": (CpuBackend.name,), "cuda": (TritonBackend.name,)}

__all__ = [
    "BACKENDS",
    "OWN_BACKENDS",
    "Backend",
    "Candidate",
    "CpuBackend",
    "KernelName",
    "ReferenceBackend",
    "TritonBackend",
    "VendorBackend",
]
