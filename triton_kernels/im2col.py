"""im2col: the textbook convolution, and the baseline that the others are measured against.

columns[n,p,q,r,s,c] = x[n, p*u + r*l - pad, q*u + s*l - pad, c]    the patch of x under the filter, 0 in the padding
fprop   Y = columns W^T         wgrad   dW = dY^T columns
dgrad   dcolumns = dY W, then each dx[n,h,w,c] is the sum of the columns that were copied from it (col2im)

x and y NHWC with a pixel stride, w KRSC; stride u, dilation l. A pixel's columns stand group after group, each group's
as the filters lie. So the products are those of a 1x1 convolution on R*S*C maps, and the implicit GEMM's kernels, which
then have one tap and no padding, compute them. col2im gathers, tap by tap, and needs no atomics; its columns are
float32, so that dx is rounded once.

Bound: the columns are R*S times x, written once and read once, 4*N*P*Q*R*S*C bytes in bf16 (twice that in dgrad)
beside the GEMM's 2*N*P*Q*K*R*S*C/groups flops. On an H200 (4.3 TB/s; 790 TFLOP/s bf16 dense, 67 TFLOP/s fp32 FMA) the
columns alone take 367*groups/K times as long as the products in bf16, and 62*groups/K times in fp32.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem, Prologue
from cnnkern.triton_kernels import implicit_gemm
from cnnkern.triton_kernels.configs import GEMM_CONFIGS, WGRAD_CONFIGS, pick_gemm, pick_wgrad
from cnnkern.triton_kernels.fused import prologue
from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Chip, Config, Launch, TritonKernel, cdiv


@triton.jit
def patches(
    x, x_scale, x_shift, point, column,  # output pixels, and columns of them
    points, rows, cols, width,  # how many there are: output pixels, of an image; columns of a pixel
    in_h, in_w, c, x_image, x_row, x_pixel,  # c: maps of a group
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, x_alpha,
    TAPS: tl.constexpr, TAPS_W: tl.constexpr, X_ACTIVATION: tl.constexpr,
):  # fmt: skip
    """A tile [pixels, columns] of the columns, zero where there are none."""
    column_mask = column < width
    map_ = column // (TAPS * c) * c + column % c
    tap = column // c % TAPS
    tap_h, tap_w = tap // TAPS_W * dilation_h, tap % TAPS_W * dilation_w
    h = point // cols % rows * stride_h - pad_top
    w_ = point % cols * stride_w - pad_left
    corner = (point // (rows * cols)).to(tl.int64) * x_image + h.to(tl.int64) * x_row + w_.to(tl.int64) * x_pixel
    offsets = corner[:, None] + (tap_h.to(tl.int64) * x_row + tap_w * x_pixel + map_)[None, :]
    # A pixel or column that is not there is put out of reach; below 0 is far above the last row, read as unsigned.
    h = tl.where(point < points, h, 1 << 30)
    tap_h = tl.where(column_mask, tap_h, 1 << 30)
    inside_h = (h[:, None] + tap_h[None, :]).to(tl.uint32, bitcast=True) < in_h
    mask = inside_h & ((w_[:, None] + tap_w[None, :]).to(tl.uint32, bitcast=True) < in_w)
    tile = tl.load(x + offsets, mask=mask, other=0.0)
    return prologue(tile, mask, x_scale, x_shift, map_, column_mask, X_ACTIVATION, x_alpha)


@triton.jit
def im2col_kernel(
    x, columns, x_scale, x_shift,
    points, rows, cols, width, in_h, in_w, c, x_image, x_row, x_pixel,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, x_alpha,
    TAPS: tl.constexpr, TAPS_W: tl.constexpr, X_ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Copies a tile of output pixels x columns; grid (tiles of pixels, tiles of columns)."""
    point = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = patches(
        x, x_scale, x_shift, point, column, points, rows, cols, width, in_h, in_w, c, x_image, x_row, x_pixel,
        stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, x_alpha, TAPS, TAPS_W, X_ACTIVATION,
    )  # fmt: skip
    mask = (point < points)[:, None] & (column < width)[None, :]
    tl.store(columns + (point.to(tl.int64) * width)[:, None] + column[None, :], tile, mask=mask)


