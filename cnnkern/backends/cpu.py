"""The package's own SIMD kernels for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from cnnkern.backends.base import Candidate, KernelName
from cnnkern.native import _C
from cnnkern.problem import ConvProblem

REFERENCE_FAMILY = "reference"


def listed(reference: bool) -> list[str]:
    """Names of the compiled CPU kernels, either the reference kernels or all the others."""
    return [name for name in _C.kernels() if (KernelName.parse(name).family == REFERENCE_FAMILY) is reference]


def asked(problem: ConvProblem, reference: bool) -> list[Candidate]:
    """The answers of the compiled CPU kernels, either of the reference kernel or of all the others."""
    answers = (Candidate(*answer) for answer in _C.candidates(str(problem)))
    return [answer for answer in answers if (KernelName.parse(answer.kernel).family == REFERENCE_FAMILY) is reference]


class CpuBackend:
    """Everything in the compiled kernel list but the reference kernels."""

    name = "cpu"
    device = "cpu"

    def why_missing(self) -> str:
        """Empty, or why none of its kernels can run on this machine."""
        return ""

    def kernels(self) -> Sequence[str]:
        """Names of all kernels, in dispatch order."""
        return listed(reference=False)

    def candidates(self, problem: ConvProblem, flags: int = 0) -> Sequence[Candidate]:
        """The kernels of the problem's direction and dtype, with their answers."""
        return asked(problem, reference=False)
