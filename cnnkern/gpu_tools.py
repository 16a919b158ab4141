"""The operators around convolution on CUDA tensors, as csrc/cpu/tool_calls.cpp on the CPU.

Channel shuffle, pooling, the fused depthwise-separable layer, and convolutions whose results are shuffled or pooled.

Results have the memory format of x, or the one that the caller names. Kernels are Triton's where Triton is installed,
and the CUDA library's where it is not or where they are asked for.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from cnnkern import dispatch, ops
from cnnkern.backends import triton
from cnnkern.flags import ONLY, TF32, UNALIGNED
from cnnkern.gpu import (
    _check_alike,
    _gap,
    _krsc,
    _laid_out,
    _nhwc_empty,
    _operand_flags,
    _per_map,
    _problem,
    _run,
    conv2d_fprop,
)
from cnnkern.operands import Operands, SeparableOperands, evenly_spaced
from cnnkern.ops import NO_PROLOGUE, POINTWISE, gives_channels_last
from cnnkern.problem import ConvProblem, Epilogue, Prologue, suggests_channels_last
from cnnkern.window import Window


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """x (N, C, H, W) with its maps regrouped, in x's own layout."""
    if groups < 1 or x.shape[1] % groups:
        raise RuntimeError("groups does not divide the channels")
    channels_last = suggests_channels_last(x)
    if x.is_contiguous() and not channels_last:
        y = torch.empty_like(x)
        if y.numel():
            tools().shuffle_planes(x, y, groups)
        return y
    y = _nhwc_empty(x.shape, x)
    if y.numel():
        tools().shuffle_maps(evenly_spaced(x), y, groups)
    return _laid_out(y, channels_last)


