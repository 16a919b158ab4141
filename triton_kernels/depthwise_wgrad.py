"""The weight gradient of depthwise convolution: a sweep with the last rows of dy held, and a sum per tap.

wgrad   dw[c,r,s]   = sum over n,p,q of dy[n,p,q,c] * x[n, p*u + r*l - pad, q*u + s*l - pad, c]

Layouts, tiles and sweeps are those of depthwise.py. dy is loaded once, x once per filter column. Up to 25 taps go in
one pass, of larger filters up to 8 taps of one filter row at a time. Pixels are split over the grid (slices.py).

Bound: x + dy read once. In bf16 at 4.3 TB/s that is 1.07e12 elements/s, each with 2*R*S flops.
"""

# mypy: disable-error-code="assignment, no-untyped-def, var-annotated"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.depthwise import (
    HELD_TAPS,
    SWEPT_ROWS,
    in_units,
    rather_not,
    sweeps_of,
    why_not,
    with_term,
)
from cnnkern.triton_kernels.fused import prologue
from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Chip, Config, Launch, TritonKernel, cdiv
from cnnkern.triton_kernels.pixels import multiple
from cnnkern.triton_kernels.slices import added, slices_of

# ROWS x BLOCK_P columns x BLOCK_C maps; 4 elements to a thread, half of depthwise.py's, leave registers for 25 sums.
CONFIGS = (
    Config((16, 16, 64)),
    Config((16, 8, 64)),
    Config((16, 32, 32)),
    Config((16, 16, 32)),
    Config((2, 8, 16), 1),
)

_ONE_PASS_TAPS = 25  # at most
_SPLIT_TAPS = 8  # that a program takes of one filter row where there are more
_PROGRAMS = 1056  # 8 for each of 132 multiprocessors, whatever the chip, so that bits do not vary


