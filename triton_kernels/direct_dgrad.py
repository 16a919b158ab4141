"""The input gradient of a convolution of few input maps, such as the 3-channel stem of most networks.

dgrad   dx[n,h,w,c] = sum over r,s,k of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, k] * w[k,r,s,c]

x and y NHWC with a pixel stride, w KRSC; stride u, dilation l; no groups.

Pixel by pixel, as the implicit GEMM goes, 3 maps would fill 3 of a tensor core's 16 columns, and each dy would be
loaded R*S/(u*u) times. Here the columns of a product are the C maps of a patch of pixels, whose sides are multiples of
the stride, and its sum goes over the dy that reach any pixel of the patch. For dy pixel t, counted from the patch's
first, and pixel a of the patch the tap is (a + pad - t*u)/l where that is whole and in the filter; elsewhere the weight
is 0. So the weights are the same for all patches, and a first launch lays them out as [t][k][pixel of the patch, c].
A dy that is not finite would show in its whole patch: a tile with such a sum is computed again, dy pixel by dy pixel.

Bound: bytes = dx + dy. 7x7/2, 3 -> 64 maps on 224x224 pixels, N = 256, bf16: 488 MB take 0.11 ms at 4.3 TB/s. In
patches of 4x4 pixels each dy is loaded 5*5/(2*2) = 6.3 times, 2.6 GB, and 64 columns are 164 GFLOP, 0.2 ms at 790
TFLOP/s dense. The implicit GEMM would load 20 GB and multiply 320 GFLOP. fp32 FMA (67 TFLOP/s): 2.4 ms for 4.8.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.configs import why_not_fit
from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Chip, Config, Launch, TritonKernel, cdiv

# BLOCK_M patches x BLOCK_N columns x BLOCK_K maps of y
CONFIGS = (
    Config((128, 64, 64), 8, 3),
    Config((128, 64, 32), 8, 3),
    Config((128, 32, 32), 4, 3),
    Config((64, 64, 32), 4, 3),
    Config((64, 32, 32), 4, 3),
    Config((32, 32, 32), 2, 3),
    Config((16, 16, 16), 1, 2),
)

_MAPS = 4  # of x, at most: more fill a quarter of the implicit GEMM's 16 columns
_BLOCK = 256  # weights that a program lays out
_LOAD = 144  # products that an H200 computes while L2 gives it one element: 395e12 / s against 2.75e12 / s


@triton.jit
def tap_of(
    t, pixel, taps_h, taps_w, first_h, first_w,  # t: dy pixel, of those that reach a patch, the first of which is first
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, REACH_W: tl.constexpr, PATCH_W: tl.constexpr,
):  # fmt: skip
    """The tap (r, s) by which dy pixel t reaches a patch's pixels, and whether there is one."""
    tap_h = pixel // PATCH_W + pad_top - (first_h + t // REACH_W) * stride_h
    tap_w = pixel % PATCH_W + pad_left - (first_w + t % REACH_W) * stride_w
    r, s = tap_h // dilation_h, tap_w // dilation_w
    reached = (tap_h >= 0) & (tap_h % dilation_h == 0) & (r < taps_h)
    return r, s, reached & (tap_w >= 0) & (tap_w % dilation_w == 0) & (s < taps_w)


