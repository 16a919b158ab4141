"""The library a user would run otherwise, through ATen: oneDNN on a CPU, cuDNN on a GPU.

It is chosen above the operators (:mod:`cnnkern.functional` calls torch.nn.functional.conv2d), because its kernels are
no kernels of the package: they choose among themselves, and autograd is torch's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cnnkern.backends.base import Candidate, KernelName
from cnnkern.problem import DIRECTIONS, DTYPES, ConvProblem, Prologue


class VendorBackend:
    """One name for each direction and dtype of the vendor's convolution."""

    name = "vendor"

    def __init__(self, device: str, library: str) -> None:
        self.device, self.library = device, library

    def why_missing(self) -> str:
        """Empty, or why none of its kernels can run on this machine."""
        return "" if self.device == "cpu" or torch.cuda.is_available() else "this torch sees no GPU"

    def kernels(self) -> Sequence[str]:
        """Names of all kernels, in dispatch order."""
        return [self._name(direction, dtype) for direction in DIRECTIONS for dtype in DTYPES]

    def candidates(self, problem: ConvProblem, flags: int = 0) -> Sequence[Candidate]:
        """The vendor's convolution, which computes every problem without pixel strides, prologue or epilogue."""
        why_not = ""
        if problem.x_pixel_stride or problem.y_pixel_stride:
            why_not = "it takes no pixel stride"
        elif problem.prologue != Prologue():
            why_not = "it has no prologue"
        elif problem.epilogue.scale or problem.epilogue.residual or problem.epilogue.activation != "none":
            why_not = "it has no epilogue but a bias"
        return [Candidate(self._name(problem.direction, problem.dtype), why_not)]

    def _name(self, direction: str, dtype: str) -> str:
        return str(KernelName("vendor", "aten", direction, dtype, "any", "any", self.library))
