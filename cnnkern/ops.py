"""The operators as torch sees them: calls below autograd, fake kernels and FLOP formulas.

csrc/ops.cpp states the schemas and holds the CPU implementations, but for conv2d_shuffled and conv2d_max_pool2d, which
no CPU kernel fuses: they are stated and composed here. :mod:`cnnkern.autograd` makes them differentiable,
:mod:`cnnkern.batching` gives them their vmap rules. In all of them ``geometry`` is nine numbers, stride
(vertical, horizontal), padding (top, left, bottom, right), dilation (vertical, horizontal) and groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cnnkern import native  # noqa: F401  (loads the library that defines torch.ops.cnnkern)
from cnnkern.problem import output_size, suggests_channels_last

FPROP = torch.ops.cnnkern.conv2d_fprop.default
FPROP_PLAIN = torch.ops.cnnkern.conv2d_fprop.plain
DGRAD = torch.ops.cnnkern.conv2d_dgrad.default
WGRAD = torch.ops.cnnkern.conv2d_wgrad.default
BACKWARD = torch.ops.cnnkern.conv2d_backward.default
torch.library.define(
    "cnnkern::conv2d_shuffled",
    "(Tensor x, Tensor w, Tensor? scale, Tensor? shift, Tensor? beside, int[] geometry, str activation, float alpha, "
    "int shuffle, int flags) -> Tensor",
)
CONV2D_SHUFFLED = torch.ops.cnnkern.conv2d_shuffled.default
DEPTHWISE_SEPARABLE = torch.ops.cnnkern.depthwise_separable.default
CHANNEL_SHUFFLE = torch.ops.cnnkern.channel_shuffle.default
MAX_POOL = torch.ops.cnnkern.max_pool2d.default
MAX_POOL_BACKWARD = torch.ops.cnnkern.max_pool2d_backward.default
AVG_POOL = torch.ops.cnnkern.avg_pool2d.default
AVG_POOL_BACKWARD = torch.ops.cnnkern.avg_pool2d_backward.default
GLOBAL_AVG_POOL = torch.ops.cnnkern.global_avg_pool2d.default

torch.library.define(
    "cnnkern::conv2d_max_pool2d",
    "(Tensor x, Tensor w, Tensor? scale, Tensor? shift, int[] geometry, str activation, float alpha, "
    "int[] kernel, int[] stride, int[] padding, bool ceil_mode, int flags) -> Tensor",
)
CONV2D_MAX_POOL2D = torch.ops.cnnkern.conv2d_max_pool2d.default

POINTWISE = (1, 1, 0, 0, 0, 0, 1, 1, 1)  # the geometry of a 1x1 convolution
NO_PROLOGUE = (None, None, None, None)


class Constants(NamedTuple):
    """What a convolution and its derivatives share besides their tensors, settled once when the forward runs."""

    geometry: tuple[int, ...] = POINTWISE
    flags: int = 0
    fprop_kernel: str | None = None  # names of forced kernels
    dgrad_kernel: str | None = None
    wgrad_kernel: str | None = None


# Within it operators are called past the Autograd key, where register_autograd's implementation costs tens of
# microseconds a call. Modes (FlopCounterMode, FakeTensorMode) and functorch's batching still see them.
below_autograd = torch._C._AutoDispatchBelowAutograd


def memory_format(channels_last: bool) -> torch.memory_format:
    """The torch.memory_format of a flag."""
    return torch.channels_last if channels_last else torch.contiguous_format


def gives_channels_last(x: Tensor, w: Tensor) -> bool:
    """torch's rule for the memory format of a convolution's result, and of the gradient of x."""
    return suggests_channels_last(x) or suggests_channels_last(w)


def _output_pixels(x_size: Sequence[int], w_size: Sequence[int], geometry: Sequence[int]) -> tuple[int, int]:
    stride_h, stride_w, top, left, bottom, right, dilation_h, dilation_w, _ = geometry
    p = output_size(x_size[2], w_size[2], top, bottom, stride_h, dilation_h)
    q = output_size(x_size[3], w_size[3], left, right, stride_w, dilation_w)
    torch._check(p > 0 and q > 0, lambda: f"the filter of {tuple(w_size[2:])} is larger than the padded input")
    return p, q


@torch.library.register_fake("cnnkern::conv2d_fprop")
def _fprop_fake(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None,
    geometry: Sequence[int], activation: str, alpha: float, x_scale: Tensor | None, x_shift: Tensor | None,
    x_activation: str | None, x_alpha: float | None, flags: int, kernel: str | None,
) -> Tensor:  # fmt: skip
    groups = geometry[-1]
    torch._check(x.dim() == 4 and w.dim() == 4, lambda: f"x and w have 4 dimensions, not {x.dim()} and {w.dim()}")
    torch._check(x.dtype == w.dtype, lambda: f"x is {x.dtype}, w is {w.dtype}")
    torch._check(
        x.shape[1] == w.shape[1] * groups, lambda: f"groups={groups}, w {tuple(w.shape)} and x {tuple(x.shape)}"
    )
    torch._check(w.shape[0] % groups == 0, lambda: f"groups={groups} does not divide {w.shape[0]} output channels")
    size = (x.shape[0], w.shape[0], *_output_pixels(x.shape, w.shape, geometry))
    layout = memory_format(gives_channels_last(x, w))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)


@torch.library.register_fake("cnnkern::conv2d_fprop.plain")
def _fprop_plain_fake(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: Sequence[int], flags: int, kernel: str | None
) -> Tensor:
    for other in (w, bias):
        same = other is None or (other.device == x.device and other.dtype == x.dtype)
        torch._check(same, lambda: f"x is {x.dtype} on {x.device}, not so w or bias")
    torch._check(w.numel() != 0, lambda: "w has no elements")
    return _fprop_fake(x, w, None, bias, None, geometry, "none", 0.0, *NO_PROLOGUE, flags, kernel)


# conv2d_fprop.plain has no derivative and lets the Autograd key fall through: it is what eager mode calls where there
# is nothing to differentiate, or from inside of an autograd.Function.
_fallthroughs = torch.library.Library("cnnkern", "IMPL")
_fallthroughs.impl("conv2d_fprop.plain", torch.library.fallthrough_kernel, "Autograd")


@torch.library.register_fake("cnnkern::conv2d_dgrad")
def _dgrad_fake(
    dy: Tensor, w: Tensor, x_size: Sequence[int], geometry: Sequence[int], channels_last: bool, flags: int,
    kernel: str | None,
) -> Tensor:  # fmt: skip
    return torch.empty(x_size, dtype=dy.dtype, device=dy.device, memory_format=memory_format(channels_last))


@torch.library.register_fake("cnnkern::conv2d_wgrad")
def _wgrad_fake(
    dy: Tensor, x: Tensor, w_size: Sequence[int], geometry: Sequence[int], bias: bool, channels_last: bool,
    x_scale: Tensor | None, x_shift: Tensor | None, x_activation: str | None, x_alpha: float | None, flags: int,
    kernel: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dw = torch.empty(w_size, dtype=dy.dtype, device=dy.device, memory_format=memory_format(channels_last))
    return dw, dy.new_empty(dy.shape[1] if bias else 0)


@torch.library.register_fake("cnnkern::conv2d_backward")
def _backward_fake(
    dy: Tensor, x: Tensor, w: Tensor, geometry: Sequence[int], bias: bool, flags: int,
    dgrad_kernel: str | None, wgrad_kernel: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    channels_last = gives_channels_last(x, w)
    dx = _dgrad_fake(dy, w, x.shape, geometry, channels_last, flags, dgrad_kernel)
    rest = bias, channels_last, *NO_PROLOGUE, flags, wgrad_kernel
    return dx, *_wgrad_fake(dy, x, w.shape, geometry, *rest)


def conv2d_shuffled(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, beside: Tensor | None, geometry: Sequence[int],
    activation: str, alpha: float, shuffle: int, flags: int,
) -> Tensor:  # fmt: skip
    """channel_shuffle(cat([beside, y], 1), shuffle), y (N, K, P, Q) as conv2d_fprop's; not differentiable."""
    y = FPROP(x, w, scale, shift, None, geometry, activation, alpha, *NO_PROLOGUE, flags, None)
    return CHANNEL_SHUFFLE(y if beside is None else torch.cat([beside, y], 1), shuffle)


