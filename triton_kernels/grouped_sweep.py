"""Grouped convolution with few maps a group, down the rows of y: each x is loaded once per filter column.

fprop   y[n,p,q,k]  = sum over r,s,c of x[n, p*u + r*l - pad, q*u + s*l - pad, group(k) * C/g + c] * w[k,r,s,c]
dgrad   at stride 1, as fprop of dy with the filter turned around

Layouts and tiles are those of grouped.py. The weights of all taps and the sums of all filter rows are held, as in
depthwise's sweep: each x is loaded once per filter *column* and multiplied R times.

Bound: x + y once, as in grouped.py; x is read from L2 once, and three times from L1.
"""

# mypy: disable-error-code="assignment, no-untyped-def, var-annotated"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.depthwise import in_units, sweeps_of
from cnnkern.triton_kernels.fused import epilogue, prologue, write
from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Config, Launch, cdiv
from cnnkern.triton_kernels.pixels import multiple

# What a program can hold, at most.
_HELD_TAPS = 9
_HELD_TILE = {"f32": 256, "bf16": 1024, "f16": 1024}
_SWEPT_ROWS = 3
_PROGRAMS = 12 * 132  # that there are at least, where rows allow


@triton.jit
def diagonal_sum(
    x, w, x_scale, x_shift, x_base, h0, w0, there, in_h, in_w, first_k, k_from, k_to, depth,  # pixels; maps of x
    column_group, column_mask, w_base,  # maps of y
    x_row, x_pixel, w_tap_h, w_tap_w, w_depth, tap_h, tap_w, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, X_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The convolution's sums [BLOCK_M, BLOCK_N] over the maps k_from to k_to of a tile of x."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    blocks = tl.cdiv(k_to - k_from, BLOCK_K)
    for step in range(TAPS_H * TAPS_W * blocks):
        tap = step // blocks
        k = k_from + step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        k_mask = k < k_to
        h = h0 + tap // TAPS_W * tap_h
        w_ = w0 + tap % TAPS_W * tap_w
        mask = (there & (h >= 0) & (h < in_h) & (w_ >= 0) & (w_ < in_w))[:, None] & k_mask[None, :]
        offsets = x_base + h.to(tl.int64) * x_row + w_.to(tl.int64) * x_pixel
        left = tl.load(x + offsets[:, None] + k[None, :], mask=mask, other=0.0)
        left = prologue(left, mask, x_scale, x_shift, first_k + k, k_mask, X_ACTIVATION, x_alpha)
        right = tl.load(
            w
            + (w_base + (tap // TAPS_W * w_tap_h + tap % TAPS_W * w_tap_w))[None, :]
            + ((k % depth) * w_depth)[:, None],
            mask=((k // depth)[:, None] == column_group[None, :]) & k_mask[:, None] & column_mask[None, :],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def diagonal_sweep_kernel(
    x, w, y, scale, shift, residual, beside, x_scale, x_shift,
    points, rows, cols, band, in_h, in_w,  # columns of all images; an image of y; rows of a program; an image of x
    depth, columns, per_group, tile_depth, tile_columns, all_depth, all_columns,  # as in grouped.py
    x_image, x_row, x_pixel, y_image, y_row, y_pixel, r_image, r_row, r_pixel,  # rows and pixels in UNIT elements
    w_start, w_group, w_column, w_tap_h, w_tap_w, w_depth,  # elements
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, sweeps, alpha, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STEP: tl.constexpr,
    ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr,
    SHUFFLE: tl.constexpr, SEVERAL: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`band` rows of y, `sweeps` apart, of a tile of columns x maps of some groups; grid (tiles, sweeps x bands)."""
    x_image, x_row, x_pixel = multiple(x_image, UNIT), x_row * UNIT, x_pixel * UNIT
    y_image, y_row, y_pixel = multiple(y_image, UNIT), y_row * UNIT, y_pixel * UNIT
    r_image, r_row, r_pixel = multiple(r_image, UNIT), r_row * UNIT, r_pixel * UNIT
    tile_depth, tile_columns = tile_depth * UNIT, tile_columns * UNIT
    all_depth, all_columns = all_depth * UNIT, all_columns * UNIT
    tiles = tl.cdiv(all_columns, tile_columns)
    first_k = tl.program_id(0) % tiles * tile_depth
    first_column = tl.program_id(0) % tiles * tile_columns
    column = tl.arange(0, BLOCK_N)
    column_mask = (column < tile_columns) & (first_column + column < all_columns)
    column_group = column // columns
    map_ = first_column + column
    group = (map_ // columns).to(tl.int64)
    w_base = w_start + group * w_group + (column % columns).to(tl.int64) * w_column
    k = tl.arange(0, BLOCK_K)
    k_to = tl.minimum(tile_depth, all_depth - first_k)
    k_mask = k < k_to

    point = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    there = point < points
    image = (point // cols).to(tl.int64)
    col = point % cols
    w0 = col * stride_w - pad_left
    x_base = image * x_image + first_k
    sweep = tl.program_id(1).to(tl.int64) % sweeps
    first = tl.program_id(1).to(tl.int64) // sweeps * band
    h0 = sweep * stride_h - pad_top + first * STEP * dilation_h

    weights = ()
    w_mask = (k // depth)[:, None] == column_group[None, :]
    w_mask = w_mask & k_mask[:, None] & column_mask[None, :]
    for r in tl.static_range(TAPS_H):
        for s in tl.static_range(TAPS_W):
            tap = (w_base + (r * w_tap_h + s * w_tap_w))[None, :] + ((k % depth) * w_depth)[:, None]
            weights = weights + (tl.load(w + tap, mask=w_mask, other=0.0),)

    # sums[i] is of the row of y that is i above the one whose first tap is here.
    REACH: tl.constexpr = (TAPS_H + STEP - 1) // STEP
    sums = ()
    for _ in tl.static_range(REACH):
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),)
    finite = tl.full((BLOCK_M, BLOCK_N), 1, tl.int1)
    for step in range(band + REACH - 1):
        for j in tl.static_range(min(STEP, TAPS_H)):
            h = h0 + (step * STEP + j) * dilation_h
            for s in tl.static_range(TAPS_W):
                w_ = w0 + s * dilation_w
                mask = (there & (h >= 0) & (h < in_h) & (w_ >= 0) & (w_ < in_w))[:, None] & k_mask[None, :]
                offsets = x_base + h * x_row + w_.to(tl.int64) * x_pixel
                tile = tl.load(x + offsets[:, None] + k[None, :], mask=mask, other=0.0)
                tile = prologue(tile, mask, x_scale, x_shift, first_k + k, k_mask, X_ACTIVATION, x_alpha)
                for i in tl.static_range(REACH):
                    if i * STEP + j < TAPS_H:
                        weight = weights[(i * STEP + j) * TAPS_W + s]
                        product = tl.dot(tile, weight, sums[i], input_precision=PRECISION)
                        sums = sums[:i] + (product,) + sums[i + 1 :]
        # The last row of sums is complete, if it is not above the band.
        place = first + step - (REACH - 1)
        row = sweep + place * sweeps
        mask = ((place >= first) & (row < rows) & there)[:, None] & column_mask[None, :]
        total = sums[REACH - 1]
        finite = finite & (tl.abs(total) < float("inf"))
        at = (image * r_image + row * r_row + col * r_pixel)[:, None] + map_[None, :]
        total = epilogue(total, mask, scale, shift, residual, at, map_, column_mask, ACTIVATION, alpha)
        pixel = image * y_image + row * y_row + col * y_pixel
        write(y, pixel, total, mask, map_, all_columns, beside, at, per_group, SHUFFLE)
        sums = (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),) + sums[: REACH - 1]

    if SEVERAL:
        if tl.min(tl.reshape(finite.to(tl.int32), (BLOCK_M * BLOCK_N,)), axis=0) == 0:
            tl.debug_barrier()  # what is written again may have been written by other threads
            for place in range(first, tl.minimum(first + band, tl.cdiv(rows - sweep, sweeps))):
                row = sweep + place * sweeps
                total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                for k_from in range(0, k_to, depth):
                    part = diagonal_sum(
                        x, w, x_scale, x_shift, x_base, row * stride_h - pad_top + tl.zeros_like(w0), w0, there,
                        in_h, in_w, first_k, k_from, k_from + depth, depth, column_group, column_mask, w_base,
                        x_row, x_pixel, w_tap_h, w_tap_w, w_depth, dilation_h, dilation_w, x_alpha,
                        TAPS_H, TAPS_W, X_ACTIVATION, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                    )  # fmt: skip
                    total = tl.where((column_group == k_from // depth)[None, :], part, total)
                mask = there[:, None] & column_mask[None, :]
                at = (image * r_image + row * r_row + col * r_pixel)[:, None] + map_[None, :]
                total = epilogue(total, mask, scale, shift, residual, at, map_, column_mask, ACTIVATION, alpha)
                pixel = image * y_image + row * y_row + col * y_pixel
                write(y, pixel, total, mask, map_, all_columns, beside, at, per_group, SHUFFLE)


def swept(p: ConvProblem, config: Config) -> bool:
    """Whether the weights of all taps of a tile fit the registers of its warps, and the sums of all filter rows."""
    fprop = p.direction == "fprop"
    written, read = (p.k, p.c) if fprop else (p.c, p.k)
    _, block_n, block_k = config.tile
    return (
        (fprop or p.stride == (1, 1))
        and p.r * p.s <= _HELD_TAPS
        and p.r <= _SWEPT_ROWS
        and block_n * block_k <= _HELD_TILE[p.dtype]
        and written // p.groups <= block_n
        and read // p.groups <= block_k
    )


def sweep(p: ConvProblem, o: Operands, config: Config, together: int) -> Launch:
    """The launch, with so many groups together in a tile."""
    block_m, block_n, block_k = config.tile
    fprop = p.direction == "fprop"
    read, written = (o.x, o.y) if fprop else (o.y, o.x)
    sweeps, step = sweeps_of(p.stride[0], p.dilation[0])
    (top, left), w_start = p.padding[:2], 0
    w_column, w_depth, w_tap_h, w_tap_w = o.w.stride()
    if not fprop:  # the filter turned around, which begins with the last tap
        top, left = (p.r - 1) * p.dilation[0] - top, (p.s - 1) * p.dilation[1] - left
        w_start = (p.r - 1) * w_tap_h + (p.s - 1) * w_tap_w
        w_column, w_depth, w_tap_h, w_tap_w = w_depth, w_column, -w_tap_h, -w_tap_w
    depth, columns = read.shape[1] // p.groups, written.shape[1] // p.groups
    rows, cols = written.shape[2:]
    tiles = cdiv(p.groups, together) * cdiv(p.n * cols, block_m)
    band = min(max(cdiv(rows * tiles, sweeps * _PROGRAMS), 4), cdiv(rows, sweeps))
    arguments: dict[str, Any] = {
        "x": read, "w": o.w, "y": written, "scale": o.scale, "shift": o.shift, "residual": o.residual,
        "beside": o.beside, "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": p.n * cols, "rows": rows, "cols": cols, "band": band, "in_h": read.shape[2], "in_w": read.shape[3],
        "depth": depth, "columns": columns, "per_group": o.per_group,
        "tile_depth": together * depth, "tile_columns": together * columns,
        "all_depth": p.groups * depth, "all_columns": p.groups * columns,
        "w_start": w_start, "w_group": p.k // p.groups * o.w.stride(0), "w_column": w_column, "w_tap_h": w_tap_h,
        "w_tap_w": w_tap_w, "w_depth": w_depth,
        "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": top, "pad_left": left,
        "dilation_h": p.dilation[0], "dilation_w": p.dilation[1], "sweeps": sweeps,
        "alpha": p.epilogue.alpha, "x_alpha": p.prologue.alpha,
        "TAPS_H": p.r, "TAPS_W": p.s, "STEP": step,
        "ACTIVATION": p.epilogue.activation if fprop else "none",
        "X_ACTIVATION": p.prologue.activation if fprop else "none",
        "SHUFFLE": o.shuffle, "SEVERAL": together > 1, "PRECISION": o.precision,
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
    }  # fmt: skip
    beside = o.residual if o.beside is None else o.beside
    for prefix, tensor in (("x", read), ("y", written), ("r", beside)):
        strides = (0, 0, 0) if tensor is None else image_strides(tensor)
        arguments |= dict(zip((f"{prefix}_image", f"{prefix}_row", f"{prefix}_pixel"), strides, strict=True))
    arguments = in_units(arguments, "tile_depth", "tile_columns", "all_depth", "all_columns")
    grid = (tiles, sweeps * cdiv(cdiv(rows, sweeps), band))
    return Launch(diagonal_sweep_kernel, grid, arguments, config)
