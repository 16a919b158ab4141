"""The oracle: plain loops that accumulate in float64, able to compute everything and meant for tests alone."""

from __future__ import annotations

from collections.abc import Sequence

from cnnkern.backends.base import Candidate
from cnnkern.backends.cpu import asked, listed
from cnnkern.problem import ConvProblem


class ReferenceBackend:
    """The reference kernels of the compiled list: each runs only where it is named."""

    name = "reference"
    device = "cpu"

    def why_missing(self) -> str:
        """Empty, or why none of its kernels can run on this machine."""
        return ""

    def kernels(self) -> Sequence[str]:
        """Names of all kernels, in dispatch order."""
        return listed(reference=True)

    def candidates(self, problem: ConvProblem, flags: int = 0) -> Sequence[Candidate]:
        """The reference kernel of the problem's direction and dtype."""
        return asked(problem, reference=True)