torch.library.impl("cnnkern::conv2d_shuffled", "CompositeExplicitAutograd", conv2d_shuffled)


@torch.library.register_fake("cnnkern::conv2d_shuffled")
def _conv2d_shuffled_fake(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, beside: Tensor | None, geometry: Sequence[int],
    activation: str, alpha: float, shuffle: int, flags: int,
) -> Tensor:  # fmt: skip
    y = _fprop_fake(x, w, scale, shift, None, geometry, activation, alpha, *NO_PROLOGUE, flags, None)
    return _channel_shuffle_fake(y if beside is None else torch.cat([beside, y], 1), shuffle)


@torch.library.register_fake("cnnkern::depthwise_separable")
def _depthwise_separable_fake(
    x: Tensor, dw_weight: Tensor, dw_scale: Tensor | None, dw_shift: Tensor | None, dw_activation: str,
    dw_alpha: float, pw_weight: Tensor, pw_scale: Tensor | None, pw_shift: Tensor | None, pw_activation: str,
    pw_alpha: float, geometry: Sequence[int], flags: int, kernel: str | None,
) -> Tensor:  # fmt: skip
    depthwise = (geometry, dw_activation, dw_alpha, *NO_PROLOGUE, flags, None)
    pointwise = (POINTWISE, pw_activation, pw_alpha, *NO_PROLOGUE, flags, None)
    between = _fprop_fake(x, dw_weight, dw_scale, dw_shift, None, *depthwise)
    return _fprop_fake(between, pw_weight, pw_scale, pw_shift, None, *pointwise)


