"""ConvProblem: everything a convolution kernel is chosen by, as one plain record.

A problem prints as one token and parses back to itself; ``csrc/conv_problem.h`` states the grammar and reads and
writes the same strings. Fields that have their default value are left out, so the string is canonical::

    fprop-f32-n1c64h56w56-k64r3s3-p1
    wgrad-bf16-n16c32h28w28-k32r5s5-u2-p1x2-g32-x:nchw

The output-size formula of the package lives here (:func:`output_size`) and in no other Python file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DIRECTIONS = ("fprop", "dgrad", "wgrad")
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "elu", "hardswish", "silu", "sigmoid", "tanh")


def output_size(size: int, filter_size: int, pad_before: int, pad_after: int, stride: int, dilation: int) -> int:
    """Number of output pixels along one axis, from pixels of input, filter and padding; symbolic sizes stay symbolic.

    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (arXiv 1603.07285), relationship 14.
    """
    return (size + pad_before + pad_after - dilation * (filter_size - 1) - 1) // stride + 1


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What is done to a convolution's sum before it is written: ``act(scale * conv + shift + residual)``.

    ``alpha`` is the slope below 0 of leaky_relu and the alpha of elu; the other activations leave it 0.
    """

    activation: str = "none"
    scale: bool = False
    shift: bool = False
    residual: bool = False
    alpha: float = 0.0

    def __post_init__(self) -> None:
        _check_activation(self.activation)


@dataclass(frozen=True, slots=True)
class Prologue:
    """What is done to x while it is read, before the padding is put around it: ``act(scale * x + shift)``.

    ``alpha`` as in :class:`Epilogue`.
    """

    activation: str = "none"
    scale: bool = False
    shift: bool = False
    alpha: float = 0.0

    def __post_init__(self) -> None:
        _check_activation(self.activation)


