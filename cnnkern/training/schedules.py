"""The rate over a run, each a torch.optim.lr_scheduler.

A schedule takes the optimizer and the number of its steps in one cycle and is advanced at every step;
:func:`plateau` alone is advanced once an epoch, with the validation loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
)

Schedule = Callable[[Optimizer, int], LRScheduler]


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The same rate throughout."""
    return ConstantLR(optimizer, factor=1.0)


def step(optimizer: Optimizer, steps: int, at: Sequence[float] = (1 / 3, 2 / 3), factor: float = 0.1) -> LRScheduler:
    """The rate times ``factor`` at each share of the run in ``at``."""
    return MultiStepLR(optimizer, [round(share * steps) for share in at], factor)


def exponential(optimizer: Optimizer, steps: int, last: float = 0.01) -> LRScheduler:
    """Decay by the same factor at each step, to ``last`` times the first rate."""
    return ExponentialLR(optimizer, last ** (1 / steps))


def inverse_time(optimizer: Optimizer, steps: int, last: float = 0.1) -> LRScheduler:
    """1 / (1 + k t) decay to ``last`` times the first rate."""
    return LambdaLR(optimizer, lambda t: 1 / (1 + (1 / last - 1) * t / steps))


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Half a cosine to zero, and a warm restart for the next cycle (Loshchilov and Hutter, arXiv 1608.03983)."""
    return CosineAnnealingWarmRestarts(optimizer, steps)


def plateau(optimizer: Optimizer, steps: int, patience: int = 5, factor: float = 0.1) -> LRScheduler:
    """The rate times ``factor`` when the validation loss has not fallen for ``patience`` epochs."""
    return ReduceLROnPlateau(optimizer, factor=factor, patience=patience)
