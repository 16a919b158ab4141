"""What the machine can do, measured: the two ceilings of a row (S. Williams et al., "Roofline", CACM 2009).

A row can take no less than its arithmetic at the rate of the best large matrix product seen here, and no less than its
operands moved once at the rate of a copy. Warm rows are held to the copy rate of a working set that fits the caches as
theirs does, cold rows to that of memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cnnkern.backends.base import KernelName
from cnnkern.bench import device
from cnnkern.bench.operands import draw, own_call
from cnnkern.bench.timing import seconds_of
from cnnkern.problem import DTYPES, ConvProblem

GEMM = {  # 1024 x 512 x 512, and 65536 x 1024 x 1024
    "cpu": "fprop-{dtype}-n1c512h32w32-k512r1s1",
    "cuda": "fprop-{dtype}-n64c1024h32w32-k1024r1s1",
}
COPY_BYTES = tuple(1 << shift for shift in range(18, 28, 2))  # 256 KiB to 64 MiB, read and written
MEMORY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
SAMPLE_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}  # of copies timed together, beside which a launch counts for little
SECONDS = 0.15  # spent on the best of each rate
ARITHMETIC = {"winograd": 1 / 4}  # of the products of direct convolution, by family, in its largest tile
PLAUSIBLE = 1.15  # a row above this fraction of its roofline is an alarm: the ceilings are measurements too


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s by dtype; bytes/s of a copy by working set in bytes, and from memory."""

    flops: dict[str, float]
    cached: dict[int, float]
    memory: float

    @classmethod
    def load(cls, data: dict[str, Any]) -> Ceilings:
        """From JSON, whose keys are text."""
        return cls(data["flops"], {int(size): rate for size, rate in data["cached"].items()}, data["memory"])

    def seconds(self, problem: ConvProblem, kernel: str, cold: bool) -> float:
        """The least time that the problem can take a kernel of that name."""
        moved = bytes_moved(problem)
        bandwidth = self.memory if cold else max(self.bandwidths(moved))
        flops = needed_flops(problem) * ARITHMETIC.get(KernelName.parse(kernel).family, 1)
        return max(flops / self.flops[problem.dtype], moved / bandwidth)

    def bandwidths(self, working_set: int) -> list[float]:
        """The copy rates of working sets at least as large as the largest measured that is no larger than this one."""
        largest = max((size for size in self.cached if size <= working_set), default=min(self.cached))
        return [self.memory, *(rate for size, rate in self.cached.items() if size >= largest)]

    def raised(self, other: Ceilings) -> Ceilings:
        """The higher of each of two measurements: what else runs on the machine can only lower them."""
        return Ceilings(
            {dtype: max(rate, other.flops[dtype]) for dtype, rate in self.flops.items()},
            {size: max(rate, other.cached[size]) for size, rate in self.cached.items()},
            max(self.memory, other.memory),
        )


class Roofline:
    """The ceilings as known so far; they are measured again before any time is called impossible."""

    def __init__(self, dtypes: Sequence[str]) -> None:
        self.dtypes = dtypes
        self.ceilings = measure(dtypes)

    def why_impossible(self, problem: ConvProblem, kernel: str, warm: float, cold: float) -> str:
        """Empty, or why the seconds of a warm and a cold call count for nothing."""
        if self.highest_fraction(problem, kernel, warm, cold) > PLAUSIBLE:
            self.ceilings = self.ceilings.raised(measure(self.dtypes))
        fraction = self.highest_fraction(problem, kernel, warm, cold)
        return "" if fraction <= PLAUSIBLE else f"{fraction:.2f} of the roofline: it cannot have done the work"

    def highest_fraction(self, problem: ConvProblem, kernel: str, warm: float, cold: float) -> float:
        """How close either call came to the least time."""
        least = self.ceilings.seconds
        return max(least(problem, kernel, cold=False) / warm, least(problem, kernel, cold=True) / cold)


def bytes_moved(problem: ConvProblem) -> int:
    """Each of x, w and y read or written once."""
    sizes = (problem.x_size, problem.w_size, problem.y_size)
    return sum(torch.Size(size).numel() for size in sizes) * DTYPES[problem.dtype].itemsize


def needed_taps(size: int, filter_size: int, out_size: int, stride: int, pad_before: int, dilation: int) -> int:
    """Pairs of output and filter position along one axis that meet a pixel of x rather than padding."""
    positions = (o * stride + f * dilation - pad_before for o in range(out_size) for f in range(filter_size))
    return sum(0 <= position < size for position in positions)


def needed_flops(problem: ConvProblem) -> int:
    """Multiplications and additions without those on padding, which a kernel may leave out."""
    (stride_h, stride_w), (dilation_h, dilation_w), (top, left, *_) = problem.stride, problem.dilation, problem.padding
    rows = needed_taps(problem.h, problem.r, problem.p, stride_h, top, dilation_h)
    columns = needed_taps(problem.w, problem.s, problem.q, stride_w, left, dilation_w)
    return 2 * problem.n * rows * columns * problem.k * (problem.c // problem.groups)


def best_rate(work: float, call: Callable[[], object]) -> float:
    """Work per second in the shortest of many calls."""
    best, deadline = math.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < deadline or best == math.inf:
        best = min(best, seconds_of(call))
    return work / best


def measure(dtypes: Sequence[str]) -> Ceilings:
    """The ceilings of the threads that torch has now. Takes about two seconds."""
    flops = {}
    for dtype in dtypes:
        problem = ConvProblem.parse(GEMM[device.kind()].format(dtype=dtype))
        operands = draw(problem)
        a, b = operands.x.permute(0, 2, 3, 1).flatten(0, 2), operands.w.flatten(1).t()
        calls = (partial(torch.mm, a, b), own_call(problem, operands))
        flops[dtype] = max(best_rate(problem.flops, call) for call in calls)
    cached = {size: copy_rate(size) for size in COPY_BYTES}
    return Ceilings(flops, cached, copy_rate(MEMORY_BYTES[device.kind()]))


def copy_rate(working_set: int) -> float:
    """Bytes per second, read and written counted, of copies within ``working_set`` bytes."""
    source, target = torch.ones(2, working_set // 2, dtype=torch.uint8)
    copies = max(1, SAMPLE_BYTES[device.kind()] // working_set)
    copy = device.repeated(lambda: target.copy_(source), copies)
    return best_rate(copies * working_set, copy)
