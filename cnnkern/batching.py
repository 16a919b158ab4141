"""vmap rules of the operators: a batch dimension is folded into N, or into the maps as groups of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnnkern import ops

_Dim = int | None


def _leading(tensor: Tensor, dim: _Dim, count: int) -> Tensor:
    """The tensor with its vmapped dimension in front; repeated there, without a copy, if it has none."""
    return tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _into_first(tensor: Any, dim: _Dim, count: int) -> Any:
    """[B, N or K, ...] as [B * N or K, ...]; None stays None."""
    return None if tensor is None else _leading(tensor, dim, count).flatten(0, 1)


def _into_maps(tensor: Any, dim: _Dim, count: int) -> Any:
    """[B, N, C, H, W] as [N, B * C, H, W]; None stays None."""
    return None if tensor is None else _leading(tensor, dim, count).movedim(0, 1).flatten(1, 2)


def _scaled(size: Sequence[int], axis: int, count: int) -> list[int]:
    return [length * count if i == axis else length for i, length in enumerate(size)]


def _regrouped(geometry: Sequence[int], count: int) -> tuple[int, ...]:
    """The geometry of a convolution whose groups are repeated."""
    return *geometry[:-1], geometry[-1] * count


def _one(tensor: Tensor, dim: _Dim) -> list[int]:
    """The size of one of the vmapped tensors."""
    return [length for axis, length in enumerate(tensor.shape) if axis != dim]


def _fprop(
    info: Any, in_dims: tuple[_Dim, ...], x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None,
    residual: Tensor | None, geometry: Sequence[int], activation: str, alpha: float, x_scale: Tensor | None,
    x_shift: Tensor | None, *rest: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    count = info.batch_size
    x_dim, w_dim, scale_dim, shift_dim, residual_dim, *_ = in_dims
    x_scale_dim, x_shift_dim = in_dims[8:10]
    epilogue = activation, alpha
    if w_dim is scale_dim is shift_dim is x_scale_dim is x_shift_dim is None:
        x, residual = _into_first(x, x_dim, count), _into_first(residual, residual_dim, count)
        y = ops.FPROP(x, w, scale, shift, residual, geometry, *epilogue, x_scale, x_shift, *rest)
        return y.unflatten(0, (count, -1)), 0
    y = ops.FPROP(
        _into_maps(x, x_dim, count), _into_first(w, w_dim, count), _into_first(scale, scale_dim, count),
        _into_first(shift, shift_dim, count), _into_maps(residual, residual_dim, count),
        _regrouped(geometry, count), *epilogue, _into_first(x_scale, x_scale_dim, count),
        _into_first(x_shift, x_shift_dim, count), *rest,
    )  # fmt: skip
    return y.unflatten(1, (count, -1)), 1


def _dgrad(
    info: Any, in_dims: tuple[_Dim, ...], dy: Tensor, w: Tensor, x_size: Sequence[int],
    geometry: Sequence[int], *rest: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    count = info.batch_size
    dy_dim, w_dim = in_dims[:2]
    axis = 0 if w_dim is None else 1
    if w_dim is None:
        dy = _into_first(dy, dy_dim, count)
    else:
        dy, w = _into_maps(dy, dy_dim, count), _into_first(w, w_dim, count)
        geometry = _regrouped(geometry, count)
    dx = ops.DGRAD(dy, w, _scaled(x_size, axis, count), geometry, *rest)
    return dx.unflatten(axis, (count, -1)), axis


def _wgrad(
    info: Any, in_dims: tuple[_Dim, ...], dy: Tensor, x: Tensor, w_size: Sequence[int], geometry: Sequence[int],
    bias: bool, channels_last: bool, x_scale: Tensor | None, x_shift: Tensor | None, *rest: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int, _Dim]]:  # fmt: skip
    count = info.batch_size
    dw, db = ops.WGRAD(
        _into_maps(dy, in_dims[0], count), _into_maps(x, in_dims[1], count), _scaled(w_size, 0, count),
        _regrouped(geometry, count), bias, channels_last, _into_first(x_scale, in_dims[6], count),
        _into_first(x_shift, in_dims[7], count), *rest,
    )  # fmt: skip
    dw = dw.unflatten(0, (count, -1))
    return ((dw, db.unflatten(0, (count, -1))), (0, 0)) if bias else ((dw, db), (0, None))


def _backward(
    info: Any, in_dims: tuple[_Dim, ...], dy: Tensor, x: Tensor, w: Tensor, geometry: Sequence[int], bias: bool,
    flags: int, dgrad_kernel: str | None, wgrad_kernel: str | None,
) -> tuple[tuple[Tensor, ...], tuple[_Dim, ...]]:  # fmt: skip
    dy_dim, x_dim, w_dim, *_ = in_dims
    x_size, w_size = _one(x, x_dim), _one(w, w_dim)
    dx, dx_dim = _dgrad(info, (dy_dim, w_dim), dy, w, x_size, geometry, False, flags, dgrad_kernel)
    dims = (dy_dim, x_dim, *(None,) * 10)
    rest = (*ops.NO_PROLOGUE, flags, wgrad_kernel)
    gradients, gradient_dims = _wgrad(info, dims, dy, x, w_size, geometry, bias, False, *rest)
    return (dx, *gradients), (dx_dim, *gradient_dims)


def _depthwise_separable(
    info: Any, in_dims: tuple[_Dim, ...], x: Tensor, dw_weight: Tensor, dw_scale: Tensor | None,
    dw_shift: Tensor | None, dw_activation: str, dw_alpha: float, pw_weight: Tensor, pw_scale: Tensor | None,
    pw_shift: Tensor | None, pw_activation: str, pw_alpha: float, geometry: Sequence[int], flags: int,
    kernel: str | None,
) -> tuple[Tensor, int]:  # fmt: skip
    rest = (*ops.NO_PROLOGUE, flags, None)
    no_dims = (None,) * 10
    depthwise = (None, geometry, dw_activation, dw_alpha, *rest)
    pointwise = (None, ops.POINTWISE, pw_activation, pw_alpha, *rest)
    y, dim = _fprop(info, (*in_dims[:4], *no_dims), x, dw_weight, dw_scale, dw_shift, *depthwise)
    return _fprop(info, (dim, *in_dims[6:9], *no_dims), y, pw_weight, pw_scale, pw_shift, *pointwise)


def _conv_max_pool(
    info: Any, in_dims: tuple[_Dim, ...], x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None,
    geometry: Sequence[int], activation: str, alpha: float, kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], ceil_mode: bool, flags: int,
) -> tuple[Tensor, int]:  # fmt: skip
    dims = (*in_dims[:4], *(None,) * 10)
    rest = (None, geometry, activation, alpha, *ops.NO_PROLOGUE, flags, None)
    z, dim = _fprop(info, dims, x, w, scale, shift, *rest)
    (y, _), (dim, _) = _images_only(ops.MAX_POOL)(info, (dim,), z, kernel, stride, padding, (1, 1), ceil_mode)
    return y, dim


def _images_only(operator: Any) -> Any:
    """The rule of an operator that takes and returns images: fold the batch into N."""

    def rule(info: Any, in_dims: tuple[_Dim, ...], x: Tensor, *args: Any) -> tuple[Any, Any]:
        y = operator(_into_first(x, in_dims[0], info.batch_size), *args)
        unfold = lambda tensor: tensor.unflatten(0, (info.batch_size, -1))  # noqa: E731
        return (tuple(map(unfold, y)), (0,) * len(y)) if isinstance(y, tuple) else (unfold(y), 0)

    return rule


def _max_pool_backward(
    info: Any, in_dims: tuple[_Dim, ...], dy: Tensor, indices: Tensor, x_size: Sequence[int], *rest: Any
) -> tuple[Tensor, int]:
    count = info.batch_size
    dy, indices = _into_first(dy, in_dims[0], count), _into_first(indices, in_dims[1], count)
    dx = ops.MAX_POOL_BACKWARD(dy, indices, _scaled(x_size, 0, count), *rest)
    return dx.unflatten(0, (count, -1)), 0


def _avg_pool_backward(
    info: Any, in_dims: tuple[_Dim, ...], dy: Tensor, x_size: Sequence[int], *args: Any
) -> tuple[Tensor, int]:
    count = info.batch_size
    dx = ops.AVG_POOL_BACKWARD(_into_first(dy, in_dims[0], count), _scaled(x_size, 0, count), *args)
    return dx.unflatten(0, (count, -1)), 0


for _name, _rule in {
    "conv2d_fprop": _fprop,
    "conv2d_dgrad": _dgrad,
    "conv2d_wgrad": _wgrad,
    "conv2d_backward": _backward,
    "depthwise_separable": _depthwise_separable,
    "conv2d_max_pool2d": _conv_max_pool,
    "channel_shuffle": _images_only(ops.CHANNEL_SHUFFLE),
    "max_pool2d": _images_only(ops.MAX_POOL),
    "max_pool2d_backward": _max_pool_backward,
    "avg_pool2d": _images_only(ops.AVG_POOL),
    "avg_pool2d_backward": _avg_pool_backward,
    "global_avg_pool2d": _images_only(ops.GLOBAL_AVG_POOL),
}.items():
    torch.library.register_vmap(f"cnnkern::{_name}", _rule)