@triton.jit
def col2im_kernel(
    columns, dx,
    points, rows, cols, maps, out_h, out_w, c,  # input pixels: all, of an image; maps of dx; c: maps of a group
    dx_image, dx_row, dx_pixel,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w,
    TAPS: tl.constexpr, TAPS_W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sums, in the order of the taps, the columns of a tile of input pixels x maps; grid as im2col_kernel's."""
    point = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image = (point // (rows * cols)).to(tl.int64)
    row, col = point // cols % rows, point % cols
    map_ = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = map_ // c * (TAPS * c) + map_ % c
    there = (point < points)[:, None] & (map_ < maps)[None, :]

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tap in range(TAPS):
        # The pixel whose patch has this one under the tap: where the stride divides, and within the output.
        h = row + pad_top - tap // TAPS_W * dilation_h
        w_ = col + pad_left - tap % TAPS_W * dilation_w
        p, q = h // stride_h, w_ // stride_w
        whole = (h >= 0) & (h % stride_h == 0) & (p < out_h) & (w_ >= 0) & (w_ % stride_w == 0) & (q < out_w)
        pixel = (image * out_h + p) * out_w + q
        offsets = (pixel * maps * TAPS)[:, None] + (first + tap * c)[None, :]
        total += tl.load(columns + offsets, mask=whole[:, None] & there, other=0.0)

    pixel = image * dx_image + row.to(tl.int64) * dx_row + col * dx_pixel
    tl.store(dx + pixel[:, None] + map_[None, :], total.to(dx.dtype.element_ty), mask=there)


_TILE = Config((32, 64))  # pixels x columns that a program copies
_GEMM = {kernel.direction: kernel.launches for kernel in implicit_gemm.KERNELS}


def columns_problem(p: ConvProblem) -> ConvProblem:
    """The 1x1 convolution that is left to compute on the columns."""
    return replace(
        p, c=p.c * p.r * p.s, h=p.p, w=p.q, r=1, s=1, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1),
        x_pixel_stride=0, prologue=Prologue(),
    )  # fmt: skip


def _columns(p: ConvProblem, like: Tensor, dtype: torch.dtype) -> Tensor:
    size = columns_problem(p).x_size
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _on_columns(p: ConvProblem, o: Operands, columns: Tensor, config: Config) -> Sequence[Launch]:
    """What computes the product with the columns; raises ValueError if w has gaps between its taps."""
    try:
        w = o.w.permute(0, 2, 3, 1).view(p.k, p.c // p.groups * p.r * p.s, 1, 1)
    except RuntimeError as error:
        raise ValueError("im2col needs a w without gaps between its taps") from error
    operands = replace(o, x=columns, w=w, x_scale=None, x_shift=None)
    return _GEMM[p.direction](columns_problem(p), operands, config)


def _geometry(p: ConvProblem) -> dict[str, Any]:
    return {
        "c": p.c // p.groups, "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": p.padding[0],
        "pad_left": p.padding[1], "dilation_h": p.dilation[0], "dilation_w": p.dilation[1],
        "TAPS": p.r * p.s, "TAPS_W": p.s, "BLOCK_M": _TILE.tile[0], "BLOCK_N": _TILE.tile[1],
    }  # fmt: skip


def _fprop_or_wgrad(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    columns = _columns(p, o.x, o.x.dtype)
    points, width = p.n * p.p * p.q, columns.shape[1]
    x_image, x_row, x_pixel = image_strides(o.x)
    arguments = {
        "x": o.x, "columns": columns, "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": points, "rows": p.p, "cols": p.q, "width": width,
        "in_h": p.h, "in_w": p.w, "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        "x_alpha": p.prologue.alpha, "X_ACTIVATION": p.prologue.activation, **_geometry(p),
    }  # fmt: skip
    grid = (cdiv(points, _TILE.tile[0]), cdiv(width, _TILE.tile[1]))
    return [Launch(im2col_kernel, grid, arguments, _TILE), *_on_columns(p, o, columns, config)]


def _dgrad(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    columns = _columns(p, o.x, torch.float32)
    points = p.n * p.h * p.w
    dx_image, dx_row, dx_pixel = image_strides(o.x)
    arguments = {
        "columns": columns, "dx": o.x, "points": points, "rows": p.h, "cols": p.w, "maps": p.c,
        "out_h": p.p, "out_w": p.q, "dx_image": dx_image, "dx_row": dx_row, "dx_pixel": dx_pixel, **_geometry(p),
    }  # fmt: skip
    grid = (cdiv(points, _TILE.tile[0]), cdiv(p.c, _TILE.tile[1]))
    return [*_on_columns(p, o, columns, config), Launch(col2im_kernel, grid, arguments, _TILE)]


def _why_not(p: ConvProblem) -> str:
    return ""


def _rather_not(p: ConvProblem) -> str:
    return "the implicit GEMM computes the same products and writes no columns"


def _pick(p: ConvProblem, chip: Chip) -> Config:
    return (pick_wgrad if p.direction == "wgrad" else pick_gemm)(columns_problem(p), chip)


KERNELS = (
    TritonKernel("im2col", "fprop", GEMM_CONFIGS, _why_not, _rather_not, _pick, _fprop_or_wgrad, shuffles=True),
    TritonKernel("im2col", "dgrad", GEMM_CONFIGS, _why_not, _rather_not, _pick, _dgrad),
    TritonKernel("im2col", "wgrad", WGRAD_CONFIGS, _why_not, _rather_not, _pick, _fprop_or_wgrad),
)