@triton.jit
def arrange_kernel(
    w, out, k, c, w_k, w_c, w_row, w_col,
    taps_h, taps_w, first_h, first_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    REACH_W: tl.constexpr, PATCH_W: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [dy pixels][k][WIDTH]: the weights of a dy in the columns of a patch; grid (blocks, dy pixels)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    map_, column = i // WIDTH, i % WIDTH
    r, s, reached = tap_of(
        tl.program_id(1), column // c, taps_h, taps_w, first_h, first_w,
        stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, REACH_W, PATCH_W,
    )  # fmt: skip
    mask = (map_ < k) & (column < COLUMNS) & reached
    value = tl.load(w + map_ * w_k + column % c * w_c + r * w_row + s * w_col, mask=mask, other=0.0)
    tl.store(out + tl.program_id(1) * k * WIDTH + i, value, mask=map_ < k)


@triton.jit
def patch_sum(
    dy, w, image_offset, p0, q0, there, column, c, k, out_h, out_w, dy_row, dy_pixel,
    taps_h, taps_w, first_h, first_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr, PATCH_W: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """The sums [patches, columns]; APART, no dy pixel has a part in those that it does not reach, not even 0 times."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    blocks = tl.cdiv(k, BLOCK_K)
    for step in range(REACH_H * REACH_W * blocks):
        t = step // blocks
        map_ = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        p, q = p0 + t // REACH_W, q0 + t % REACH_W
        inside = there & (p >= 0) & (p < out_h) & (q >= 0) & (q < out_w)
        offsets = image_offset + p.to(tl.int64) * dy_row + q.to(tl.int64) * dy_pixel
        mask = inside[:, None] & (map_ < k)[None, :]
        left = tl.load(dy + offsets[:, None] + map_[None, :], mask=mask, other=0.0)
        w_mask = (map_ < k)[:, None] & (column < WIDTH)[None, :]
        right = tl.load((w + column)[None, :] + ((t * k + map_) * WIDTH)[:, None], mask=w_mask, other=0.0)
        if APART:
            _, _, reached = tap_of(
                t, column // c, taps_h, taps_w, first_h, first_w,
                stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, REACH_W, PATCH_W,
            )  # fmt: skip
            total += tl.where(reached[None, :], tl.dot(left, right, input_precision=PRECISION), 0.0)
        else:
            total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def dgrad_kernel(
    dy, w, dx,
    points, rows, cols, out_h, out_w, in_h, in_w, c, k,  # patches: all, of an image; images of dy and of dx; maps
    dy_image, dy_row, dy_pixel, x_image, x_row, x_pixel, step_h, step_w,  # steps: dy pixels from patch to patch
    taps_h, taps_w, first_h, first_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of patches x columns; grid (tiles,). w is what arrange_kernel writes."""
    tiles_n = tl.cdiv(COLUMNS, BLOCK_N)
    point = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image = (point // (rows * cols)).to(tl.int64)
    row, col = point // cols % rows, point % cols
    p0, q0 = row * step_h + first_h, col * step_w + first_w

    total = patch_sum(
        dy, w, image * dy_image, p0, q0, point < points, column, c, k, out_h, out_w, dy_row, dy_pixel,
        taps_h, taps_w, first_h, first_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
        REACH_H, REACH_W, PATCH_W, WIDTH, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, False,
    )  # fmt: skip
    finite = tl.reshape((tl.abs(total) < float("inf")).to(tl.int32), (BLOCK_M * BLOCK_N,))
    if tl.min(finite, axis=0) == 0:  # of one axis, as in grouped.py
        total = patch_sum(
            dy, w, image * dy_image, p0, q0, point < points, column, c, k, out_h, out_w, dy_row, dy_pixel,
            taps_h, taps_w, first_h, first_w, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
            REACH_H, REACH_W, PATCH_W, WIDTH, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, True,
        )  # fmt: skip

    h0, w0 = row * PATCH_H, col * PATCH_W
    h, w_ = column // c // PATCH_W, column // c % PATCH_W
    mask = (point < points)[:, None] & (column < COLUMNS)[None, :]
    mask &= (h[None, :] < (in_h - h0)[:, None]) & (w_[None, :] < (in_w - w0)[:, None])
    corner = image * x_image + h0.to(tl.int64) * x_row + w0.to(tl.int64) * x_pixel
    at = corner[:, None] + (h.to(tl.int64) * x_row + w_ * x_pixel + column % c)[None, :]
    tl.store(dx + at, total.to(dx.dtype.element_ty), mask=mask)


class Patch(NamedTuple):
    """Pixels of dx whose maps are a product's columns, and the dy that reach them; all (vertical, horizontal)."""

    size: tuple[int, int]
    first: tuple[int, int]
    """dy pixel that is the first to reach the image's first patch."""
    reach: tuple[int, int]

    @classmethod
    def of(cls, p: ConvProblem, columns: int) -> Patch:
        """The largest of at most so many columns, at least one stride a side."""
        scale = max(math.isqrt(columns // (p.stride[0] * p.stride[1] * p.c)), 1)
        axes = [
            _axis(scale * stride, *rest)
            for stride, *rest in zip(p.stride, p.stride, (p.r, p.s), p.padding[:2], p.dilation, strict=True)
        ]
        return cls(*zip(*axes, strict=True))

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.size[0] * self.size[1]


def _axis(size: int, stride: int, taps: int, pad: int, dilation: int) -> tuple[int, int, int]:
    """Size, first and reach along one axis."""
    first = cdiv(pad - (taps - 1) * dilation, stride)
    return size, first, (size - 1 + pad) // stride - first + 1


def _launches(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    block_m, block_n, block_k = config.tile
    patch = Patch.of(p, block_n)
    columns = patch.pixels * p.c
    width = 16 * cdiv(columns, 16)
    arranged = torch.empty(math.prod(patch.reach) * p.k * width, dtype=o.w.dtype, device=o.w.device)
    w_k, w_c, w_row, w_col = o.w.stride()
    shared = {
        "c": p.c, "k": p.k, "taps_h": p.r, "taps_w": p.s, "first_h": patch.first[0], "first_w": patch.first[1],
        "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": p.padding[0], "pad_left": p.padding[1],
        "dilation_h": p.dilation[0], "dilation_w": p.dilation[1],
        "REACH_W": patch.reach[1], "PATCH_W": patch.size[1], "COLUMNS": columns, "WIDTH": width,
    }  # fmt: skip
    laid_out = shared | {
        "w": o.w, "out": arranged, "w_k": w_k, "w_c": w_c, "w_row": w_row, "w_col": w_col, "BLOCK": _BLOCK,
    }  # fmt: skip
    rows, cols = cdiv(p.h, patch.size[0]), cdiv(p.w, patch.size[1])
    dy_image, dy_row, dy_pixel = image_strides(o.y)
    x_image, x_row, x_pixel = image_strides(o.x)
    multiplied = shared | {
        "dy": o.y, "w": arranged, "dx": o.x, "points": p.n * rows * cols, "rows": rows, "cols": cols,
        "out_h": p.p, "out_w": p.q, "in_h": p.h, "in_w": p.w,
        "dy_image": dy_image, "dy_row": dy_row, "dy_pixel": dy_pixel,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        "step_h": patch.size[0] // p.stride[0], "step_w": patch.size[1] // p.stride[1],
        "REACH_H": patch.reach[0], "PATCH_H": patch.size[0], "PRECISION": o.precision,
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
    }  # fmt: skip
    tiles = cdiv(p.n * rows * cols, block_m) * cdiv(columns, block_n)
    return [
        Launch(arrange_kernel, (cdiv(p.k * width, _BLOCK), math.prod(patch.reach)), laid_out, Config((_BLOCK,))),
        Launch(dgrad_kernel, (tiles,), multiplied, config),
    ]


def _pick(p: ConvProblem, chip: Chip) -> Config:
    """The config with the least time for the products of a patch and the loads of their dy, in whole tiles."""

    def time(config: Config) -> float:
        block_m, block_n, block_k = config.tile
        patch = Patch.of(p, block_n)
        patches = p.n * cdiv(p.h, patch.size[0]) * cdiv(p.w, patch.size[1])
        columns = block_n * cdiv(patch.pixels * p.c, block_n)
        rounds = cdiv(cdiv(patches, block_m) * columns // block_n, chip.multiprocessors)
        step = block_k * (block_m * block_n + _LOAD * (block_m + block_n))
        return rounds * math.prod(patch.reach) * cdiv(p.k, block_k) * step

    return min((config for config in CONFIGS if not why_not_fit(config, p.dtype, chip, p.k)), key=time)


def _why_not(p: ConvProblem) -> str:
    if p.groups > 1:
        return "it has groups"
    if not 1 <= p.c <= _MAPS:
        return f"it has {p.c} input maps, and this family is for 1 to {_MAPS}"
    return ""


def _rather_not(p: ConvProblem) -> str:
    return "a 1x1 filter reaches one pixel" if p.r * p.s == 1 else ""


KERNELS = (TritonKernel("direct", "dgrad", CONFIGS, _why_not, _rather_not, _pick, _launches),)