def _check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: it is one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True, slots=True)
class ConvProblem:
    """One convolution in one direction: sizes, geometry, types, layouts, prologue and epilogue.

    Sizes are in pixels and maps; pixel strides are in elements, 0 for dense. Layouts are those of the tensors as they
    are handed over: kernels compute in NHWC, so an operand in another layout is copied first.
    """

    n: int = 1
    c: int = 1
    h: int = 1
    w: int = 1
    k: int = 1
    r: int = 1
    s: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    x_pixel_stride: int = 0
    y_pixel_stride: int = 0
    prologue: Prologue = field(default_factory=Prologue)
    epilogue: Epilogue = field(default_factory=Epilogue)
    direction: str = "fprop"
    dtype: str = "f32"
    x_layout: str = "nhwc"
    y_layout: str = "nhwc"
    w_layout: str = "krsc"

    def __post_init__(self) -> None:
        for name, dense in (("x_pixel_stride", self.c), ("y_pixel_stride", self.k)):
            if getattr(self, name) == dense:
                object.__setattr__(self, name, 0)

    @property
    def why_invalid(self) -> str:
        """Empty, or what makes this no convolution."""
        padded = self.h + self.padding[0] + self.padding[2], self.w + self.padding[1] + self.padding[3]
        extent = self.dilation[0] * (self.r - 1) + 1, self.dilation[1] * (self.s - 1) + 1
        rules = (
            (min(self.h, self.w) < 1, "x has no rows or no columns"),
            (min(self.k, self.r, self.s) < 1, "w has an empty filter or no filters"),
            (min(self.stride) < 1, "the stride is not positive"),
            (min(self.dilation) < 1, "the dilation is not positive"),
            (min(self.padding) < 0, "the padding is negative"),
            (self.groups < 1, "groups is not positive"),
            (self.groups > 0 and bool(self.c % self.groups or self.k % self.groups),
             f"groups {self.groups} does not divide both c {self.c} and k {self.k}"),
            (extent[0] > padded[0] or extent[1] > padded[1],
             f"the filter's extent {extent[0]}x{extent[1]} is larger than the padded input {padded[0]}x{padded[1]}"),
            (0 < self.x_pixel_stride < self.c, "the pixel stride of x is less than c"),
            (0 < self.y_pixel_stride < self.k, "the pixel stride of y is less than k"),
        )  # fmt: skip
        return next((reason for broken, reason in rules if broken), "")

    @property
    def p(self) -> int:
        """Output height."""
        return output_size(self.h, self.r, self.padding[0], self.padding[2], self.stride[0], self.dilation[0])

    @property
    def q(self) -> int:
        """Output width."""
        return output_size(self.w, self.s, self.padding[1], self.padding[3], self.stride[1], self.dilation[1])

    @property
    def x_size(self) -> tuple[int, int, int, int]:
        """Shape of x and dx as torch has it: (N, C, H, W)."""
        return self.n, self.c, self.h, self.w

    @property
    def w_size(self) -> tuple[int, int, int, int]:
        """Shape of w and dw: (K, C / groups, R, S)."""
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def y_size(self) -> tuple[int, int, int, int]:
        """Shape of y and dy: (N, K, P, Q)."""
        return self.n, self.k, self.p, self.q

    @property
    def geometry(self) -> tuple[int, ...]:
        """Stride, padding, dilation and groups as the operators take them (:mod:`cnnkern.ops`)."""
        return *self.stride, *self.padding, *self.dilation, self.groups

    @property
    def gemm_k(self) -> int:
        """Number of products summed into one element of the result."""
        c_per_group, k_per_group = self.c // self.groups, self.k // self.groups
        return {
            "fprop": c_per_group * self.r * self.s,
            "dgrad": k_per_group * self.r * self.s,
            "wgrad": self.n * self.p * self.q,
        }[self.direction]

    @property
    def flops(self) -> int:
        """Multiplications and additions, the padding's included: the same in every direction."""
        return 2 * self.n * self.p * self.q * self.k * self.r * self.s * (self.c // self.groups)

    def __str__(self) -> str:
        tokens = [self.direction, self.dtype]
        tokens.append(f"n{self.n}c{self.c}h{self.h}w{self.w}")
        tokens.append(f"k{self.k}r{self.r}s{self.s}")
        tokens += [write(value) for name, default, write in _OPTIONAL if (value := getattr(self, name)) != default]
        tokens += [name for name in ("scale", "shift", "residual") if getattr(self.epilogue, name)]
        tokens += _activation_token("act", self.epilogue)
        tokens += [f"x{name}" for name in ("scale", "shift") if getattr(self.prologue, name)]
        tokens += _activation_token("xact", self.prologue)
        return "-".join(tokens)

    @classmethod
    def parse(cls, text: str) -> ConvProblem:
        """Reads a problem string; raises ValueError that names the token at fault."""
        values: dict[str, Any] = {}
        halves: dict[str, dict[str, Any]] = {"prologue": {}, "epilogue": {}}
        tokens = re.split("-(?=[a-z])", text)  # before a digit it is a minus: act:elu:1e-05
        for position, token in enumerate(tokens):
            allowed = _REQUIRED[position : position + 1] or _TOKENS
            for part, pattern, read in allowed:
                if match := pattern.fullmatch(token):
                    known, new = halves.get(part, values), read(match)
                    break
            else:
                raise ValueError(f"problem {text!r}: cannot read {token!r}")
            if known.keys() & new.keys():
                raise ValueError(f"problem {text!r}: {token!r} is given twice")
            known.update(new)
        if len(tokens) < len(_REQUIRED):
            raise ValueError(f"problem {text!r}: it starts with direction-dtype-n#c#h#w#-k#r#s#")
        problem = cls(prologue=Prologue(**halves["prologue"]), epilogue=Epilogue(**halves["epilogue"]), **values)
        if reason := problem.why_invalid:
            raise ValueError(f"problem {text!r}: {reason}")
        return problem

    @classmethod
    def of(
        cls,
        x: Tensor,
        w: Tensor,
        geometry: tuple[int, ...] = (1, 1, 0, 0, 0, 0, 1, 1, 1),
        direction: str = "fprop",
    ) -> ConvProblem:
        """The problem that a call on x (N, C, H, W) and w (K, C / groups, R, S) poses; geometry as the property is."""
        x_nhwc, w_nhwc = suggests_channels_last(x), suggests_channels_last(w)
        n, c, h, width = x.shape
        k, _, r, s = w.shape
        stride_h, stride_w, top, left, bottom, right, dilation_h, dilation_w, groups = geometry
        layout = "nhwc" if x_nhwc or w_nhwc else "nchw"
        return cls(
            n, c, h, width, k, r, s, (stride_h, stride_w), (top, left, bottom, right),
            (dilation_h, dilation_w), groups,
            direction=direction, dtype=DTYPE_NAMES[x.dtype],
            x_layout="nhwc" if x_nhwc else "nchw", y_layout=layout, w_layout="krsc" if w_nhwc else "kcrs",
        )  # fmt: skip


def suggests_channels_last(tensor: Tensor) -> bool:
    """torch's own rule for whether a 4-D tensor's strides ask for a channels_last result."""
    return torch._prims_common.suggest_memory_format(tensor) is torch.channels_last


def _shortest_float(value: float) -> str:
    """The shortest decimal that reads back as the same 32-bit float: alpha is one in C++."""
    single = struct.pack("f", value)
    (value,) = struct.unpack("f", single)
    return next(text for digits in range(1, 10) if struct.pack("f", float(text := f"{value:.{digits}g}")) == single)


def _activation_token(name: str, half: Prologue | Epilogue) -> list[str]:
    """``act:elu:0.5``, or nothing where there is no activation."""
    if half.activation == "none":
        return []
    return [f"{name}:{half.activation}" + (f":{_shortest_float(half.alpha)}" if half.alpha else "")]


def _numbers(letter: str, value: tuple[int, ...]) -> str:
    """(1, 1, 1, 1) as p1, (1, 2, 1, 2) as p1x2, (1, 2, 3, 4) as p1x2x3x4."""
    while len(value) > 1 and value[: len(value) // 2] == value[len(value) // 2 :]:
        value = value[: len(value) // 2]
    return letter + "x".join(map(str, value))


def _repeat(text: str, count: int) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split("x"))
    return numbers * (count // len(numbers))


_Read = Callable[["re.Match[str]"], dict[str, Any]]
_OPTIONAL: tuple[tuple[str, Any, Callable[[Any], str]], ...] = (
    ("stride", (1, 1), lambda value: _numbers("u", value)),
    ("padding", (0, 0, 0, 0), lambda value: _numbers("p", value)),
    ("dilation", (1, 1), lambda value: _numbers("l", value)),
    ("groups", 1, lambda value: f"g{value}"),
    ("x_layout", "nhwc", lambda value: f"x:{value}"),
    ("w_layout", "krsc", lambda value: f"w:{value}"),
    ("y_layout", "nhwc", lambda value: f"y:{value}"),
    ("x_pixel_stride", 0, lambda value: f"xs{value}"),
    ("y_pixel_stride", 0, lambda value: f"ys{value}"),
)


def _groupdict_of_ints(match: re.Match[str]) -> dict[str, Any]:
    return {name: int(value) for name, value in match.groupdict().items()}


def _activation(match: re.Match[str]) -> dict[str, Any]:
    return {"activation": match["name"], "alpha": float(match["alpha"] or 0)}


def _flag(match: re.Match[str]) -> dict[str, Any]:
    return {match[1]: True}


# Every token: the part of the problem that it belongs to, how it is written, how it is read.
_REQUIRED: tuple[tuple[str, re.Pattern[str], _Read], ...] = tuple(
    ("", re.compile(pattern), read)
    for pattern, read in (
        (f"(?P<direction>{'|'.join(DIRECTIONS)})", lambda match: match.groupdict()),
        (f"(?P<dtype>{'|'.join(DTYPES)})", lambda match: match.groupdict()),
        (r"n(?P<n>\d+)c(?P<c>\d+)h(?P<h>\d+)w(?P<w>\d+)", _groupdict_of_ints),
        (r"k(?P<k>\d+)r(?P<r>\d+)s(?P<s>\d+)", _groupdict_of_ints),
    )
)
_ACT = rf"act:(?P<name>{'|'.join(ACTIVATIONS)})(?::(?P<alpha>[-+.e\d]+))?"
_TOKENS: tuple[tuple[str, re.Pattern[str], _Read], ...] = tuple(
    (part, re.compile(pattern), read)
    for part, pattern, read in (
        ("", r"u(\d+(?:x\d+)?)", lambda match: {"stride": _repeat(match[1], 2)}),
        ("", r"p(\d+(?:x\d+|(?:x\d+){3})?)", lambda match: {"padding": _repeat(match[1], 4)}),
        ("", r"l(\d+(?:x\d+)?)", lambda match: {"dilation": _repeat(match[1], 2)}),
        ("", r"g(?P<groups>\d+)", _groupdict_of_ints),
        ("", r"x:(?P<x_layout>nhwc|nchw)", lambda match: match.groupdict()),
        ("", r"w:(?P<w_layout>krsc|kcrs)", lambda match: match.groupdict()),
        ("", r"y:(?P<y_layout>nhwc|nchw)", lambda match: match.groupdict()),
        ("", r"xs(?P<x_pixel_stride>\d+)", _groupdict_of_ints),
        ("", r"ys(?P<y_pixel_stride>\d+)", _groupdict_of_ints),
        ("epilogue", "(scale|shift|residual)", _flag),
        ("epilogue", _ACT, _activation),
        ("prologue", "x(scale|shift)", _flag),
        ("prologue", f"x{_ACT}", _activation),
    )
)
