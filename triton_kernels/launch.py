"""What a kernel is to the rest of the package: data that says what to launch, and one function that launches it.

A family turns (problem, operands, config) into :class:`Launch` records. The same records are run on a GPU, run by
Triton's interpreter on CPU tensors, and compiled ahead of time for a chip that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import triton

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem


@dataclass(frozen=True)
class Config:
    """One choice of a kernel's tile; ``tile`` in the order that its family names."""

    tile: tuple[int, ...]
    warps: int = 4
    stages: int = 3

    def __str__(self) -> str:
        return "x".join(map(str, self.tile))


@dataclass(frozen=True)
class Chip:
    """What the choice of a config asks of a GPU."""

    capability: int  # 80, 90, ...
    multiprocessors: int
    shared_bytes: int  # that one program may have


@dataclass(frozen=True)
class Launch:
    """One kernel launch: a grid of at most three axes, and every argument of the function by name."""

    function: Any  # a triton.jit function
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: Config


@dataclass(frozen=True)
class TritonKernel:
    """A family in one direction."""

    family: str
    direction: str
    configs: tuple[Config, ...]
    why_not: Callable[[ConvProblem], str]
    """Empty, or why it cannot compute the problem."""
    rather_not: Callable[[ConvProblem], str]
    """Empty, or why a later kernel is the better choice."""
    pick: Callable[[ConvProblem, Chip], Config]
    """The config to run with, without tuning."""
    launches: Callable[[ConvProblem, Operands, Config], Sequence[Launch]]
    """What computes the problem, in order."""
    dtypes: tuple[str, ...] = ("f32", "bf16", "f16")
    aligned: bool = False
    """Whether every operand has to begin at a multiple of 16 bytes."""
    capability: int = 80
    """The compute capability from which on it runs."""
    shuffles: bool = False
    """Whether it does what the operands' shuffle and beside ask for."""


def run(launches: Sequence[Launch]) -> None:
    """Puts the launches on the current stream of the current device. Nothing waits, so a CUDA graph can capture it."""
    for launch in launches:
        options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages}
        launch.function[launch.grid](**launch.arguments, **options)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return triton.cdiv(a, b)
