"""Direct convolution for few input maps, such as the 3-channel stem of most networks.

fprop   y[n,p,q,k]  = sum over r,s,c of x[n, p*u + r*l - pad, q*u + s*l - pad, c] * w[k,r,s,c]
wgrad   dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n, p*u + r*l - pad, q*u + s*l - pad, c]

x and y NHWC with a pixel stride, w KRSC; stride u, dilation l; no groups.

Tap by tap, as the implicit GEMM goes, 3 maps would fill 3 of a tensor core's 16 positions in gemm_k. Here gemm_k is the
whole filter: S*C neighbours of a row of x are one run of memory, and R such runs are cut into blocks of BLOCK_K. 7x7x3
is 147, in 160 positions instead of 784; 5x5x1 is 25, in 32 instead of 400. Each element has its own address and mask;
neighbours are still read together, since x is small enough to stay in L1 for its R*S/(u*u) uses. In wgrad the filter is
gemm_n, and pixels are split over the grid into float32 slices, which are added in order: the same bits from every run.
dgrad is in direct_dgrad.py.

Bound: bytes = x + y. 7x7/2, 3 -> 64 maps on 224x224 pixels, N = 256, bf16: 77 MB of x and 411 MB of y take 0.11 ms at
4.3 TB/s in either direction; 60 GFLOP (66 with 160 positions) take 0.08 ms at 790 TFLOP/s dense. In fp32 976 MB take
0.23 ms, and the products 0.9 ms at 67 TFLOP/s. What may come before in bf16 is the gathering: 514 million elements,
each with some 8 integer instructions, 64 lanes a clock on 132 multiprocessors, are an estimated 0.25 ms.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.configs import DIRECT_CONFIGS, DIRECT_WGRAD_CONFIGS, pick_direct, wgrad_splits
from cnnkern.triton_kernels.fused import epilogue
from cnnkern.triton_kernels.im2col import patches
from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Config, Launch, TritonKernel, cdiv
from cnnkern.triton_kernels.pixels import strides, vector_of
from cnnkern.triton_kernels.slices import added, slices_of


@triton.jit
def fprop_kernel(
    x, w, y, scale, shift, residual, x_scale, x_shift,
    points, rows, cols, in_h, in_w, k,  # output pixels: all, of an image
    x_image, x_row, x_pixel, y_image, y_row, y_pixel, r_image, r_row, r_pixel, w_k, w_c, w_row, w_col,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, alpha, x_alpha,
    C: tl.constexpr, TAPS: tl.constexpr, TAPS_W: tl.constexpr, ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of output pixels x maps; grid (tiles,)."""
    k, y_image, y_row, y_pixel = strides(k, y_image, y_row, y_pixel, VECTOR)
    k, r_image, r_row, r_pixel = strides(k, r_image, r_row, r_pixel, VECTOR)
    tiles_n = tl.cdiv(k, BLOCK_N)
    point = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    map_ = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    map_mask = map_ < k

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, TAPS * C, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        left = patches(
            x, x_scale, x_shift, point, column, points, rows, cols, TAPS * C, in_h, in_w, C, x_image, x_row, x_pixel,
            stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, x_alpha, TAPS, TAPS_W, X_ACTIVATION,
        )  # fmt: skip
        tap = column // C
        w_offsets = tap // TAPS_W * w_row + tap % TAPS_W * w_col + column % C * w_c
        w_mask = (column < TAPS * C)[:, None] & map_mask[None, :]
        right = tl.load(w + w_offsets[:, None] + (map_ * w_k)[None, :], mask=w_mask, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)

    image = (point // (rows * cols)).to(tl.int64)
    row, col = (point // cols % rows).to(tl.int64), point % cols
    mask = (point < points)[:, None] & map_mask[None, :]
    r_offsets = (image * r_image + row * r_row + col * r_pixel)[:, None] + map_[None, :]
    total = epilogue(total, mask, scale, shift, residual, r_offsets, map_, map_mask, ACTIVATION, alpha)
    y_offsets = (image * y_image + row * y_row + col * y_pixel)[:, None] + map_[None, :]
    tl.store(y + y_offsets, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def wgrad_kernel(
    dy, x, slices, bias_slices, x_scale, x_shift,
    points, rows, cols, per_split, in_h, in_w, k,  # output pixels: all, of an image, of a split (whole BLOCK_Ps)
    dy_image, dy_row, dy_pixel, x_image, x_row, x_pixel,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, x_alpha,
    C: tl.constexpr, TAPS: tl.constexpr, TAPS_W: tl.constexpr, X_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One tile of maps of y x filter positions, for one split; grid (tiles, splits)."""
    k, dy_image, dy_row, dy_pixel = strides(k, dy_image, dy_row, dy_pixel, VECTOR)
    tiles_m = tl.cdiv(k, BLOCK_M)
    map_ = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    map_mask = map_ < k

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    bias = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, points), BLOCK_P):
        point = start + tl.arange(0, BLOCK_P)
        row = (point // cols % rows).to(tl.int64)
        pixel = (point // (rows * cols)).to(tl.int64) * dy_image + row * dy_row + point % cols * dy_pixel
        mask = (point < points)[:, None] & map_mask[None, :]
        left = tl.load(dy + pixel[:, None] + map_[None, :], mask=mask, other=0.0)
        right = patches(
            x, x_scale, x_shift, point, column, points, rows, cols, TAPS * C, in_h, in_w, C, x_image, x_row, x_pixel,
            stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, x_alpha, TAPS, TAPS_W, X_ACTIVATION,
        )  # fmt: skip
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
        if bias_slices is not None:
            bias += tl.sum(left.to(tl.float32), axis=0)

    out = (split.to(tl.int64) * k + map_) * (TAPS * C)
    mask = map_mask[:, None] & (column < TAPS * C)[None, :]
    tl.store(slices + out[:, None] + column[None, :], total, mask=mask)
    if bias_slices is not None:
        if tl.program_id(0) < tiles_m:
            tl.store(bias_slices + split * k + map_, bias, mask=map_mask)


def _common(p: ConvProblem, o: Operands) -> dict[str, Any]:
    x_image, x_row, x_pixel = image_strides(o.x)
    return {
        "x": o.x, "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": p.n * p.p * p.q, "rows": p.p, "cols": p.q, "in_h": p.h, "in_w": p.w, "k": p.k,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": p.padding[0], "pad_left": p.padding[1],
        "dilation_h": p.dilation[0], "dilation_w": p.dilation[1], "x_alpha": p.prologue.alpha,
        "C": p.c, "TAPS": p.r * p.s, "TAPS_W": p.s, "X_ACTIVATION": p.prologue.activation, "PRECISION": o.precision,
    }  # fmt: skip


def _fprop(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    block_m, block_n, block_k = config.tile
    w_k, w_c, w_row, w_col = o.w.stride()
    y_image, y_row, y_pixel = image_strides(o.y)
    r_image, r_row, r_pixel = (0, 0, 0) if o.residual is None else image_strides(o.residual)
    arguments = {
        **_common(p, o), "w": o.w, "y": o.y, "scale": o.scale, "shift": o.shift, "residual": o.residual,
        "y_image": y_image, "y_row": y_row, "y_pixel": y_pixel,
        "r_image": r_image, "r_row": r_row, "r_pixel": r_pixel,
        "w_k": w_k, "w_c": w_c, "w_row": w_row, "w_col": w_col,
        "alpha": p.epilogue.alpha, "ACTIVATION": p.epilogue.activation,
        "VECTOR": vector_of(p.k, y_image, y_row, y_pixel, r_image, r_row, r_pixel),
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
    }  # fmt: skip
    return [Launch(fprop_kernel, (cdiv(p.n * p.p * p.q, block_m) * cdiv(p.k, block_n),), arguments, config)]


def _wgrad(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    block_m, block_n, block_p = config.tile
    points, tiles = p.n * p.p * p.q, cdiv(p.k, block_m) * cdiv(p.r * p.s * p.c, block_n)
    per_split = block_p * cdiv(cdiv(points, block_p), wgrad_splits(points, tiles, block_p))
    splits = cdiv(points, per_split)
    dy_image, dy_row, dy_pixel = image_strides(o.y)
    arguments = {
        **_common(p, o), "dy": o.y, **slices_of(o, splits), "per_split": per_split,
        "dy_image": dy_image, "dy_row": dy_row, "dy_pixel": dy_pixel,
        "VECTOR": vector_of(p.k, dy_image, dy_row, dy_pixel),
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_P": block_p,
    }  # fmt: skip
    return added(Launch(wgrad_kernel, (tiles, splits), arguments, config), o)


def _why_not(p: ConvProblem) -> str:
    if p.groups > 1:
        return "it has groups"
    if not 1 <= p.c <= 8:
        return f"it has {p.c} input maps, and this family is for 1 to 8"
    return ""


def _rather_not(p: ConvProblem) -> str:
    if p.r * p.s == 1:
        return "a 1x1 filter has no run longer than its maps"
    return ""


KERNELS = (
    TritonKernel("direct", "fprop", DIRECT_CONFIGS, _why_not, _rather_not, pick_direct, _fprop),
    TritonKernel("direct", "wgrad", DIRECT_WGRAD_CONFIGS, _why_not, _rather_not, pick_direct, _wgrad),
)
