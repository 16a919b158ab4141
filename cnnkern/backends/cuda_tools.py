"""The operators around convolution by the CUDA library: each writes its results on the current stream.

Tensors are (N, C, H, W) with their maps next to each other and pixels equally far apart; what is written is dense.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cnnkern.backends.cuda import Pointers, PreparedCall, capability, current, library, narrow, place
from cnnkern.operands import Layer, Operands, SeparableOperands, pixel_stride
from cnnkern.problem import ACTIVATIONS, DTYPE_NAMES, DTYPES, ConvProblem
from cnnkern.window import Window

BACKEND = "cuda"


class _Shuffle(ctypes.Structure):
    """csrc/cuda/tools.h's Shuffle."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("pixels", "channels", "groups", "x_pixel_stride", "y_pixel_stride")),
        ("element_size", ctypes.c_int),
    )


class _Pooling(ctypes.Structure):
    """csrc/cuda/tools.h's Pooling."""

    _fields_ = (
        ("dtype", ctypes.c_int8),
        *((name, ctypes.c_int64) for name in ("n", "c", "h", "w", "p", "q", "r", "s")),
        *((name, ctypes.c_int64) for name in ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")),
        ("count_include_pad", ctypes.c_bool),
    )


class _BatchNorm(ctypes.Structure):
    """csrc/cuda/tools.h's BatchNorm."""

    _fields_ = (
        ("dtype", ctypes.c_int8),
        *((name, ctypes.c_int64) for name in ("pixels", "maps")),
        *((name, ctypes.c_void_p) for name in ("z", "residual")),
        ("residual_pixel_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("gamma", "beta", "moments")),
        *((name, ctypes.c_float) for name in ("eps", "alpha")),
        ("activation", ctypes.c_int8),
    )


class _RunningStatistics(ctypes.Structure):
    """csrc/cuda/tools.h's RunningStatistics."""

    _fields_ = (("mean", ctypes.c_void_p), ("var", ctypes.c_void_p), ("momentum", ctypes.c_float))


class _BatchNormGradients(ctypes.Structure):
    """csrc/cuda/tools.h's BatchNormGradients."""

    _fields_ = (
        ("dy", ctypes.c_void_p),
        ("dy_pixel_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("dz", "dresidual", "dgamma", "dbeta")),
    )


def shuffle_planes(x: Tensor, y: Tensor, groups: int) -> None:
    """Channel shuffle of contiguous tensors, by way of channels_last."""
    shuffled = torch.empty_like(x, memory_format=torch.channels_last)
    shuffle_maps(x.contiguous(memory_format=torch.channels_last), shuffled, groups)
    y.copy_(shuffled)


def shuffle_maps(x: Tensor, y: Tensor, groups: int) -> None:
    """Channel shuffle."""
    pixels = x.numel() // x.shape[1]
    strides = pixel_stride(x), pixel_stride(y)
    shuffle = _Shuffle(x.data_ptr(), y.data_ptr(), pixels, x.shape[1], groups, *strides, x.element_size())
    _call("channel_shuffle", y, ctypes.byref(shuffle))


def max_pool(x: Tensor, y: Tensor, indices: Tensor, window: Window) -> None:
    """y and the places of the maxima."""
    _call("max_pool2d", y, _pooling(x, y, window), *_from(x), _at(y), _at(indices))


def max_pool_backward(dy: Tensor, indices: Tensor, dx: Tensor, window: Window) -> None:
    """dx of max_pool."""
    dense = indices.contiguous(memory_format=torch.channels_last)
    _call("max_pool2d_backward", dx, _pooling(dx, dy, window), *_from(dy), _at(dense), _at(dx))


def avg_pool(x: Tensor, y: Tensor, window: Window) -> None:
    """y."""
    _call("avg_pool2d", y, _pooling(x, y, window), *_from(x), _at(y))


def avg_pool_backward(dy: Tensor, dx: Tensor, window: Window) -> None:
    """dx of avg_pool."""
    _call("avg_pool2d_backward", dx, _pooling(dx, dy, window), *_from(dy), _at(dx))


def global_avg_pool(x: Tensor, y: Tensor) -> None:
    """The means of maps."""
    n, c, h, w = x.shape
    scratch = library().cnnkern_cuda_global_avg_pool2d_workspace_bytes(n, h * w, c)
    workspace = _scratch(x, scratch)
    sizes = (ctypes.c_int64(size) for size in (n, h * w, c))
    _call("global_avg_pool2d", y, _code(x), *sizes, *_from(x), _at(y), _at(workspace))


def separable_why_not(first: ConvProblem, second: ConvProblem, flags: int) -> str:
    """Empty, or why the two convolutions are not one kernel's."""
    return library().cnnkern_cuda_separable_why_not(str(first).encode(), str(second).encode(), flags).decode()


def separable(first: ConvProblem, second: ConvProblem, operands: SeparableOperands, flags: int) -> None:
    """Both convolutions."""
    o = operands
    x, y = o.x, o.y
    dw_weight, pw_weight = (w.contiguous(memory_format=torch.channels_last) for w in (o.dw_weight, o.pw_weight))
    dw = Pointers(
        x=x.data_ptr(), w=dw_weight.data_ptr(), scale=_at(o.dw_scale), shift=_at(o.dw_shift),
        narrow_scale=narrow(o.dw_scale, x), narrow_shift=narrow(o.dw_shift, x),
    )  # fmt: skip
    pw = Pointers(
        w=pw_weight.data_ptr(), y=y.data_ptr(), scale=_at(o.pw_scale), shift=_at(o.pw_shift),
        narrow_scale=narrow(o.pw_scale, x), narrow_shift=narrow(o.pw_shift, x),
    )  # fmt: skip
    problems = str(first).encode(), str(second).encode()
    _call("separable", y, *problems, ctypes.c_int64(flags), ctypes.byref(dw), ctypes.byref(pw))


def conv_max_pool_why_not(problem: ConvProblem, window: Window, flags: int) -> str:
    """Empty, or why the convolution and its pooling are not one kernel's."""
    given = (str(problem).encode(), _pooling_of(problem, window), flags, capability(flags))
    return library().cnnkern_cuda_conv_max_pool2d_why_not(*given).decode()


def conv_max_pool(problem: ConvProblem, window: Window, operands: Operands, flags: int) -> None:
    """Both."""
    o = operands
    pointers = Pointers(
        x=o.x.data_ptr(), w=o.w.data_ptr(), y=o.y.data_ptr(), scale=_at(o.scale), shift=_at(o.shift),
        narrow_scale=narrow(o.scale, o.x), narrow_shift=narrow(o.shift, o.x),
    )  # fmt: skip
    given = (str(problem).encode(), _pooling_of(problem, window), ctypes.c_int64(flags), capability(flags))
    _call("conv_max_pool2d", o.y, *given, ctypes.byref(pointers))


def conv_with_statistics(kernel: str, problem: ConvProblem, operands: Operands, flags: int) -> Tensor:
    """Runs the fprop kernel; returns y's partial statistics [partials, 3, K], of its epilogue where it leaves any."""
    call, z = _prepared(kernel, problem, flags), operands.y
    if call.partials:
        stats = z.new_empty(call.partials, 3, problem.k, dtype=torch.float32)
        call(replace(operands, statistics=stats))
        return stats
    call(operands)
    return partials_of(z)


def partials_of(z: Tensor) -> Tensor:
    """The partial statistics of dense z, which is read for them."""
    n, maps, p, q = z.shape
    partials = library().cnnkern_cuda_batch_statistics_partials(_code(z), n * p * q, maps)
    stats = z.new_empty(partials, 3, maps, dtype=torch.float32)
    _call("batch_statistics", z, _code(z), ctypes.c_int64(n * p * q), ctypes.c_int64(maps), _at(z), _at(stats))
    return stats


def normalise(
    z: Tensor, stats: Tensor, residual: Tensor | None, y: Tensor, layer: Layer, running: tuple[Tensor, Tensor] | None,
    momentum: float, beside: Tensor | None = None, shuffle: int = 1,
) -> Tensor:  # fmt: skip
    """y of a batch-normalised layer, shuffled with beside; returns its moments [4, K]: mean, var, scale and shift."""
    if beside is not None or shuffle > 1:
        alone = torch.empty_like(z)
        moments = normalise(z, stats, residual, alone, layer, running, momentum)
        together = alone if beside is None else torch.cat([beside, alone], 1)
        shuffle_maps(together, y, shuffle)
        return moments
    partials, _, maps = stats.shape
    layer, moments = _in_float(layer), stats.new_empty(4, maps)
    norm = _batch_norm(z, residual, moments, layer)
    moved = [] if running is None else [(own, own.float()) for own in running]
    averages = _RunningStatistics(*([average.data_ptr() for _, average in moved] or (None, None)), momentum)
    workspace = _scratch(z, library().cnnkern_cuda_batch_moments_workspace_bytes(partials, maps))
    count = ctypes.c_int64(partials)
    _call("batch_moments", z, norm, _at(stats), count, ctypes.byref(averages), _at(workspace))
    _call("batch_norm", y, norm, _at(y))
    for own, average in moved:
        if average is not own:
            own.copy_(average)
    return moments


def normalise_backward(
    dy: Tensor, z: Tensor, residual: Tensor | None, moments: Tensor, layer: Layer, dz: Tensor, dgamma: Tensor | None,
    dbeta: Tensor | None, dresidual: Tensor | None, dbeside: Tensor | None = None, shuffle: int = 1,
) -> None:  # fmt: skip
    """dz of normalise, and the gradients that are not None."""
    if shuffle > 1:
        shuffled, dy = dy, torch.empty(dy.shape, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)
        shuffle_maps(shuffled, dy, dy.shape[1] // shuffle)
    of_beside, dy = dy.tensor_split([dy.shape[1] - z.shape[1]], 1)
    if dbeside is not None:
        dbeside.copy_(of_beside)
    n, maps, p, q = z.shape
    layer = _in_float(layer)
    found = [None if own is None else own.float() for own in (dgamma, dbeta)]
    tensors = (_at(tensor) for tensor in (dz, dresidual, *found))
    gradients = _BatchNormGradients(_at(dy), pixel_stride(dy), *tensors)
    workspace = _scratch(z, library().cnnkern_cuda_batch_norm_backward_workspace_bytes(_code(z), n * p * q, maps))
    norm = _batch_norm(z, residual, moments, layer)
    _call("batch_norm_backward", dz, norm, ctypes.byref(gradients), _at(workspace))
    for own, gradient in zip((dgamma, dbeta), found, strict=True):
        if own is not None and gradient is not None and gradient is not own:
            own.copy_(gradient)


def _batch_norm(z: Tensor, residual: Tensor | None, moments: Tensor, layer: Layer) -> Any:
    n, maps, p, q = z.shape
    stride = 0 if residual is None else pixel_stride(residual)
    given = (_at(z), _at(residual), stride, _at(layer.gamma), _at(layer.beta), _at(moments))
    how = (layer.eps, layer.alpha, ACTIVATIONS.index(layer.activation))
    return ctypes.byref(_BatchNorm(_code(z), n * p * q, maps, *given, *how))


def _in_float(layer: Layer) -> Layer:
    gamma, beta = (None if vector is None else vector.float() for vector in (layer.gamma, layer.beta))
    return replace(layer, gamma=gamma, beta=beta)


def _scratch(like: Tensor, size: int) -> Tensor | None:
    return like.new_empty(size, dtype=torch.uint8) if size else None


_prepared = functools.lru_cache(maxsize=1 << 12)(PreparedCall)


def _call(name: str, written: Tensor, *arguments: Any) -> None:
    device, stream = place(written)
    with current(written):
        error = getattr(library(), f"cnnkern_cuda_{name}")(*arguments, device, ctypes.c_void_p(stream))
    if error:
        raise RuntimeError(error.decode())


def _pooling(image: Tensor, pooled: Tensor, window: Window) -> Any:
    return _pooling_as(_code(image), image.shape, pooled.shape[2:], window)


def _pooling_of(problem: ConvProblem, window: Window) -> Any:
    """The pooling of a convolution's result."""
    pooled = (window.output_size(problem.p, 0), window.output_size(problem.q, 1))
    return _pooling_as(list(DTYPES).index(problem.dtype), problem.y_size, pooled, window)


def _pooling_as(code: int, size: Sequence[int], pooled: Sequence[int], window: Window) -> Any:
    of_window = (*window.kernel, *window.stride, *window.padding, *window.dilation)
    return ctypes.byref(_Pooling(code, *size, *pooled, *of_window, window.count_include_pad))


def _code(tensor: Tensor) -> int:
    """csrc/conv_problem.h's DType."""
    return list(DTYPES).index(DTYPE_NAMES[tensor.dtype])


def _from(tensor: Tensor) -> tuple[Any, Any]:
    return _at(tensor), ctypes.c_int64(pixel_stride(tensor))


def _at(tensor: Tensor | None) -> Any:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