@triton.jit
def wgrad_kernel(
    dy, x, slices, bias_slices, x_scale, x_shift,
    points, rows, cols, maps, in_h, in_w, bands, units, per_split,
    dy_image, dy_row, dy_pixel, x_image, x_row, x_pixel,  # rows and pixels in UNIT elements
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, sweeps, taps_h, taps_w, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STEP: tl.constexpr, X_ACTIVATION: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """TAPS_H x TAPS_W taps of BLOCK_C filters over one split; grid (map blocks, splits, blocks of taps).

    A split is per_split units, a unit what one program of sweep_kernel has: a tile of columns x a sweep x a band. Rows
    of dy past the image count as zeros: a NaN in x that one tap of a filter sees may show in its other taps.
    """
    x_image, x_row, x_pixel, maps = multiple(x_image, UNIT), x_row * UNIT, x_pixel * UNIT, maps * UNIT
    dy_image, dy_row, dy_pixel = multiple(dy_image, UNIT), dy_row * UNIT, dy_pixel * UNIT
    map_ = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    map_mask = map_ < maps
    split = tl.program_id(1)
    tap_blocks_w = tl.cdiv(taps_w, TAPS_W)
    tap_h = tl.program_id(2) // tap_blocks_w * TAPS_H
    tap_w = tl.program_id(2) % tap_blocks_w * TAPS_W
    REACH: tl.constexpr = (TAPS_H + STEP - 1) // STEP

    sums = ()
    for _ in tl.static_range(TAPS_H * TAPS_W):
        sums = sums + (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    bias = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for unit in range(split * per_split, tl.minimum((split + 1) * per_split, units)):
        point = unit // bands * BLOCK_P + tl.arange(0, BLOCK_P)
        image = (point // cols).to(tl.int64)
        col = point % cols
        w0 = col * stride_w - pad_left + tap_w * dilation_w
        x_base = x + image * x_image + w0.to(tl.int64) * x_pixel
        dy_base = dy + image * dy_image + col * dy_pixel
        sweep = unit % bands % sweeps
        first = unit % bands // sweeps * ROWS
        h0 = sweep * stride_h - pad_top + tap_h * dilation_h + first * STEP * dilation_h

        # seen[i] is the row of dy that is i above the one whose first tap is here.
        seen = ()
        for _ in tl.static_range(REACH):
            seen = seen + (tl.zeros((BLOCK_P, BLOCK_C), dy.dtype.element_ty),)
        for step in range(ROWS + REACH - 1):
            row = sweep + (first + step) * sweeps
            mask = ((step < ROWS) & (row < rows) & (point < points))[:, None] & map_mask[None, :]
            pixel = dy_base + tl.cast(row, tl.int64) * dy_row
            tile = tl.load(pixel[:, None] + map_[None, :], mask=mask, other=0.0)
            seen = (tile,) + seen[: REACH - 1]
            if bias_slices is not None:
                bias += tile.to(tl.float32)
            for j in tl.static_range(min(STEP, TAPS_H)):
                h = h0 + (step * STEP + j) * dilation_h
                for s in tl.static_range(TAPS_W):
                    w_ = w0 + s * dilation_w
                    inside = (point < points) & (h >= 0) & (h < in_h) & (w_ >= 0) & (w_ < in_w)
                    mask = inside[:, None] & map_mask[None, :]
                    pixel = x_base + (tl.cast(h, tl.int64) * x_row + s * dilation_w * x_pixel)
                    tile = tl.load(pixel[:, None] + map_[None, :], mask=mask, other=0.0)
                    tile = prologue(tile, mask, x_scale, x_shift, map_, map_mask, X_ACTIVATION, x_alpha)
                    for i in tl.static_range(REACH):
                        if i * STEP + j < TAPS_H:
                            product = tile.to(tl.float32) * seen[i].to(tl.float32)
                            sums = with_term(sums, (i * STEP + j) * TAPS_W + s, product)

    out = slices + (split.to(tl.int64) * maps + map_) * (taps_h * taps_w)
    for r in tl.static_range(TAPS_H):
        for s in tl.static_range(TAPS_W):
            tap_mask = map_mask & (tap_w + s < taps_w)
            at = out + ((tap_h + r) * taps_w + tap_w + s)
            tl.store(at, tl.sum(sums[r * TAPS_W + s], axis=0), mask=tap_mask)
    if bias_slices is not None:
        if tl.program_id(2) == 0:
            tl.store(bias_slices + split.to(tl.int64) * maps + map_, tl.sum(bias, axis=0), mask=map_mask)


def _wgrad(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    rows, block_p, block_c = config.tile
    sweeps, step = sweeps_of(p.stride[0], p.dilation[0])
    one_pass = p.r * p.s <= _ONE_PASS_TAPS and p.r <= SWEPT_ROWS
    taps_h, taps_w = (p.r, p.s) if one_pass else (1, min(p.s, _SPLIT_TAPS))
    tap_blocks = cdiv(p.r, taps_h) * cdiv(p.s, taps_w)
    points = p.n * p.q
    bands = sweeps * cdiv(cdiv(p.p, sweeps), rows)
    units = cdiv(points, block_p) * bands
    splits = cdiv(units, cdiv(units, cdiv(_PROGRAMS, cdiv(p.c, block_c) * tap_blocks)))
    dy_image, dy_row, dy_pixel = image_strides(o.y)
    x_image, x_row, x_pixel = image_strides(o.x)
    arguments: dict[str, Any] = {
        "dy": o.y, "x": o.x, **slices_of(o, splits), "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": points, "rows": p.p, "cols": p.q, "maps": p.c, "in_h": p.h, "in_w": p.w,
        "bands": bands, "units": units, "per_split": cdiv(units, splits),
        "dy_image": dy_image, "dy_row": dy_row, "dy_pixel": dy_pixel,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": p.padding[0], "pad_left": p.padding[1],
        "dilation_h": p.dilation[0], "dilation_w": p.dilation[1], "sweeps": sweeps,
        "taps_h": p.r, "taps_w": p.s, "x_alpha": p.prologue.alpha,
        "TAPS_H": taps_h, "TAPS_W": taps_w, "STEP": step, "X_ACTIVATION": p.prologue.activation,
        "ROWS": rows, "BLOCK_P": block_p, "BLOCK_C": block_c,
    }  # fmt: skip
    grid = (cdiv(p.c, block_c), splits, tap_blocks)
    return added(Launch(wgrad_kernel, grid, in_units(arguments), config), o)


def _pick(p: ConvProblem, chip: Chip) -> Config:
    """8 elements to a thread where the sums of all taps still fit its registers."""
    few = p.r * p.s <= HELD_TAPS or p.r * p.s > _ONE_PASS_TAPS
    width = 64 if p.c > 32 else 32
    return next(c for c in CONFIGS if c.tile[2] == width and c.tile[1] * width == (1024 if few else 512))


KERNELS = (TritonKernel("depthwise", "wgrad", CONFIGS, why_not, rather_not, _pick, _wgrad),)
