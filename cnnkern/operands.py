"""The tensors of a call on a GPU, as its kernels take them, and how they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operands:
    """A problem's tensors: x (N, C, H, W), w (K, C / groups, R, S), y (N, K, P, Q), with the maps next to each other.

    The direction says which of them is written: y, x or w, and in wgrad dbias (K,), float32, unless it is None.
    scale and shift (K,), x_scale and x_shift (C,) are float32 or the problem's dtype, residual is as y.

    What is written may be channel_shuffle(cat([beside, y]), shuffle), with beside as y or None, and no residual. Then y
    is the first K maps of the tensor for it.
    """

    x: Tensor
    w: Tensor
    y: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    x_scale: Tensor | None = None
    x_shift: Tensor | None = None
    dbias: Tensor | None = None
    beside: Tensor | None = None
    shuffle: int = 1
    statistics: Tensor | None = None
    """In fprop without an epilogue, where the kernel leaves any: partial statistics of y, float32 [partials, 3, K]."""
    precision: str = "ieee"
    """How float32 is multiplied: "ieee" or "tf32"."""

    @property
    def per_group(self) -> int:
        """Maps of a group of the shuffle."""
        return self.y.shape[1] * (1 if self.beside is None else 2) // self.shuffle


@dataclass(frozen=True)
class SeparableOperands:
    """x (N, C, H, W), dw_weight (C, 1, R, S), pw_weight (K, C, 1, 1), y (N, K, P, Q), with the maps next to each other.

    scale and shift (C,) and (K,) are float32 or x's dtype.
    """

    x: Tensor
    dw_weight: Tensor
    pw_weight: Tensor
    y: Tensor
    dw_scale: Tensor | None = None
    dw_shift: Tensor | None = None
    pw_scale: Tensor | None = None
    pw_shift: Tensor | None = None
    precision: str = "ieee"


@dataclass(frozen=True)
class Layer:
    """A batch-normalised layer in training; gamma and beta (K,) or None, of any float dtype."""

    gamma: Tensor | None
    beta: Tensor | None
    eps: float = 1e-5
    activation: str = "none"
    alpha: float = 0.0


def evenly_spaced(tensor: Tensor) -> Tensor:
    """The tensor (N, C, H, W) with its maps next to each other and its N * H * W pixels equally far apart.

    Dense channels_last and a slice of its maps are so; anything else, such as an expanded pixel, is copied. So is a
    slice whose rows are so far apart that kernels, which count the elements of a row in 32 bits, could not count them.
    """
    image, map_, row, pixel = tensor.stride()
    even = map_ == 1 and pixel >= tensor.shape[1] and row == tensor.shape[3] * pixel and image == tensor.shape[2] * row
    if even and row < 2**31:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def pixel_stride(tensor: Tensor) -> int:
    """Elements from pixel to pixel of an evenly spaced tensor."""
    dense = tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.shape[1] if dense else tensor.stride(3)
