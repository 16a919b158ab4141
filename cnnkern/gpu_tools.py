"""The operators around convolution on CUDA tensors: channel shuffle and pooling, as csrc/cpu/tool_calls.cpp on the CPU.

Results have the memory format of x, or the one that the caller names. Triton's modules are imported when they are first
needed: the package works without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnnkern.gpu import _laid_out, _nhwc, _nhwc_empty
from cnnkern.problem import suggests_channels_last

if TYPE_CHECKING:
    from cnnkern.triton_kernels.launch import Launch
    from cnnkern.triton_kernels.pooling import Window


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """x (N, C, H, W) with its maps regrouped, in x's own layout."""
    from cnnkern.triton_kernels.channel_shuffle import shuffle_maps, shuffle_planes
    from cnnkern.triton_kernels.pixels import evenly_spaced

    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError("groups does not divide the channels")
    channels_last = suggests_channels_last(x)
    if x.is_contiguous() and not channels_last:
        y = torch.empty_like(x)
        return _run(y, lambda: [shuffle_planes(x, y, groups)])
    y = _nhwc_empty(x.shape, x)
    return _laid_out(_run(y, lambda: [shuffle_maps(evenly_spaced(x), y, groups)]), channels_last)


def max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y and the places h * W + w of the maxima, int64, both (N, C, P, Q) in x's layout."""
    from cnnkern.triton_kernels import pooling

    window = _window(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    y = _nhwc_empty(_pooled_size(x.shape, window), x)
    indices = torch.empty_like(y, dtype=torch.int64)
    _run(y, lambda: [pooling.max_pool(_nhwc(x), y, indices, window)])
    channels_last = suggests_channels_last(x)
    return _laid_out(y, channels_last), _laid_out(indices, channels_last)


def max_pool2d_backward(
    dy: Tensor, indices: Tensor, x_size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool, channels_last: bool,
) -> Tensor:  # fmt: skip
    """dx, of dy and the indices that max_pool2d gave."""
    from cnnkern.triton_kernels import pooling

    window = _window(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    _check_size(dy, x_size, window)
    if indices.shape != dy.shape or indices.dtype != torch.int64:
        raise RuntimeError("indices are not int64 or have other sizes than dy")
    dx = _nhwc_empty(x_size, dy)
    _run(dx, lambda: [pooling.max_pool_backward(_nhwc(dy), _nhwc(indices), dx, window)])
    return _laid_out(dx, channels_last)


def avg_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:  # fmt: skip
    """y (N, C, P, Q), in x's layout."""
    from cnnkern.triton_kernels import pooling

    window = _window(kernel, stride, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
    y = _nhwc_empty(_pooled_size(x.shape, window), x)
    _run(y, lambda: [pooling.avg_pool(_nhwc(x), y, window)])
    return _laid_out(y, suggests_channels_last(x))


def avg_pool2d_backward(
    dy: Tensor, x_size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, channels_last: bool,
) -> Tensor:  # fmt: skip
    """dx."""
    from cnnkern.triton_kernels import pooling

    window = _window(kernel, stride, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
    _check_size(dy, x_size, window)
    dx = _nhwc_empty(x_size, dy)
    _run(dx, lambda: [pooling.avg_pool_backward(_nhwc(dy), dx, window)])
    return _laid_out(dx, channels_last)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """Means (N, C, 1, 1) of x (N, C, H, W)."""
    from cnnkern.triton_kernels import pooling

    if x.shape[2] * x.shape[3] < 1:
        raise RuntimeError("x has no pixels to average")
    y = _nhwc_empty((*x.shape[:2], 1, 1), x)
    _run(y, lambda: pooling.global_avg_pool(_nhwc(x), y))
    return _laid_out(y, suggests_channels_last(x))


def _run(written: Tensor, launches: Callable[[], Sequence[Launch]]) -> Tensor:
    """`written`, after the launches that write it; they are not made where it is empty."""
    from cnnkern.triton_kernels.launch import run

    if written.numel():
        with torch.cuda.device_of(written):
            run(launches())
    return written


def _window(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False, count_include_pad: bool = True,
) -> Window:  # fmt: skip
    from cnnkern.triton_kernels.pooling import Window

    if min(*kernel, *stride, *dilation) < 1:
        raise RuntimeError("a pooling window's sizes, strides and dilations are positive")
    if any(pad < 0 or 2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise RuntimeError("a pooling window's padding is at most half its size")
    pairs = [(first, second) for first, second in (kernel, stride, padding, dilation)]
    return Window(*pairs, ceil_mode, count_include_pad)


def _pooled_size(x_size: Sequence[int], window: Window) -> tuple[int, ...]:
    p, q = window.output_size(x_size[2], 0), window.output_size(x_size[3], 1)
    if p < 1 or q < 1:
        raise RuntimeError("the pooling window is larger than the padded input")
    return x_size[0], x_size[1], p, q


def _check_size(dy: Tensor, x_size: Sequence[int], window: Window) -> None:
    if tuple(dy.shape) != _pooled_size(x_size, window):
        raise RuntimeError("dy has the wrong sizes")


_OPERATORS = {
    "channel_shuffle": channel_shuffle,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_backward": avg_pool2d_backward,
    "global_avg_pool2d": global_avg_pool2d,
}
for _name, _implementation in _OPERATORS.items():
    torch.library.impl(f"cnnkern::{_name}", "CUDA", _implementation)  # type: ignore[call-overload]
