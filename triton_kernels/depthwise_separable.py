"""Depthwise-separable convolution (MobileNet, arXiv 1704.04861), fused for inference.

z[n,p,q,c] = act_dw(scale_dw * sum over r,s of x[n, p*u + r*l - pad, q*u + s*l - pad, c] * w_dw[c,r,s] + shift_dw)
y[n,p,q,k] = act_pw(scale_pw * sum over c of z[n,p,q,c] * w_pw[k,c] + shift_pw)

x and y NHWC with a pixel stride; stride u, dilation l.

The idea: z is never written to memory. A program owns a tile of pixels; block by block of maps it computes their z in
registers, rounds it to the tensors' dtype and multiplies it with that block of w_pw on the tensor cores. x comes from
memory once and from L1 for the other taps. Maps of y that do not fit a tile have z computed again, so at most two tiles
share pixels.

Bound: x + y once; two convolutions move x + 2 * z + y: at stride 1 and with as many maps in y as in x, twice the bytes.
In bf16 at 4.3 TB/s that is 1.07e12 elements of z a second, each with 2*R*S flops on the FMA units, 19
TFLOP/s for 3x3, and 2*K on the tensor cores, whose 790 TFLOP/s are reached at K = 370.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from cnnkern.operands import SeparableOperands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.depthwise import in_units, turned
from cnnkern.triton_kernels.fused import epilogue
from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Config, Launch, cdiv
from cnnkern.triton_kernels.pixels import multiple

# BLOCK_M pixels x BLOCK_N maps of y x BLOCK_K maps of x at a time
CONFIGS = (
    Config((64, 32, 32), 4, 2),
    Config((64, 64, 32), 4, 2),
    Config((64, 128, 32), 8, 2),
    Config((64, 256, 32), 8, 2),
    Config((16, 16, 16), 1, 1),
)


@triton.jit
def separable_kernel(
    x, dw_weight, dw_scale, dw_shift, pw_weight, pw_scale, pw_shift, y,
    points, rows, cols, in_h, in_w, maps, columns,  # pixels of y: all, of an image; an image of x; maps of x and of y
    x_image, x_row, x_pixel, y_image, y_row, y_pixel,  # rows, pixels, maps and columns in UNIT elements
    w_column, w_map,  # elements
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, dw_alpha, pw_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, DW_ACTIVATION: tl.constexpr, PW_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of pixels x maps of y; grid (tiles of maps x tiles of pixels,). dw_weight is [taps][maps] in float32."""
    x_image, x_row, x_pixel, maps = multiple(x_image, UNIT), x_row * UNIT, x_pixel * UNIT, maps * UNIT
    y_image, y_row, y_pixel, columns = multiple(y_image, UNIT), y_row * UNIT, y_pixel * UNIT, columns * UNIT
    tiles_n = tl.cdiv(columns, BLOCK_N)
    column = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = column < columns
    point = tl.program_id(0) // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    image = (point // (rows * cols)).to(tl.int64)
    row = point // cols % rows
    col = point % cols

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, maps, BLOCK_K):
        map_ = first + tl.arange(0, BLOCK_K)
        map_mask = map_ < maps
        z = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        for r in range(TAPS_H):
            h = row * stride_h - pad_top + r * dilation_h
            row_inside = (point < points) & (h >= 0) & (h < in_h)
            x_base = x + image * x_image + h.to(tl.int64) * x_row
            for s in tl.static_range(TAPS_W):
                w_ = col * stride_w - pad_left + s * dilation_w
                mask = (row_inside & (w_ >= 0) & (w_ < in_w))[:, None] & map_mask[None, :]
                pixel = x_base + w_.to(tl.int64) * x_pixel
                tile = tl.load(pixel[:, None] + map_[None, :], mask=mask, other=0.0)
                weight = tl.load(dw_weight + (r * TAPS_W + s) * maps + map_, mask=map_mask, other=0.0)
                z += tile.to(tl.float32) * weight[None, :]
        z = epilogue(z, None, dw_scale, dw_shift, None, None, map_, map_mask, DW_ACTIVATION, dw_alpha)
        right = tl.load(
            pw_weight + column.to(tl.int64)[None, :] * w_column + map_[:, None] * w_map,
            mask=map_mask[:, None] & column_mask[None, :],
            other=0.0,
        )
        # Maps past the last have an activation of 0, which is finite, times the zeros of `right`.
        total = tl.dot(z.to(x.dtype.element_ty), right, total, input_precision=PRECISION)

    mask = (point < points)[:, None] & column_mask[None, :]
    total = epilogue(total, mask, pw_scale, pw_shift, None, None, column, column_mask, PW_ACTIVATION, pw_alpha)
    pixel = image * y_image + row.to(tl.int64) * y_row + col * y_pixel
    tl.store(y + pixel[:, None] + column[None, :], total.to(y.dtype.element_ty), mask=mask)


def why_not(depthwise: ConvProblem, pointwise: ConvProblem) -> str:
    """Empty, or why the two are not computed in one kernel, which two can do as well or better."""
    if depthwise.dtype == "f64":
        return "does not compute in float64"
    if not depthwise.groups == depthwise.c == depthwise.k:
        return "the first convolution needs one filter per map: groups == C == K"
    if (pointwise.r, pointwise.s, pointwise.groups) != (1, 1, 1):
        return "the second convolution needs to be a dense 1x1"
    if pointwise.k > 2 * CONFIGS[-2].tile[1]:
        return "of more than 512 maps of y each of several tiles would compute the first convolution again"
    return ""


def pick(pointwise: ConvProblem) -> Config:
    """The narrowest tile that has all maps of y, else the widest."""
    return next((config for config in CONFIGS[:-1] if config.tile[1] >= pointwise.k), CONFIGS[-2])


def launches(first: ConvProblem, second: ConvProblem, o: SeparableOperands, config: Config) -> Sequence[Launch]:
    """What computes y: the filters turned to have their maps next to each other, and both convolutions."""
    block_m, block_n, block_k = config.tile
    points = first.n * first.p * first.q
    dw_weight, turn = turned(o.dw_weight)
    x_image, x_row, x_pixel = image_strides(o.x)
    y_image, y_row, y_pixel = image_strides(o.y)
    arguments = {
        "x": o.x, "dw_weight": dw_weight, "dw_scale": o.dw_scale, "dw_shift": o.dw_shift,
        "pw_weight": o.pw_weight, "pw_scale": o.pw_scale, "pw_shift": o.pw_shift, "y": o.y,
        "points": points, "rows": first.p, "cols": first.q, "in_h": first.h, "in_w": first.w,
        "maps": first.c, "columns": second.k,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        "y_image": y_image, "y_row": y_row, "y_pixel": y_pixel,
        "w_column": o.pw_weight.stride(0), "w_map": o.pw_weight.stride(1),
        "stride_h": first.stride[0], "stride_w": first.stride[1],
        "pad_top": first.padding[0], "pad_left": first.padding[1],
        "dilation_h": first.dilation[0], "dilation_w": first.dilation[1],
        "dw_alpha": first.epilogue.alpha, "pw_alpha": second.epilogue.alpha,
        "TAPS_H": first.r, "TAPS_W": first.s,
        "DW_ACTIVATION": first.epilogue.activation, "PW_ACTIVATION": second.epilogue.activation,
        "PRECISION": o.precision, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
    }  # fmt: skip
    grid = (cdiv(second.k, block_n) * cdiv(points, block_m),)
    return [*turn, Launch(separable_kernel, grid, in_units(arguments, "maps", "columns"), config)]
