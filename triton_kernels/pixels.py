"""Pixels of NHWC tensors: how far apart they are, and how much of one can be read at once."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


def evenly_spaced(tensor: Tensor) -> Tensor:
    """The tensor (N, C, H, W) with its maps next to each other and its N * H * W pixels equally far apart.

    Dense channels_last and a slice of its maps are so; anything else is copied.
    """
    image, map_, row, pixel = tensor.stride()
    if map_ == 1 and row == tensor.shape[3] * pixel and image == tensor.shape[2] * row:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def pixel_stride(tensor: Tensor) -> int:
    """Elements from pixel to pixel of an evenly spaced tensor."""
    dense = tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.shape[1] if dense else tensor.stride(3)


def vector_of(*sizes: int) -> int:
    """The largest power of two, up to 16, that divides numbers of maps and strides: elements that are read at once.

    Triton finds 16 by itself; 24 or 116 maps would be read one by one.
    """
    return math.gcd(16, *sizes)


@triton.jit
def multiple(size, VECTOR: tl.constexpr):
    """The size, which VECTOR divides, in a form that tells the compiler so."""
    return size // VECTOR * VECTOR
