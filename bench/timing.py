"""Interleaved timing and what may be concluded from it.

Contenders take turns (A B C, B C A, ...), so a drift of the machine meets all of them alike, and are compared round by
round: the ratio of two contenders is the median over the rounds of their times' ratio, with a distribution-free 95%
interval. Two states of the caches are told apart:

  warm   an untimed call before each sample, unless it is a long one; a short one is repeated within the sample
  cold   caches emptied before each sample, which is one call
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cnnkern.bench import device
from cnnkern.bench.device import Call

SAME_BAND = 0.02  # ratios this close to 1 are called the same
CONVERGED = 0.02  # half the width of the interval of a ratio that needs no more rounds
MIN_ROUNDS, MAX_ROUNDS = 6, 60  # of six samples the whole range holds the median with 97%
SAMPLE_SECONDS = 1e-3  # a warm sample repeats its call to last about this long
LONG_SECONDS = 20e-3  # a longer call leaves the caches as it wants to find them: nothing is run before it
HOPELESS = 1.5  # a peer this much slower than the best one after two rounds is not run further


@dataclass(frozen=True)
class Timing:
    """Seconds per call over ``samples`` samples."""

    median: float
    p10: float
    p90: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """The summary of samples."""
        return cls(statistics.median(samples), quantile(samples, 0.1), quantile(samples, 0.9), len(samples))


@dataclass(frozen=True)
class Ratio:
    """How many times faster one contender is than another, with its 95% interval and the verdict."""

    value: float
    low: float
    high: float
    verdict: str

    @classmethod
    def of(cls, own: Sequence[float], other: Sequence[float]) -> Ratio:
        """From samples of the same rounds, ``other / own``; ``other`` may have left the race early."""
        ratios = sorted(theirs / ours for ours, theirs in zip(own, other, strict=False))
        low, high = median_interval(ratios)
        return cls(statistics.median(ratios), low, high, verdict(low, high))


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile with linear interpolation between the order statistics."""
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The order statistics that hold the median with 95% confidence (sign test); of few samples the whole range."""
    n = len(ordered)
    tail = 0.0
    for rank in range(n // 2):
        tail += math.comb(n, rank) / 2**n
        if tail > 0.025:
            return ordered[max(rank - 1, 0)], ordered[n - 1 - max(rank - 1, 0)]
    return ordered[0], ordered[-1]


def verdict(low: float, high: float) -> str:
    """faster, slower or same when the whole interval says so, else undecided."""
    if low > 1 + SAME_BAND:
        return "faster"
    if high < 1 - SAME_BAND:
        return "slower"
    return "same" if low >= 1 - SAME_BAND and high <= 1 + SAME_BAND else "undecided"


def cache_bytes() -> int:
    """Size of the device's largest cache; a CPU's is taken for 32 MiB where the system does not tell."""
    if device.kind() == "cuda":
        return torch.cuda.get_device_properties().L2_cache_size
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(path.read_text().strip().removesuffix("K")) * 1024 for path in sizes), default=32 << 20)


class CacheFlush:
    """Called before a sample, it leaves nothing of the operands in the caches."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(2 * cache_bytes() // 4)

    def __call__(self) -> None:
        """Reads twice what the caches hold."""
        self.buffer.sum()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector waits."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Contender:
    """A call under measurement, its samples in seconds, and what its last timed call returned."""

    def __init__(self, name: str, call: Call) -> None:
        self.name, self.call = name, call
        self.samples: list[float] = []
        self.output = torch.empty(0)
        self.repeats, self.batch = 1, call

    def prepare(self, repeats: int) -> None:
        """Says how many calls a sample has."""
        self.repeats, self.batch = repeats, device.repeated(self.call, repeats)

    @property
    def median(self) -> float:
        """Seconds per call so far."""
        return statistics.median(self.samples)

    def sample(self, before: Callable[[], object]) -> None:
        """Takes one sample, after ``before``."""
        self.output = torch.empty(0)  # its memory is free for the next one, as it would be in a model
        before()
        self.output, seconds = device.timed(self.batch)
        self.samples.append(seconds / self.repeats)


def seconds_of(call: Callable[[], object]) -> float:
    """One timed call after one that makes the primitive, the memo's entry and the threads."""
    call()
    device.wait()
    start = time.perf_counter()
    call()
    device.wait()
    return time.perf_counter() - start


def nothing() -> None:
    """What is run before a long call."""


def settled(own: Sequence[Contender], peer: Contender) -> bool:
    """Whether more rounds would tell little more."""
    ratios = [Ratio.of(contender.samples, peer.samples) for contender in own]
    return all(ratio.high - ratio.low < 2 * CONVERGED * ratio.value for ratio in ratios)


def race(
    own: Mapping[str, Call], peers: Mapping[str, Call], budget: float, flush: Callable[[], None] | None = None
) -> tuple[list[Contender], Contender]:
    """Times ``own`` against ``peers`` for about ``budget`` seconds, warm, or cold if there is a ``flush``.

    Stops early when every ratio to the best peer is known to CONVERGED. Returns the own contenders and the best peer.
    """
    ours = [Contender(name, call) for name, call in own.items()]
    theirs = [Contender(name, call) for name, call in peers.items()]
    before: dict[str, Callable[[], object]] = {}
    for contender in [*ours, *theirs]:
        seconds = seconds_of(contender.call)
        if device.kind() == "cuda":  # Python's part is not what is timed
            seconds = seconds_of(device.repeated(contender.call, 1))
        contender.prepare(1 if flush else max(1, round(SAMPLE_SECONDS / seconds)))
        before[contender.name] = flush or (contender.call if seconds < LONG_SECONDS else nothing)
    deadline = time.perf_counter() + budget
    with no_garbage_collection():
        for done in range(1, MAX_ROUNDS + 1):
            field = [*ours, *theirs]
            first = done % len(field)
            for contender in field[first:] + field[:first]:
                contender.sample(before[contender.name])
            best = min(theirs, key=lambda peer: peer.median)
            if done > 1:
                theirs = [peer for peer in theirs if peer.median <= HOPELESS * best.median]
            if done < MIN_ROUNDS:
                continue
            if time.perf_counter() > deadline or settled(ours, best):
                break
    return ours, best
