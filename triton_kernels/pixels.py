"""How much of a pixel of an NHWC tensor can be read at once."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import triton
import triton.language as tl


def vector_of(*sizes: int) -> int:
    """The largest power of two, up to 16, that divides numbers of maps and strides: elements that are read at once.

    Triton finds 16 by itself; 24 or 116 maps would be read one by one.
    """
    return math.gcd(16, *sizes)


@triton.jit
def multiple(size, VECTOR: tl.constexpr):
    """The size, which VECTOR divides, in a form that tells the compiler so."""
    return size // VECTOR * VECTOR


@triton.jit
def strides(maps, image, row, pixel, VECTOR: tl.constexpr):
    """The numbers, told to be multiples of VECTOR."""
    return multiple(maps, VECTOR), multiple(image, VECTOR), multiple(row, VECTOR), multiple(pixel, VECTOR)
