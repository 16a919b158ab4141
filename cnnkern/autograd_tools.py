"""Derivatives of the operators around convolution: channel shuffle, pooling, and fused layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnnkern import ops
from cnnkern.autograd import differentiable, fprop, rerun
from cnnkern.ops import Constants, below_autograd


class _ChannelShuffle:
    """x (N, C, H, W) with its maps regrouped; arguments x, groups. Its inverse is the shuffle into C / groups."""

    @staticmethod
    def run(x: Tensor, groups: int) -> Tensor:
        with below_autograd():
            return ops.CHANNEL_SHUFFLE(x, groups)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> tuple[Tensor, ...]:
        ctx.groups, ctx.inverse = args[1], args[0].shape[1] // args[1]
        return ()

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        return None if dy is None else channel_shuffle(dy, ctx.inverse), None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, *_: None) -> Tensor:
        return channel_shuffle(x_t, ctx.groups)


class _MaxPool:
    """(y, indices) of x; arguments x, kernel, stride, padding, dilation (pairs), ceil_mode."""

    @staticmethod
    def run(x: Tensor, *window: Any) -> tuple[Tensor, Tensor]:
        with below_autograd():
            return ops.MAX_POOL(x, *window)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        ctx.x_size, ctx.window, ctx.channels_last = args[0].shape, args[1:], not output[0].is_contiguous()
        ctx.mark_non_differentiable(output[1])
        return (output[1],)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        dx = None if dy is None else max_pool_backward(dy, indices, ctx.x_size, *ctx.window, ctx.channels_last)
        return dx, *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, *_: None) -> tuple[Tensor, None]:
        return _at(x_t, *ctx.saved_tensors), None


class _MaxPoolBackward:
    """dx; arguments dy, indices, x_size, then those of max_pool, channels_last (the layout of dx)."""

    @staticmethod
    def run(dy: Tensor, indices: Tensor, x_size: Sequence[int], *rest: Any) -> Tensor:
        with below_autograd():
            return ops.MAX_POOL_BACKWARD(dy, indices, x_size, *rest)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], dx: Tensor) -> tuple[Tensor, ...]:
        ctx.rest = args[2:]
        return (args[1],)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor | None) -> tuple[Tensor | None, ...]:
        return None if ddx is None else _at(ddx, *ctx.saved_tensors), *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor, *_: None) -> Tensor:
        return max_pool_backward(dy_t, *ctx.saved_tensors, *ctx.rest)


def _at(x: Tensor, indices: Tensor) -> Tensor:
    """The pixels of x that a max pool picked."""
    return x.flatten(2).gather(2, indices.flatten(2)).view_as(indices)


class _AvgPool:
    """y; arguments x, kernel, stride, padding (pairs), ceil_mode, count_include_pad."""

    @staticmethod
    def run(x: Tensor, *window: Any) -> Tensor:
        with below_autograd():
            return ops.AVG_POOL(x, *window)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> tuple[Tensor, ...]:
        ctx.x_size, ctx.window, ctx.channels_last = args[0].shape, args[1:], not y.is_contiguous()
        return ()

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        dx = None if dy is None else avg_pool_backward(dy, ctx.x_size, *ctx.window, ctx.channels_last)
        return dx, *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, *_: None) -> Tensor:
        return avg_pool(x_t, *ctx.window)


class _AvgPoolBackward:
    """dx; arguments dy, x_size, then those of avg_pool, channels_last (the layout of dx)."""

    @staticmethod
    def run(dy: Tensor, x_size: Sequence[int], *rest: Any) -> Tensor:
        with below_autograd():
            return ops.AVG_POOL_BACKWARD(dy, x_size, *rest)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], dx: Tensor) -> tuple[Tensor, ...]:
        ctx.rest = args[1:]
        return ()

    @staticmethod
    def backward(ctx: Any, ddx: Tensor | None) -> tuple[Tensor | None, ...]:
        return None if ddx is None else avg_pool(ddx, *ctx.rest[1:-1]), *(None,) * 7

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor, *_: None) -> Tensor:
        return avg_pool_backward(dy_t, *ctx.rest)


class _GlobalAvgPool:
    """Means (N, C, 1, 1) of x (N, C, H, W)."""

    @staticmethod
    def run(x: Tensor) -> Tensor:
        with below_autograd():
            return ops.GLOBAL_AVG_POOL(x)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> tuple[Tensor, ...]:
        ctx.x_size = args[0].shape
        return ()

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> Tensor | None:
        return None if dy is None else (dy / math.prod(ctx.x_size[2:])).expand(ctx.x_size)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor) -> Tensor:
        return global_avg_pool(x_t)


def depthwise_separable(*args: Any) -> Tensor:
    """The fused layer, of the operator's arguments; not differentiable."""
    with below_autograd():
        return ops.DEPTHWISE_SEPARABLE(*args)


