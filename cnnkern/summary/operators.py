"""What one call of a torch operator is as a layer: its kind, its window, its multiply-adds, and the field behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cnnkern.summary.receptive_field import Field, Window, widest

aten, own = torch.ops.aten, torch.ops.cnnkern

_FLOP_FORMULAS = FlopCounterMode(display=False).flop_registry

# They write no values of their own: another layout or dtype of what is there, or a border around it.
_COPIES = {aten._unsafe_view, aten.clone, aten._to_copy}
_PADS = {aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d}
_LINEAR = {aten.addmm, aten.mm}
_REDUCTIONS = {aten.mean, aten.amax}  # over all pixels they are global pools


@dataclass(frozen=True)
class Call:
    """One call, whose operand ``x`` and result ``y`` stem from ``batch`` images."""

    overload: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    x: Tensor
    y: Tensor
    batch: int

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """All arguments, and the defaults of those not given, by their names in the operator's schema."""
        schema = self.overload._schema.arguments
        defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        given = dict(zip((argument.name for argument in schema), self.args, strict=False))
        return {**defaults, **given, **self.kwargs}

    @property
    def operator(self) -> Any:
        """What all overloads share."""
        return self.overload.overloadpacket

    @property
    def name(self) -> str:
        """The operator's, whether it works in place or not."""
        return self.operator.__name__.strip("_")

    @property
    def is_images(self) -> bool:
        """Whether x is (N, C, H, W)."""
        return self.x.dim() == 4

    @property
    def values(self) -> int:
        """Elements of y, for one image."""
        return self.y.numel() // self.batch

    @property
    def is_flatten(self) -> bool:
        """Whether each image's maps of more than one pixel become one row."""
        values = self.x.numel() // self.batch
        return self.is_images and tuple(self.y.shape) == (self.batch, values) and values > self.x.shape[1]

    @property
    def rearranges(self) -> bool:
        """Whether y's values are x's."""
        return self.overload.is_view or self.operator in _COPIES | _PADS

    def maps_of(self, tensor: Tensor) -> tuple[int, tuple[int, ...]]:
        """How many maps of how many pixels; of what are no images, the values of the last axis."""
        c, *pixels = tensor.shape[1:] if tensor.dim() == 4 else tensor.shape[-1:]
        return c, tuple(pixels)

    def axis(self, name: str) -> tuple[int, ...]:
        """An argument with one number for each axis of pixels, which may be one number for both."""
        value = self.arguments[name]
        numbers = tuple(value) if isinstance(value, Sequence) else (value,)
        return numbers * 2 if len(numbers) == 1 else numbers


def _convolution(call: Call) -> Window | None:
    if call.arguments["transposed"]:
        return None
    kernel = tuple(call.arguments["weight"].shape[2:])
    return Window(kernel, call.axis("stride"), call.axis("padding"), call.axis("dilation"), call.arguments["groups"])


def _pool(call: Call) -> Window:
    kernel = call.axis("kernel_size" if "kernel_size" in call.arguments else "kernel")
    dilation = call.axis("dilation") if "dilation" in call.arguments else (1, 1)
    return Window(kernel, call.axis("stride") or kernel, call.axis("padding"), dilation)


def _adaptive_pool(call: Call) -> Window | None:
    """None where the windows are of different sizes."""
    sizes = tuple(zip(call.x.shape[2:], call.y.shape[2:], strict=True))
    kernel = tuple(size // out for size, out in sizes)
    uniform = all(size % out == 0 for size, out in sizes)
    return Window(kernel, kernel, (0, 0), (1, 1)) if uniform else None


def _global_pool(call: Call) -> Window:
    return Window(tuple(call.x.shape[2:]), (1, 1), (0, 0), (1, 1))


_POOLS: dict[Any, Callable[[Call], Window | None]] = {
    aten.max_pool2d_with_indices: _pool,
    aten.avg_pool2d: _pool,
    own.max_pool2d: _pool,
    own.avg_pool2d: _pool,
    aten._adaptive_avg_pool2d: _adaptive_pool,
    aten.adaptive_max_pool2d: _adaptive_pool,
    own.global_avg_pool2d: _global_pool,
}


@dataclass(frozen=True)
class Reading:
    """A layer of a table. ``kind`` is conv, pool, fc or flatten, or empty for what changes values in place."""

    kind: str = ""
    window: Window | None = None
    flops: int = 0


def read(call: Call) -> Reading:
    """What the call is."""
    if call.operator == aten.convolution:
        return Reading("conv", _convolution(call), _flops(call))
    if call.operator in _LINEAR:
        return Reading("fc", None, _flops(call))
    if call.operator in _FLOP_FORMULAS:
        return Reading(call.name, None, _flops(call))
    if call.is_images and (call.operator in _POOLS or _is_over_all_pixels(call)):
        window = _POOLS.get(call.operator, _global_pool)(call)
        return Reading() if window and _is_identity(window) else Reading("pool", window, _additions(call, window))
    return Reading("flatten") if call.is_flatten else Reading()


def _is_over_all_pixels(call: Call) -> bool:
    if call.operator not in _REDUCTIONS or not call.arguments.get("dim"):
        return False
    return {axis % call.x.dim() for axis in call.arguments["dim"]} == set(range(2, call.x.dim()))


def _is_identity(window: Window) -> bool:
    return set(window.kernel) == set(window.stride) == {1}


def _flops(call: Call) -> int:
    """torch's formula, which has two for a multiply-add."""
    return _FLOP_FORMULAS[call.operator](*call.args, **call.kwargs, out_val=call.y) // 2 // call.batch


def _additions(call: Call, window: Window | None) -> int:
    """One for each value that a window of a pool holds, padding included."""
    if window:
        return call.values * math.prod(window.kernel)
    sizes = zip(call.x.shape[2:], call.y.shape[2:], strict=True)
    return call.y.shape[1] * math.prod(_covered(size, out) for size, out in sizes)


def _covered(size: int, out: int) -> int:
    """Pixels in all windows of an adaptive pool along an axis, floor(i size / out) to ceil((i + 1) size / out)."""
    return sum(-(-(i + 1) * size // out) - i * size // out for i in range(out))


def field_behind(call: Call, reading: Reading, fields: Sequence[tuple[Tensor, Field | None]]) -> Field | None:
    """The receptive field of y, from those of the operands that stem from the image; None where there is none.

    A pixel that is spread over maps of more pixels (the gate of squeeze and excitation) sees the whole image: it is not
    counted. A fully connected layer has no pixels, so none behind it has a field.
    """
    before = fields[0][1]
    if reading.kind in ("conv", "pool"):
        return before.through(reading.window) if before and reading.window else None
    if reading.kind == "fc":
        return None if call.values == call.y.shape[-1] else before  # one row an image, or one a pixel
    if call.operator in _PADS or (len(fields) == 1 and call.x.numel() == call.y.numel()):
        return before
    if call.operator == aten.slice and call.is_images and before and call.arguments["dim"] % call.x.dim() >= 2:
        return before.strided(call.arguments["dim"] % call.x.dim() - 2, call.arguments["step"])
    return widest([field for tensor, field in fields if tensor.shape[-2:] == call.y.shape[-2:]])
