"""To test kernels with: operands for a problem, the float64 oracle, tolerances, problems to try.

An error is the largest deviation from the oracle, relative to the root mean square of the oracle's result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnkern import composed
from cnnkern.backends.base import TRANSFORMED_FAMILIES, KernelName
from cnnkern.problem import DIRECTIONS, DTYPES, ConvProblem

# Rounding errors of a sum of gemm_k products grow as its square root; the constant covers the largest of many sums.
_SUM_FACTOR = 4.0
# A result of a few times the root mean square is rounded once to its dtype.
_ROUND_FACTOR = 4.0
# How much more than direct convolution a transformed one may be off: Winograd's error is up to four times torch's.
_TRANSFORMED_FACTOR = 2.0


@dataclass(frozen=True)
class Operands:
    """Tensors of a problem in its layouts: x (N, C, H, W), w (K, C / groups, R, S), dy (N, K, P, Q).

    And its epilogue's: scale and shift (K,), residual (N, K, P, Q); and its prologue's: x_scale and x_shift (C,).
    """

    x: Tensor
    w: Tensor
    dy: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    x_scale: Tensor | None = None
    x_shift: Tensor | None = None


def operands(problem: ConvProblem, fill: str = "normal", seed: int = 0, offset: int = 0) -> Operands:
    """Random operands for a problem.

    Args:
        problem: its layouts and pixel strides are the tensors'.
        fill: "normal" (standard normal, filters scaled to a result of variance 1) or "integers" (-2 to 2: sums are
            exact in every dtype, so that a right result is equal to the oracle's).
        seed: the same seed gives the same numbers.
        offset: elements before each tensor in its storage, to try alignments.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[problem.dtype]

    def tensor(size: Sequence[int], nhwc: bool, pixel_stride: int = 0, spread: float = 1.0) -> Tensor:
        if fill == "integers":
            values = torch.randint(-2, 3, tuple(size), generator=generator).to(dtype)
        else:
            values = (torch.randn(tuple(size), generator=generator, dtype=torch.float64) * spread).to(dtype)
        return _laid_out(values, nhwc, pixel_stride, offset)

    def per_map(maps: int) -> Tensor:
        return tensor((1, maps, 1, 1), False).flatten()

    spread = 1 / math.sqrt(max(1, problem.c // problem.groups * problem.r * problem.s))
    return Operands(
        x=tensor(problem.x_size, problem.x_layout == "nhwc", problem.x_pixel_stride),
        w=tensor(problem.w_size, problem.w_layout == "krsc", spread=spread),
        dy=tensor(problem.y_size, problem.y_layout == "nhwc", problem.y_pixel_stride),
        scale=per_map(problem.k) if problem.epilogue.scale else None,
        shift=per_map(problem.k) if problem.epilogue.shift else None,
        residual=tensor(problem.y_size, problem.y_layout == "nhwc") if problem.epilogue.residual else None,
        x_scale=per_map(problem.c) if problem.prologue.scale else None,
        x_shift=per_map(problem.c) if problem.prologue.shift else None,
    )


def _laid_out(values: Tensor, nhwc: bool, pixel_stride: int, offset: int) -> Tensor:
    """A copy of ``values`` (N, C, H, W) whose storage is as asked; what is not the tensor in it is NaN."""
    n, c, h, w = values.shape
    if not nhwc:
        strides = (c * h * w, h * w, w, 1)
    else:
        pixel = pixel_stride or c
        strides = (h * w * pixel, 1, w * pixel, pixel)
    storage = values.new_full((offset + n * h * w * max(c, pixel_stride),), math.nan)
    return storage.as_strided(values.shape, strides, offset).copy_(values)


def run(
    problem: ConvProblem, operands: Operands, kernel: str | None = None, flags: int = 0,
    operators: Any = torch.ops.cnnkern,
) -> Tensor:  # fmt: skip
    """The problem's result (y, dx or dw) by the package's operator, in the problem's layout.

    ``operators`` has the functions: torch's, or the module :mod:`cnnkern.gpu` to have Triton's interpreter run them.
    """
    o, geometry = operands, problem.geometry
    if problem.direction == "dgrad":
        nhwc = problem.x_layout == "nhwc"
        return operators.conv2d_dgrad(o.dy, o.w, problem.x_size, geometry, nhwc, flags, kernel)
    rest = (o.x_scale, o.x_shift, problem.prologue.activation, problem.prologue.alpha, flags, kernel)
    if problem.direction == "wgrad":
        nhwc = problem.w_layout == "krsc"
        return operators.conv2d_wgrad(o.dy, o.x, problem.w_size, geometry, False, nhwc, *rest)[0]
    epilogue = (problem.epilogue.activation, problem.epilogue.alpha)
    return operators.conv2d_fprop(o.x, o.w, o.scale, o.shift, o.residual, geometry, *epilogue, *rest)


def vendor(problem: ConvProblem, operands: Operands) -> Tensor:
    """The problem's result by torch, in the operands' dtype."""
    return _by_torch(problem, operands)


def oracle(problem: ConvProblem, operands: Operands) -> Tensor:
    """The problem's result by torch in float64, contiguous."""
    wide = {name: value.double().contiguous() for name, value in vars(operands).items() if value is not None}
    return _by_torch(problem, replace(operands, **wide))


def _by_torch(problem: ConvProblem, o: Operands) -> Tensor:
    top, left, bottom, right = problem.padding
    # ATen pads evenly: what one side has more is padded beforehand.
    even = (min(top, bottom), min(left, right))
    more = (left - even[1], right - even[1], top - even[0], bottom - even[0])
    geometry = (problem.stride, even, problem.dilation, False, (0, 0), problem.groups)
    x = composed.prologue(o.x, o.x_scale, o.x_shift, problem.prologue.activation, problem.prologue.alpha)
    x = F.pad(x, more) if any(more) else x
    if problem.direction == "fprop":
        y = torch.convolution(x, o.w, None, *geometry)
        epilogue = problem.epilogue
        return composed.epilogue(y, o.scale, o.shift, o.residual, epilogue.activation, epilogue.alpha)
    mask = (problem.direction == "dgrad", problem.direction == "wgrad", False)
    dx, dw, _ = torch.ops.aten.convolution_backward(o.dy, x, o.w, None, *geometry, mask)
    return F.pad(dx, [-side for side in more]) if dx is not None and any(more) else dw if dx is None else dx


def error(result: Tensor, truth: Tensor) -> float:
    """The largest deviation of ``result`` from ``truth`` (float64), relative to the root mean square of ``truth``."""
    if truth.numel() == 0:
        return 0.0
    largest = (result.double() - truth).abs().max()
    return (largest / truth.square().mean().sqrt().clamp_min(1e-30)).item()


def is_transformed(kernel: str | None) -> bool:
    """Whether a kernel transforms its operands, so that it is not exact on integers."""
    return kernel is not None and KernelName.parse(kernel).family in TRANSFORMED_FAMILIES


def tolerance(problem: ConvProblem, torch_error: float = 0.0, transformed: bool = False) -> float:
    """The largest error that a kernel may have, one with direct convolution's numerics or a ``transformed`` one.

    It is the larger of twice torch's own error and of what rounding explains: that of a sum of gemm_k products in the
    accumulator's precision, and that of the result in its own; twice as much for a transformed kernel.
    """
    accumulator = torch.float64 if problem.dtype == "f64" else torch.float32
    summed = _SUM_FACTOR * torch.finfo(accumulator).eps * math.sqrt(max(1, problem.gemm_k))
    rounded = _ROUND_FACTOR * torch.finfo(DTYPES[problem.dtype]).eps
    allowed = max(2 * torch_error, summed + rounded)
    return _TRANSFORMED_FACTOR * allowed if transformed else allowed


def check(
    problem: ConvProblem, kernel: str | None = None, fill: str = "normal", seed: int = 0,
    operators: Any = torch.ops.cnnkern, **how: Any,
) -> None:  # fmt: skip
    """Raises AssertionError, with the problem and the kernel, if a result is wrong.

    A result is right if it is equal to the oracle's rounded to the dtype (``fill="integers"``), or within
    :func:`tolerance` of it (``fill="normal"``, or a transformed kernel). ``how`` goes to :func:`operands`.
    """
    given = operands(problem, fill, seed, **how)
    result, truth = run(problem, given, kernel, operators=operators), oracle(problem, given)
    what = f"{problem} by {kernel or 'the kernel chosen'}"
    if result.shape != truth.shape:
        raise AssertionError(f"{what}: shape {tuple(result.shape)}, not {tuple(truth.shape)}")
    transformed = is_transformed(kernel)
    if fill == "integers" and not transformed:
        wrong = (result != truth.to(result.dtype)).sum().item()
        if wrong:
            raise AssertionError(f"{what}: {wrong} of {truth.numel()} elements differ from the exact result")
        return
    found = error(result, truth)
    allowed = tolerance(problem, error(vendor(problem, given), truth), transformed)
    if not found <= allowed:  # a NaN is wrong too
        raise AssertionError(f"{what}: error {found:.2e}, allowed {allowed:.2e}")


# What each line is there for: every special case in a kernel is the general case of some line.
_SHAPES = (
    "n1c1h1w1-k1r1s1",  # the least there is
    "n2c16h7w7-k32r3s3-p1",  # the everyday 3x3, a tile's size a multiple of every vector's
    "n1c3h15w17-k8r7s7-u2-p3",  # a stem: 3 maps, a large filter, unequal sides
    "n2c17h5w9-k19r1s1",  # pointwise with a tail in every dimension
    "n3c8h9w8-k24r1s1-u2",  # pointwise with a stride
    "n1c64h14w14-k70r3s3-p1",  # more filters than a tile, and a tail of filters
    "n2c5h11w6-k7r2s4-p0x1x1x2",  # even filters, uneven padding as of "same"
    "n1c6h13w13-k4r3s3-u2x3-p2x1-l2x3",  # unequal strides, padding and dilation
    "n1c4h3w3-k4r3s3-p3",  # pixels of output that see padding only
    "n2c12h8w8-k12r3s3-p1-g12",  # depthwise with a tail of maps
    "n1c32h9w9-k32r5s5-u2-p2-g32",  # depthwise, strided
    "n1c20h10w10-k20r7s7-p3-g20",  # depthwise 7x7
    "n2c8h6w6-k24r3s3-p1-g8",  # depthwise with a multiplier
    "n1c32h7w7-k64r3s3-p1-g4",  # grouped, 8 maps in and 16 out
    "n2c12h5w5-k8r3s3-u2-p1-g4",  # grouped, few and odd maps
    "n1c16h6w6-k16r3s3-p1-x:nchw-w:kcrs-y:nchw",  # NCHW throughout
    "n2c10h6w7-k12r3s3-p1-x:nchw",  # NCHW in, NHWC out
    "n1c9h6w6-k11r3s3-p1-xs16-ys20",  # x and y as slices of wider buffers
)


def grid(directions: Sequence[str] = DIRECTIONS, dtypes: Sequence[str] = tuple(DTYPES)) -> Iterator[ConvProblem]:
    """Small problems that cover the special cases of convolution, each in the directions and dtypes asked for."""
    for direction, dtype, shape in product(directions, dtypes, _SHAPES):
        yield ConvProblem.parse(f"{direction}-{dtype}-{shape}")


def random_problems(count: int, seed: int = 0, **fixed: Any) -> Iterator[ConvProblem]:
    """``count`` small valid problems of random sizes, geometry, layout and dtype; ``fixed`` fields are given."""
    source = random.Random(seed)
    while count:
        groups = source.choice((1, 1, 1, 2, 3, 8))
        problem = ConvProblem(
            n=source.randint(1, 3),
            c=groups * source.randint(1, 12),
            h=source.randint(1, 14),
            w=source.randint(1, 14),
            k=groups * source.randint(1, 12),
            r=source.randint(1, 5),
            s=source.randint(1, 5),
            stride=(source.randint(1, 3), source.randint(1, 3)),
            padding=(source.randint(0, 3), source.randint(0, 3), source.randint(0, 3), source.randint(0, 3)),
            dilation=(source.randint(1, 2), source.randint(1, 2)),
            groups=groups,
            direction=source.choice(DIRECTIONS),
            dtype=source.choice(tuple(DTYPES)),
            x_layout=source.choice(("nhwc", "nchw")),
            y_layout=source.choice(("nhwc", "nchw")),
            w_layout=source.choice(("krsc", "kcrs")),
        )
        problem = replace(problem, **fixed)
        if not problem.why_invalid:
            count -= 1
            yield problem
