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


def _fprop(
    info: Any, in_dims: tuple[_Dim, ...], x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None,
    residual: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int, *epilogue: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    count = info.batch_size
    x_dim, w_dim, scale_dim, shift_dim, residual_dim = in_dims[:5]
    if w_dim is scale_dim is shift_dim is None:
        x, residual = _into_first(x, x_dim, count), _into_first(residual, residual_dim, count)
        y = ops.FPROP(x, w, scale, shift, residual, stride, padding, dilation, groups, *epilogue)
        return y.unflatten(0, (count, -1)), 0
    y = ops.FPROP(
        _into_maps(x, x_dim, count), _into_first(w, w_dim, count), _into_first(scale, scale_dim, count),
        _into_first(shift, shift_dim, count), _into_maps(residual, residual_dim, count),
        stride, padding, dilation, groups * count, *epilogue,
    )  # fmt: skip
    return y.unflatten(1, (count, -1)), 1


def _dgrad(
    info: Any, in_dims: tuple[_Dim, ...], dy: Tensor, w: Tensor, x_size: Sequence[int], stride: Any, padding: Any,
    dilation: Any, groups: int, *rest: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    count = info.batch_size
    dy_dim, w_dim = in_dims[:2]
    axis = 0 if w_dim is None else 1
    if w_dim is None:
        dy = _into_first(dy, dy_dim, count)
    else:
        dy, w, groups = _into_maps(dy, dy_dim, count), _into_first(w, w_dim, count), groups * count
    dx = ops.DGRAD(dy, w, _scaled(x_size, axis, count), stride, padding, dilation, groups, *rest)
    return dx.unflatten(axis, (count, -1)), axis


def _wgrad(
    info: Any, in_dims: tuple[_Dim, ...], dy: Tensor, x: Tensor, w_size: Sequence[int], stride: Any, padding: Any,
    dilation: Any, groups: int, bias: bool, *rest: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int, _Dim]]:  # fmt: skip
    count = info.batch_size
    dy, x = _into_maps(dy, in_dims[0], count), _into_maps(x, in_dims[1], count)
    dw, db = ops.WGRAD(dy, x, _scaled(w_size, 0, count), stride, padding, dilation, groups * count, bias, *rest)
    dw = dw.unflatten(0, (count, -1))
    return ((dw, db.unflatten(0, (count, -1))), (0, 0)) if bias else ((dw, db), (0, None))


def _depthwise_separable(
    info: Any, in_dims: tuple[_Dim, ...], x: Tensor, dw_weight: Tensor, dw_scale: Tensor | None,
    dw_shift: Tensor | None, dw_activation: str, dw_alpha: float, pw_weight: Tensor, pw_scale: Tensor | None,
    pw_shift: Tensor | None, pw_activation: str, pw_alpha: float, stride: Any, padding: Any, dilation: Any, flags: int,
    kernel: str | None,
) -> tuple[Tensor, int]:  # fmt: skip
    depthwise = (None, stride, padding, dilation, _first(dw_weight, in_dims[1]), dw_activation, dw_alpha, flags, None)
    pointwise = (None, (1, 1), (0, 0, 0, 0), (1, 1), 1, pw_activation, pw_alpha, flags, None)
    y, dim = _fprop(info, (*in_dims[:4], None), x, dw_weight, dw_scale, dw_shift, *depthwise)
    return _fprop(info, (dim, *in_dims[6:9], None), y, pw_weight, pw_scale, pw_shift, *pointwise)


def _first(tensor: Tensor, dim: _Dim) -> int:
    """The first size that is not the vmapped dimension's."""
    return tensor.shape[1 if dim == 0 else 0]


def _images_only(operator: Any) -> Any:
    """The rule of an operator that takes and returns images: fold the batch into N."""

    def rule(info: Any, in_dims: tuple[_Dim, ...], x: Tensor, *args: Any) -> tuple[Any, Any]:
        y = operator(_into_first(x, in_dims[0], info.batch_size), *args)
        unfold = lambda tensor: tensor.unflatten(0, (info.batch_size, -1))  # noqa: E731
        return (tuple(map(unfold, y)), (0,) * len(y)) if isinstance(y, tuple) else (unfold(y), 0)

    return rule


def _max_pool_backward(
    info: Any, in_dims: tuple[_Dim, ...], dy: Tensor, indices: Tensor, x_size: Sequence[int], channels_last: bool
) -> tuple[Tensor, int]:
    count = info.batch_size
    dy, indices = _into_first(dy, in_dims[0], count), _into_first(indices, in_dims[1], count)
    dx = ops.MAX_POOL_BACKWARD(dy, indices, _scaled(x_size, 0, count), channels_last)
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
    "depthwise_separable": _depthwise_separable,
    "channel_shuffle": _images_only(ops.CHANNEL_SHUFFLE),
    "max_pool2d": _images_only(ops.MAX_POOL),
    "max_pool2d_backward": _max_pool_backward,
    "avg_pool2d": _images_only(ops.AVG_POOL),
    "avg_pool2d_backward": _avg_pool_backward,
    "global_avg_pool2d": _images_only(ops.GLOBAL_AVG_POOL),
}.items():
    torch.library.register_vmap(f"cnnkern::{_name}", _rule)
