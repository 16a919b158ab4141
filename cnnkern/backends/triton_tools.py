"""The operators around convolution by Triton kernels: each writes its results on the current stream.

Tensors are (N, C, H, W) with their maps next to each other and pixels equally far apart; what is written is dense.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cnnkern.operands import SeparableOperands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels import channel_shuffle, depthwise_separable, pooling
from cnnkern.triton_kernels.launch import Launch, run
from cnnkern.window import Window

BACKEND = "triton"


def shuffle_planes(x: Tensor, y: Tensor, groups: int) -> None:
    """Channel shuffle of contiguous tensors."""
    _run(y, [channel_shuffle.shuffle_planes(x, y, groups)])


def shuffle_maps(x: Tensor, y: Tensor, groups: int) -> None:
    """Channel shuffle."""
    _run(y, [channel_shuffle.shuffle_maps(x, y, groups)])


def max_pool(x: Tensor, y: Tensor, indices: Tensor, window: Window) -> None:
    """y and the places of the maxima."""
    _run(y, [pooling.max_pool(x, y, indices, window)])


def max_pool_backward(dy: Tensor, indices: Tensor, dx: Tensor, window: Window) -> None:
    """dx of max_pool."""
    _run(dx, [pooling.max_pool_backward(dy, indices, dx, window)])


def avg_pool(x: Tensor, y: Tensor, window: Window) -> None:
    """y."""
    _run(y, [pooling.avg_pool(x, y, window)])


def avg_pool_backward(dy: Tensor, dx: Tensor, window: Window) -> None:
    """dx of avg_pool."""
    _run(dx, [pooling.avg_pool_backward(dy, dx, window)])


def global_avg_pool(x: Tensor, y: Tensor) -> None:
    """The means of maps."""
    _run(y, pooling.global_avg_pool(x, y))


def separable_why_not(first: ConvProblem, second: ConvProblem, flags: int) -> str:
    """Empty, or why the two convolutions are not one kernel's."""
    return depthwise_separable.why_not(first, second)


def separable(first: ConvProblem, second: ConvProblem, operands: SeparableOperands, flags: int) -> None:
    """Both convolutions."""
    config = depthwise_separable.pick(second)
    _run(operands.y, depthwise_separable.launches(first, second, operands, config))


def _run(written: Tensor, launches: Sequence[Launch]) -> None:
    with torch.cuda.device_of(written):
        run(launches)
