"""The operators around convolution on CUDA tensors, as csrc/cpu/tool_calls.cpp on the CPU.

Channel shuffle, pooling, and the fused depthwise-separable layer.

Results have the memory format of x, or the one that the caller names. Triton's modules are imported when they are first
needed: the package works without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnnkern.flags import TF32
from cnnkern.gpu import _gap, _laid_out, _nhwc_empty, _problem, conv2d_fprop
from cnnkern.operands import evenly_spaced
from cnnkern.ops import NO_PROLOGUE, POINTWISE
from cnnkern.problem import Epilogue, Prologue, suggests_channels_last

if TYPE_CHECKING:
    from cnnkern.triton_kernels.launch import Launch
    from cnnkern.triton_kernels.pooling import Window


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """x (N, C, H, W) with its maps regrouped, in x's own layout."""
    from cnnkern.triton_kernels.channel_shuffle import shuffle_maps, shuffle_planes

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
    _run(y, lambda: [pooling.max_pool(evenly_spaced(x), y, indices, window)])
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
    _run(dx, lambda: [pooling.max_pool_backward(evenly_spaced(dy), evenly_spaced(indices), dx, window)])
    return _laid_out(dx, channels_last)


def avg_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:  # fmt: skip
    """y (N, C, P, Q), in x's layout."""
    from cnnkern.triton_kernels import pooling

    window = _window(kernel, stride, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
    y = _nhwc_empty(_pooled_size(x.shape, window), x)
    _run(y, lambda: [pooling.avg_pool(evenly_spaced(x), y, window)])
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
    _run(dx, lambda: [pooling.avg_pool_backward(evenly_spaced(dy), dx, window)])
    return _laid_out(dx, channels_last)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """Means (N, C, 1, 1) of x (N, C, H, W)."""
    from cnnkern.triton_kernels import pooling

    if x.shape[2] * x.shape[3] < 1:
        raise RuntimeError("x has no pixels to average")
    y = _nhwc_empty((*x.shape[:2], 1, 1), x)
    _run(y, lambda: pooling.global_avg_pool(evenly_spaced(x), y))
    return _laid_out(y, suggests_channels_last(x))


def depthwise_separable(
    x: Tensor, dw_weight: Tensor, dw_scale: Tensor | None, dw_shift: Tensor | None, dw_activation: str,
    dw_alpha: float, pw_weight: Tensor, pw_scale: Tensor | None, pw_shift: Tensor | None, pw_activation: str,
    pw_alpha: float, geometry: Sequence[int], flags: int, kernel: str | None,
) -> Tensor:  # fmt: skip
    """y of both convolutions, in one kernel where it can, else in two; channels_last if x or a weight is."""
    from cnnkern.triton_kernels import depthwise_separable as fused

    dw_epilogue = Epilogue(dw_activation, dw_scale is not None, dw_shift is not None, alpha=dw_alpha)
    pw_epilogue = Epilogue(pw_activation, pw_scale is not None, pw_shift is not None, alpha=pw_alpha)
    channels_last = any(suggests_channels_last(tensor) for tensor in (x, dw_weight, pw_weight))
    x = evenly_spaced(x)
    first = _problem("fprop", x.shape, dw_weight.shape, x.dtype, tuple(geometry), _gap(x), 0, Prologue(), dw_epilogue)
    second = _problem("fprop", first.y_size, pw_weight.shape, x.dtype, POINTWISE, 0, 0, Prologue(), pw_epilogue)
    why_not = fused.why_not(first, second)
    if kernel is not None:
        name = f"triton_depthwise_separable_fprop_{first.dtype}_nhwc_any__sm80"
        why_not = why_not if kernel == name else f"it is not {name}"
        if why_not:
            raise RuntimeError(f"{kernel} cannot compute {first} and {second}: {why_not}")
    if why_not:
        rest = (*NO_PROLOGUE, flags, None)
        between = conv2d_fprop(x, dw_weight, dw_scale, dw_shift, None, geometry, dw_activation, dw_alpha, *rest)
        y = conv2d_fprop(between, pw_weight, pw_scale, pw_shift, None, POINTWISE, pw_activation, pw_alpha, *rest)
        return _laid_out(y, channels_last)
    y = _nhwc_empty(second.y_size, x)
    precision = "tf32" if flags & TF32 else "ieee"
    operands = fused.SeparableOperands(x, dw_weight, pw_weight, y, dw_scale, dw_shift, pw_scale, pw_shift, precision)
    _run(y, lambda: fused.launches(first, second, operands, fused.pick(second)))
    return _laid_out(y, channels_last)


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
    pairs = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    return Window(*pairs, ceil_mode=ceil_mode, count_include_pad=count_include_pad)


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
    "max_pool2d_backward": max_pool2d_backward,
    "avg_pool2d": avg_pool2d,
    "avg_pool2d_backward": avg_pool2d_backward,
    "global_avg_pool2d": global_avg_pool2d,
    "depthwise_separable": depthwise_separable,
}
for _name, _implementation in _OPERATORS.items():
    torch.library.impl(f"cnnkern::{_name}", "CUDA", _implementation)  # type: ignore[call-overload]
