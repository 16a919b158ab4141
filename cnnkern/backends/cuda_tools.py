"""The operators around convolution by the CUDA library: each writes its results on the current stream.

Tensors are (N, C, H, W) with their maps next to each other and pixels equally far apart; what is written is dense.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from cnnkern.backends.cuda import Pointers, library, narrow, place
from cnnkern.operands import SeparableOperands, pixel_stride
from cnnkern.problem import DTYPE_NAMES, DTYPES, ConvProblem
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
    workspace = x.new_empty(scratch, dtype=torch.uint8) if scratch else None
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


def _call(name: str, written: Tensor, *arguments: Any) -> None:
    device, stream = place(written)
    if error := getattr(library(), f"cnnkern_cuda_{name}")(*arguments, device, ctypes.c_void_p(stream)):
        raise RuntimeError(error.decode())


def _pooling(image: Tensor, pooled: Tensor, window: Window) -> Any:
    sizes = (*image.shape, *pooled.shape[2:], *window.kernel, *window.stride, *window.padding, *window.dilation)
    return ctypes.byref(_Pooling(_code(image), *sizes, window.count_include_pad))


def _code(tensor: Tensor) -> int:
    """csrc/conv_problem.h's DType."""
    return list(DTYPES).index(DTYPE_NAMES[tensor.dtype])


def _from(tensor: Tensor) -> tuple[Any, Any]:
    return _at(tensor), ctypes.c_int64(pixel_stride(tensor))


def _at(tensor: Tensor | None) -> Any:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
