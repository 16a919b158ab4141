"""The tensors of a problem, and the calls on them: ours and the vendor's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from cnnkern import ops
from cnnkern.bench import device
from cnnkern.problem import DTYPES, ConvProblem

Fill = Callable[[int], Tensor]  # how many -> that many float32 values of variance about 1

POOL = 1_000_003  # a prime, so that the pool's repetition meets no stride of a tensor
ALIGNED = 64  # elements, so that tensors begin as torch's allocators have them begin


@dataclass(frozen=True)
class Operands:
    """x (N, C, H, W), w (K, C/groups, R, S), dy (N, K, P, Q) in one memory format; the bias (K) or None."""

    x: Tensor
    w: Tensor
    dy: Tensor
    bias: Tensor | None

    def to(self, memory_format: torch.memory_format) -> Operands:
        """Copies in another memory format."""
        x, w, dy = (tensor.contiguous(memory_format=memory_format) for tensor in (self.x, self.w, self.dy))
        return Operands(x, w, dy, self.bias)


def gaussian(count: int) -> Tensor:
    """Normal values, as activations and weights roughly are."""
    return torch.randn(count)


def small_integers(count: int) -> Tensor:
    """-1, 0 and 1: every partial sum of a layer is exact in float32, so right answers are equal bit for bit."""
    return torch.randint(-1, 2, (count,)).float()


@cache
def pool_of(fill: Fill, dtype: str, device: str) -> Tensor:
    """POOL values that all operands of a run are cut from."""
    return fill(POOL).to(device, DTYPES[dtype])


def draw(problem: ConvProblem, fill: Fill = gaussian) -> Operands:
    """Operands of the problem's sizes and dtype in channels_last, from torch's default generator.

    What the direction does not read is left uninitialised.
    """
    pool = pool_of(fill, problem.dtype, device.kind())

    def tensor(size: tuple[int, int, int, int], read: bool) -> Tensor:
        n, c, h, w = size
        count = n * c * h * w
        start = count % 1009 * ALIGNED  # so that x, w and dy do not begin alike
        values = pool.repeat(-(-(start + count) // POOL))[start : start + count] if read else pool.new_empty(count)
        return values.view(n, h, w, c).permute(0, 3, 1, 2)

    return Operands(
        x=tensor(problem.x_size, problem.direction != "dgrad"),
        w=tensor(problem.w_size, problem.direction != "wgrad"),
        dy=tensor(problem.y_size, problem.direction != "fprop"),
        bias=pool[: problem.k].clone() if problem.epilogue.shift else None,
    )


def own_call(
    problem: ConvProblem, operands: Operands, kernel: str | None = None, flags: int = 0
) -> Callable[[], Tensor]:
    """The op as :func:`cnnkern.functional.conv2d` calls it; ``kernel`` forces one by name."""
    x, w, dy, bias = operands.x, operands.w, operands.dy, operands.bias
    geometry = problem.geometry

    def fprop() -> Tensor:
        return ops.FPROP(x, w, None, bias, None, geometry, "none", 0.0, *ops.NO_PROLOGUE, flags, kernel)

    def dgrad() -> Tensor:
        return ops.DGRAD(dy, w, x.shape, geometry, True, flags, kernel)

    def wgrad() -> Tensor:
        return ops.WGRAD(dy, x, w.shape, geometry, False, True, *ops.NO_PROLOGUE, flags, kernel)[0]

    return {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}[problem.direction]
