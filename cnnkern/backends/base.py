"""What a backend is, and the grammar of kernel names."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cnnkern.problem import DIRECTIONS, DTYPES, ConvProblem

BACKENDS = ("cpu", "cuda", "triton", "vendor", "reference")
FAMILIES = (
    "reference", "direct", "im2col", "implicit_gemm", "winograd", "pointwise", "depthwise", "depthwise_separable",
    "grouped", "channel_shuffle", "pooling", "aten",
)  # fmt: skip

# Families that transform their input, so that their rounding differs from direct convolution's: not for `strict`.
TRANSFORMED_FAMILIES = frozenset({"winograd"})

_NAME = re.compile(
    f"(?P<backend>{'|'.join(BACKENDS)})_(?P<family>{'|'.join(FAMILIES)})_(?P<direction>{'|'.join(DIRECTIONS)})"
    f"_(?P<dtype>{'|'.join(DTYPES)})_(?P<layout>nhwc|nchw|any)_(?P<tile>[0-9]+(?:x[0-9]+)*|any)__(?P<isa>[a-z0-9_]+)"
)


class KernelName(NamedTuple):
    """A kernel's name in its parts: ``<backend>_<family>_<direction>_<dtype>_<layout>_<tile>__<isa or sm>``."""

    backend: str
    family: str
    direction: str
    dtype: str
    layout: str
    tile: str
    isa: str

    @classmethod
    @functools.cache  # a choice among kernels reads all their names
    def parse(cls, name: str) -> KernelName:
        """Reads a name; raises ValueError if it is not one under the grammar."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{name!r} is no kernel's name: <backend>_<family>_<direction>_<dtype>_<layout>_<tile>__<isa>"
            )
        return cls(**match.groupdict())

    def __str__(self) -> str:
        return "_".join(self[:-1]) + f"__{self.isa}"


class Candidate(NamedTuple):
    """A kernel asked about one problem."""

    kernel: str
    why_not: str = ""  # why it cannot compute the problem
    rather_not: str = ""  # why a later candidate is the better choice

    @property
    def willing(self) -> bool:
        """Whether it can and has nothing against it."""
        return not (self.why_not or self.rather_not)


class Backend(Protocol):
    """A source of kernels."""

    name: str
    device: str  # "cpu" or "cuda"

    def why_missing(self) -> str:
        """Empty, or why none of its kernels can run on this machine."""
        ...

    def kernels(self) -> Sequence[str]:
        """Names of all kernels, in dispatch order."""
        ...

    def candidates(self, problem: ConvProblem, flags: int = 0) -> Sequence[Candidate]:
        """The kernels of the problem's direction and dtype, in dispatch order, each with its answer."""
        ...