def conv2d_shuffled(*args: Any) -> Tensor:
    """The convolution whose maps are shuffled, of the operator's arguments; not differentiable."""
    with below_autograd():
        return ops.CONV2D_SHUFFLED(*args)


def conv2d_max_pool2d(*args: Any) -> Tensor:
    """A convolution and its max pooling, of the operator's arguments; not differentiable."""
    with below_autograd():
        return ops.CONV2D_MAX_POOL2D(*args)


channel_shuffle = differentiable(_ChannelShuffle)
max_pool = differentiable(_MaxPool)
max_pool_backward = differentiable(_MaxPoolBackward)
avg_pool = differentiable(_AvgPool)
avg_pool_backward = differentiable(_AvgPoolBackward)
global_avg_pool = differentiable(_GlobalAvgPool)


def _register(name: str, rule: Any) -> None:
    """Gives the operator, whose arguments are the rule's, its derivative in compiled graphs."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*rule.save(ctx, inputs, output))

    torch.library.register_autograd(f"cnnkern::{name}", rule.backward, setup_context=setup_context)


_register("channel_shuffle", _ChannelShuffle)
_register("max_pool2d", _MaxPool)
_register("max_pool2d_backward", _MaxPoolBackward)
_register("avg_pool2d", _AvgPool)
_register("avg_pool2d_backward", _AvgPoolBackward)
_register("global_avg_pool2d", _GlobalAvgPool)


def _shuffled_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, geometry, activation, alpha, shuffle, flags = inputs

    def compute(x: Tensor, w: Tensor, scale: Any, shift: Any, beside: Tensor | None) -> Tensor:
        y = fprop(x, w, scale, shift, None, Constants(geometry, flags), activation, alpha)
        return channel_shuffle(y if beside is None else torch.cat([beside, y], 1), shuffle)

    ctx.save_for_backward(*tensors)
    ctx.compute = compute


torch.library.register_autograd(
    "cnnkern::conv2d_shuffled",
    lambda ctx, dy: rerun(ctx, range(5), ctx.compute, dy),
    setup_context=_shuffled_setup,
)

_SEPARABLE_TENSORS = (0, 1, 2, 3, 6, 7, 8)  # positions among the operator's arguments


def _separable_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dw_epilogue, pw_epilogue, (geometry, flags, _) = inputs[4:6], inputs[9:11], inputs[11:]

    def compute(
        x: Tensor, dw_weight: Tensor, dw_scale: Any, dw_shift: Any, pw_weight: Tensor, pw_scale: Any, pw_shift: Any
    ) -> Tensor:
        between = fprop(x, dw_weight, dw_scale, dw_shift, None, Constants(geometry, flags), *dw_epilogue)
        return fprop(between, pw_weight, pw_scale, pw_shift, None, Constants(flags=flags), *pw_epilogue)

    ctx.save_for_backward(*(inputs[i] for i in _SEPARABLE_TENSORS))
    ctx.compute = compute


torch.library.register_autograd(
    "cnnkern::depthwise_separable",
    lambda ctx, dy: rerun(ctx, _SEPARABLE_TENSORS, ctx.compute, dy),
    setup_context=_separable_setup,
)


_CONV2D_MAX_POOL2D_TENSORS = (0, 1, 2, 3)


def _conv_max_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    geometry, activation, alpha, *window, ceil_mode, flags = inputs[4:]

    def compute(x: Tensor, w: Tensor, scale: Any, shift: Any) -> Tensor:
        z = fprop(x, w, scale, shift, None, Constants(geometry, flags), activation, alpha)
        return max_pool(z, *window, (1, 1), ceil_mode)[0]

    ctx.save_for_backward(*inputs[:4])
    ctx.compute = compute


torch.library.register_autograd(
    "cnnkern::conv2d_max_pool2d",
    lambda ctx, dy: rerun(ctx, _CONV2D_MAX_POOL2D_TENSORS, ctx.compute, dy),
    setup_context=_conv_max_pool_setup,
)