def max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y and the places h * W + w of the maxima, int64, both (N, C, P, Q) in x's layout."""
    window = _window(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    y = _nhwc_empty(_pooled_size(x.shape, window), x)
    indices = torch.empty_like(y, dtype=torch.int64)
    if y.numel():
        tools().max_pool(evenly_spaced(x), y, indices, window)
    channels_last = suggests_channels_last(x)
    return _laid_out(y, channels_last), _laid_out(indices, channels_last)


def max_pool2d_backward(
    dy: Tensor, indices: Tensor, x_size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool, channels_last: bool,
) -> Tensor:  # fmt: skip
    """dx, of dy and the indices that max_pool2d gave."""
    window = _window(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    _check_size(dy, x_size, window)
    if indices.shape != dy.shape or indices.dtype != torch.int64:
        raise RuntimeError("indices are not int64 or have other sizes than dy")
    dx = _nhwc_empty(x_size, dy)
    if dx.numel():
        tools().max_pool_backward(evenly_spaced(dy), evenly_spaced(indices), dx, window)
    return _laid_out(dx, channels_last)


def avg_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:  # fmt: skip
    """y (N, C, P, Q), in x's layout."""
    window = _window(kernel, stride, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
    y = _nhwc_empty(_pooled_size(x.shape, window), x)
    if y.numel():
        tools().avg_pool(evenly_spaced(x), y, window)
    return _laid_out(y, suggests_channels_last(x))


def avg_pool2d_backward(
    dy: Tensor, x_size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, channels_last: bool,
) -> Tensor:  # fmt: skip
    """dx."""
    window = _window(kernel, stride, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad)
    _check_size(dy, x_size, window)
    dx = _nhwc_empty(x_size, dy)
    if dx.numel():
        tools().avg_pool_backward(evenly_spaced(dy), dx, window)
    return _laid_out(dx, channels_last)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """Means (N, C, 1, 1) of x (N, C, H, W)."""
    if x.shape[2] * x.shape[3] < 1:
        raise RuntimeError("x has no pixels to average")
    y = _nhwc_empty((*x.shape[:2], 1, 1), x)
    if y.numel():
        tools().global_avg_pool(evenly_spaced(x), y)
    return _laid_out(y, suggests_channels_last(x))


def depthwise_separable(
    x: Tensor, dw_weight: Tensor, dw_scale: Tensor | None, dw_shift: Tensor | None, dw_activation: str,
    dw_alpha: float, pw_weight: Tensor, pw_scale: Tensor | None, pw_shift: Tensor | None, pw_activation: str,
    pw_alpha: float, geometry: Sequence[int], flags: int, kernel: str | None,
) -> Tensor:  # fmt: skip
    """y of both convolutions, in one kernel where it can, else in two; channels_last if x or a weight is."""
    _check_alike(x, dw_weight=dw_weight, pw_weight=pw_weight)
    c, k = len(dw_weight), len(pw_weight)
    dw_scale, dw_shift = _per_map(dw_scale, c, x, "dw_scale"), _per_map(dw_shift, c, x, "dw_shift")
    pw_scale, pw_shift = _per_map(pw_scale, k, x, "pw_scale"), _per_map(pw_shift, k, x, "pw_shift")
    dw_epilogue = Epilogue(dw_activation, dw_scale is not None, dw_shift is not None, alpha=dw_alpha)
    pw_epilogue = Epilogue(pw_activation, pw_scale is not None, pw_shift is not None, alpha=pw_alpha)
    channels_last = any(suggests_channels_last(tensor) for tensor in (x, dw_weight, pw_weight))
    x = evenly_spaced(x)
    first = _problem("fprop", x.shape, dw_weight.shape, x.dtype, tuple(geometry), _gap(x), 0, Prologue(), dw_epilogue)
    second = _problem("fprop", first.y_size, pw_weight.shape, x.dtype, POINTWISE, 0, 0, Prologue(), pw_epilogue)
    backend = tools(flags)
    why_not = backend.separable_why_not(first, second, flags | _operand_flags((x, dw_weight, pw_weight)))
    if kernel is not None:
        name = f"{backend.BACKEND}_depthwise_separable_fprop_{first.dtype}_nhwc_any__sm80"
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
    operands = SeparableOperands(x, dw_weight, pw_weight, y, dw_scale, dw_shift, pw_scale, pw_shift, precision)
    if y.numel():
        backend.separable(first, second, operands, flags)
    return _laid_out(y, channels_last)


def conv2d_shuffled(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, beside: Tensor | None, geometry: Sequence[int],
    activation: str, alpha: float, shuffle: int, flags: int,
) -> Tensor:  # fmt: skip
    """channel_shuffle(cat([beside, y], 1), shuffle) of conv2d_fprop's y, in one kernel where it can."""
    channels_last = gives_channels_last(x, w) and (beside is None or suggests_channels_last(beside))
    given, x, k = x, evenly_spaced(x), w.shape[0]
    maps = k if beside is None else 2 * k
    epilogue = Epilogue(activation, scale is not None, shift is not None, alpha=alpha)
    problem = _problem("fprop", x.shape, w.shape, x.dtype, tuple(geometry), _gap(x), maps, Prologue(), epilogue)
    kernel = _shuffling_kernel(problem, flags | _operand_flags((x,)))
    fits = beside is None or (beside.shape, beside.dtype) == (problem.y_size, x.dtype)
    if kernel is None or not fits or shuffle < 1 or maps % shuffle:
        return ops.conv2d_shuffled(given, w, scale, shift, beside, geometry, activation, alpha, shuffle, flags)
    result = _nhwc_empty((problem.n, maps, problem.p, problem.q), x)
    if result.numel():
        beside = None if beside is None else evenly_spaced(beside)
        tensors = {"x": x, "w": _krsc(w), "y": result[:, :k], "scale": scale, "shift": shift, "beside": beside}
        _run(problem, flags, kernel, shuffle, **tensors)
    return _laid_out(result, channels_last)


@functools.lru_cache(maxsize=1 << 16)
def _shuffling_kernel(problem: ConvProblem, flags: int) -> str | None:
    """The name of the kernel for the problem, if it can shuffle what it writes; a tensor descriptor cannot."""
    if _by_cuda(flags):
        return None
    name = dispatch.choose(problem, flags | UNALIGNED | ONLY["triton"], device="cuda")
    return name if triton.listed()[name][0].shuffles else None


def _by_cuda(flags: int) -> bool:
    """Whether the CUDA library's kernels are asked for, or are the only ones."""
    return bool(flags & ONLY["cuda"]) or not find_spec("triton")


def conv2d_max_pool2d(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, geometry: Sequence[int], activation: str,
    alpha: float, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool, flags: int,
) -> Tensor:  # fmt: skip
    """The max pool of a convolution, in one kernel where one can, else in two; channels_last if x or w is."""
    channels_last = gives_channels_last(x, w)
    window = _window(kernel, stride, padding, ceil_mode=ceil_mode)
    x, w = evenly_spaced(x), _krsc(w)
    epilogue = Epilogue(activation, scale is not None, shift is not None, alpha=alpha)
    problem = _problem("fprop", x.shape, w.shape, x.dtype, tuple(geometry), _gap(x), 0, Prologue(), epilogue)
    y = _nhwc_empty(_pooled_size(problem.y_size, window), x)
    backend = tools(flags)
    if backend.conv_max_pool_why_not(problem, window, flags | _operand_flags((x, w))):
        z = conv2d_fprop(x, w, scale, shift, None, geometry, activation, alpha, *NO_PROLOGUE, flags, None)
        y, _ = max_pool2d(z, kernel, stride, padding, (1, 1), ceil_mode)
    elif y.numel():
        backend.conv_max_pool(problem, window, Operands(x, w, y, scale, shift), flags)
    return _laid_out(y, channels_last)


@functools.cache
def tools(flags: int = 0) -> Any:
    """The functions of the backend that the flags ask for, or of Triton where that is installed."""
    return importlib.import_module(f"cnnkern.backends.{'cuda_tools' if _by_cuda(flags) else 'triton_tools'}")


def _window(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False, count_include_pad: bool = True,
) -> Window:  # fmt: skip
    if min(*kernel, *stride, *dilation) < 1:
        raise RuntimeError("a pooling window's sizes, strides and dilations are positive")
    if any(pad < 0 or 2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise RuntimeError("a pooling window's padding is at most half its size")
    return Window(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), ceil_mode, count_include_pad)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = numbers
    return vertical, horizontal


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
    "conv2d_shuffled": conv2d_shuffled,
    "conv2d_max_pool2d": conv2d_max_pool2d,
}
for _name, _implementation in _OPERATORS.items():
    torch.library.impl(f"cnnkern::{_name}", "CUDA", _implementation)  # type: ignore[call-overload]
