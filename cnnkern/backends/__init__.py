"""Sources of kernels, in the order in which dispatch asks them."""

from cnnkern.backends.base import Backend, Candidate, KernelName
from cnnkern.backends.cpu import CpuBackend
from cnnkern.backends.reference import ReferenceBackend
from cnnkern.backends.vendor import VendorBackend

BACKENDS: tuple[Backend, ...] = (CpuBackend(), VendorBackend(), ReferenceBackend())

__all__ = ["BACKENDS", "Backend", "Candidate", "CpuBackend", "KernelName", "ReferenceBackend", "VendorBackend"]
