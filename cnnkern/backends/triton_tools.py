"""The operators around convolution by Triton kernels: each writes its results on the current stream.

Tensors are (N, C, H, W) with their maps next to each other and pixels equally far apart; what is written is dense.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cnnkern.backends import triton
from cnnkern.operands import Layer, Operands, SeparableOperands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels import batch_norm, channel_shuffle, depthwise_separable, implicit_gemm, pooling, statistics
from cnnkern.triton_kernels.launch import Launch, run
from cnnkern.window import Window

BACKEND = "triton"


def shuffle_planes(x: Tensor, y: Tensor, groups: int) -> None:
    """Channel shuffle of contiguous tensors."""
    with triton.on_device_of(y):
        run([channel_shuffle.shuffle_planes(x, y, groups)])


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
    return depthwise_separable.why_not(first, second) or triton.why_too_large(first) or triton.why_too_large(second)


def separable(first: ConvProblem, second: ConvProblem, operands: SeparableOperands, flags: int) -> None:
    """Both convolutions."""
    config = depthwise_separable.pick(second)
    _run(operands.y, depthwise_separable.launches(first, second, operands, config))


def conv_max_pool_why_not(problem: ConvProblem, window: Window, flags: int) -> str:
    """Why a convolution and its pooling are not one kernel's."""
    return "Triton has no kernel of them"


def conv_with_statistics(kernel: str, problem: ConvProblem, operands: Operands, flags: int) -> Tensor:
    """Runs the fprop kernel; returns y's partial statistics [partials, 3, K], of its epilogue where it leaves any."""
    family, config = triton.listed()[kernel]
    if family.family == "implicit_gemm":
        launch, stats = implicit_gemm.fprop_with_statistics(problem, operands, config)
        _run(operands.y, [launch])
    else:
        launch, stats = statistics.partials_of(operands.y)
        _run(operands.y, [*family.launches(problem, operands, config), launch])
    return stats


def normalise(
    z: Tensor, stats: Tensor, residual: Tensor | None, y: Tensor, layer: Layer, running: tuple[Tensor, Tensor] | None,
    momentum: float, beside: Tensor | None = None, shuffle: int = 1,
) -> Tensor:  # fmt: skip
    """y of a batch-normalised layer, shuffled with beside; returns its moments [4, K]: mean, var, scale and shift."""
    launches, moments = batch_norm.finish(stats, layer, z.numel() // z.shape[1], running, momentum)
    _run(y, [*launches, batch_norm.normalise(z, residual, y, moments, layer, beside, shuffle)])
    return moments


def normalise_backward(
    dy: Tensor, z: Tensor, residual: Tensor | None, moments: Tensor, layer: Layer, dz: Tensor, dgamma: Tensor | None,
    dbeta: Tensor | None, dresidual: Tensor | None, dbeside: Tensor | None = None, shuffle: int = 1,
) -> None:  # fmt: skip
    """dz of normalise, and the gradients that are not None."""
    _run(dz, batch_norm.backward(dy, z, residual, moments, layer, dz, dgamma, dbeta, dresidual, dbeside, shuffle))


def _run(written: Tensor, launches: Sequence[Launch]) -> None:
    """Puts what is computed pixel by pixel on the stream. Raises RuntimeError where there are too many to count."""
    if written.numel() // written.shape[1] >= triton.MOST_PIXELS:
        raise RuntimeError(f"{tuple(written.shape)}: Triton's kernels count pixels in 32 bits, up to 2^30")
    with triton.on_device_of(written):
        run(launches)
