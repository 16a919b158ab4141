"""Tensors (N, C, H, W) that a kernel walks as one row of N * H * W pixels: NHWC, dense or a slice of wider pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def evenly_spaced(tensor: Tensor) -> Tensor:
    """The tensor with its maps next to each other and its pixels equally far apart: itself if it is so, else a copy."""
    image, map_, row, pixel = tensor.stride()
    if map_ == 1 and row == tensor.shape[3] * pixel and image == tensor.shape[2] * row:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def pixel_stride(tensor: Tensor) -> int:
    """Elements from pixel to pixel of an evenly spaced tensor."""
    dense = tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.shape[1] if dense else tensor.stride(3)
