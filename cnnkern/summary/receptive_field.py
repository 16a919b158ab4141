"""How much of a model's input one value sees.

Each layer with a window of kernel k, stride s and dilation d adds d (k - 1) jumps to the field and multiplies the jump
by s (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, equation 2);
where branches meet, the largest field counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """What a convolution or a pool slides over its input, each (vertical, horizontal), and a convolution's groups."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Field:
    """Pixels of the model's input, (vertical, horizontal); by default what a pixel of the input sees."""

    size: tuple[int, ...] = (1, 1)
    """What one value sees; beyond the edges it is padding."""
    jump: tuple[int, ...] = (1, 1)
    """From what a value sees to what its neighbour sees."""

    def through(self, window: Window) -> Field:
        """The field behind a window."""
        steps = zip(self.size, self.jump, window.kernel, window.dilation, strict=True)
        size = tuple(size + dilation * (kernel - 1) * jump for size, jump, kernel, dilation in steps)
        return Field(size, tuple(jump * stride for jump, stride in zip(self.jump, window.stride, strict=True)))

    def strided(self, axis: int, step: int) -> Field:
        """The field where only every ``step``-th pixel along an axis is kept."""
        return Field(self.size, tuple(jump * step if i == axis else jump for i, jump in enumerate(self.jump)))


def widest(fields: Sequence[Field | None]) -> Field | None:
    """The field where branches meet; None where one has none, or where their neighbours are differently far apart."""
    known = [field for field in fields if field is not None]
    if len(known) < len(fields) or len({field.jump for field in known}) != 1:
        return None
    return Field(tuple(max(sizes) for sizes in zip(*(field.size for field in known), strict=True)), known[0].jump)