def _conv_max_pool(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, geometry: Sequence[int], activation: str,
    alpha: float, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool, flags: int,
) -> Tensor:  # fmt: skip
    z = FPROP(x, w, scale, shift, None, geometry, activation, alpha, *NO_PROLOGUE, flags, None)
    return MAX_POOL(z, kernel, stride, padding, (1, 1), ceil_mode)[0]


torch.library.impl("cnnkern::conv2d_max_pool2d", "CPU", _conv_max_pool)
torch.library.register_fake("cnnkern::conv2d_max_pool2d", _conv_max_pool)


@torch.library.register_fake("cnnkern::channel_shuffle")
def _channel_shuffle_fake(x: Tensor, groups: int) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(suggests_channels_last(x)))


@torch.library.register_fake("cnnkern::max_pool2d")
def _max_pool_fake(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.ops.aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)


@torch.library.register_fake("cnnkern::max_pool2d_backward")
def _max_pool_backward_fake(
    dy: Tensor, indices: Tensor, x_size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool, channels_last: bool,
) -> Tensor:  # fmt: skip
    return torch.empty(x_size, dtype=dy.dtype, device=dy.device, memory_format=memory_format(channels_last))


@torch.library.register_fake("cnnkern::avg_pool2d")
def _avg_pool_fake(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:  # fmt: skip
    return torch.ops.aten.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad)


@torch.library.register_fake("cnnkern::avg_pool2d_backward")
def _avg_pool_backward_fake(
    dy: Tensor, x_size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    ceil_mode: bool, count_include_pad: bool, channels_last: bool,
) -> Tensor:  # fmt: skip
    return torch.empty(x_size, dtype=dy.dtype, device=dy.device, memory_format=memory_format(channels_last))


@torch.library.register_fake("cnnkern::global_avg_pool2d")
def _global_avg_pool_fake(x: Tensor) -> Tensor:
    channels_last = suggests_channels_last(x)
    return torch.empty((*x.shape[:2], 1, 1), dtype=x.dtype, device=x.device, memory_format=memory_format(channels_last))


def _conv_flops(y_size: Sequence[int], w_size: Sequence[int]) -> int:
    return 2 * math.prod(y_size) * math.prod(w_size[1:])


@register_flop_formula(torch.ops.cnnkern.conv2d_fprop)
def _fprop_flops(x_size: Sequence[int], w_size: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return _conv_flops(out_shape, w_size)


@register_flop_formula(torch.ops.cnnkern.conv2d_dgrad)
def _dgrad_flops(dy_size: Sequence[int], w_size: Sequence[int], *_: Any, **__: Any) -> int:
    return _conv_flops(dy_size, w_size)


@register_flop_formula(torch.ops.cnnkern.conv2d_wgrad)
def _wgrad_flops(dy_size: Sequence[int], x_size: Sequence[int], w_size: Sequence[int], *_: Any, **__: Any) -> int:
    return _conv_flops(dy_size, w_size)


@register_flop_formula(torch.ops.cnnkern.conv2d_backward)
def _backward_flops(dy_size: Sequence[int], x_size: Sequence[int], w_size: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * _conv_flops(dy_size, w_size)


@register_flop_formula(torch.ops.cnnkern.conv2d_shuffled)
def _conv2d_shuffled_flops(
    x_size: Sequence[int], w_size: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:  # fmt: skip
    return _conv_flops((out_shape[0], w_size[0], *out_shape[2:]), w_size)


@register_flop_formula(torch.ops.cnnkern.conv2d_max_pool2d)
def _conv_max_pool_flops(
    x_size: Sequence[int], w_size: Sequence[int], scale: Any, shift: Any, geometry: Sequence[int], *_: Any, **__: Any
) -> int:
    return _conv_flops((x_size[0], w_size[0], *_output_pixels(x_size, w_size, geometry)), w_size)


@register_flop_formula(torch.ops.cnnkern.depthwise_separable)
def _depthwise_separable_flops(
    x_size: Sequence[int], dw_size: Sequence[int], dw_scale: Any, dw_shift: Any, dw_activation: str, dw_alpha: float,
    pw_size: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any,
) -> int:  # fmt: skip
    between = (out_shape[0], dw_size[0], *out_shape[2:])
    return _conv_flops(between, dw_size) + _conv_flops(out_shape, pw_size)
