"""Grouped convolution with few maps a group: several groups in one product, by weights that are zero off the diagonal.

fprop   y[n,p,q,k]  = sum over r,s,c of x[n, p*u + r*l - pad, q*u + s*l - pad, group(k) * C/g + c] * w[k,r,s,c]
dgrad   dx[n,h,w,c] = sum over r,s,k in c's group of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, k] * w[k,r,s,c]
wgrad   dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n, p*u + r*l - pad, q*u + s*l - pad, group(k) * C/g + c]

x and y NHWC with a pixel stride, w KRSC with C/g maps; stride u, dilation l, g groups.

A tensor core multiplies by 16 maps or more, and a group may have 4. A tile takes as many whole groups as fit its maps
of x and of y; their filters are laid out as a matrix with one block of weights per group on its diagonal, and zeros,
which are never read from memory, elsewhere. In wgrad the product has the useful blocks on its diagonal, and only they
are stored. Maps per group need not be powers of two, nor as many in y as in x; a group larger than a tile is cut. What
is not finite would spoil its tile's other groups: a tile with such a sum is computed again, group by group.

fprop, and dgrad at stride 1 as fprop with the filter turned around, go down the rows of y as depthwise's sweep does,
where the weights of all taps and the sums of all filter rows can be held: each x is loaded once per filter *column* and
multiplied R times. The others go over implicit_gemm's lattices, with a load of x per tap.

wgrad takes all taps of a 3x3 in one pass, with dy loaded once, where their sums fit the registers, else up to 4 taps of
one filter row. Pixels are split over the grid, each split writes a float32 slice, and a second kernel adds them in
order: the same bits from every run.

Bound: x + y once. In bf16 at 4.3 TB/s, with as many maps of y as of x, that is 1.07e12 elements/s, each with
2*R*S*BLOCK_K flops, the zeros' included: for 3x3 310 TFLOP/s in tiles of 16 maps, 620 in tiles of 32. So a tile is as
narrow as a group allows, and groups of 64 maps and more, whose arithmetic is the bound, belong to the dense kernel. A
load of x per tap would be 9 * x from L2, more than twice the time of a copy even at twice the memory's rate; in a sweep
it is x from L2, and 3 * x from L1.
"""

# mypy: disable-error-code="assignment, no-untyped-def, var-annotated"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.depthwise import in_units, sweeps_of
from cnnkern.triton_kernels.fused import epilogue, prologue
from cnnkern.triton_kernels.implicit_gemm import add_slices, dgrad_launches, fprop_launches, image_strides
from cnnkern.triton_kernels.launch import Chip, Config, Launch, TritonKernel, cdiv

# BLOCK_M pixels x BLOCK_N written maps x BLOCK_K read maps; those of 32 pixels are for sweeps.
CONFIGS = (
    Config((32, 16, 16), 2, 1),
    Config((32, 32, 16), 2, 1),
    Config((32, 16, 32), 2, 1),
    Config((32, 32, 32), 2, 1),
    Config((128, 16, 16), 4, 3),
    Config((128, 32, 16), 4, 3),
    Config((128, 16, 32), 4, 3),
    Config((128, 32, 32), 4, 3),
    Config((128, 64, 32), 4, 3),
    Config((128, 32, 64), 4, 3),
    Config((128, 64, 64), 4, 3),
    Config((16, 16, 16), 1, 2),
)

# BLOCK_M maps of y x BLOCK_N maps of x x BLOCK_P pixels. Loads are not staged: the taps of a tile find x in L1.
WGRAD_CONFIGS = (
    Config((16, 16, 32), 2, 1),
    Config((32, 16, 32), 2, 1),
    Config((16, 32, 32), 4, 1),
    Config((32, 32, 32), 4, 1),
    Config((16, 16, 16), 1, 1),
)

# Of sweeps, at most.
_HELD_TAPS = 9
_HELD_TILE = {"f32": 256, "bf16": 1024, "f16": 1024}
_SWEPT_ROWS = 3
# Of weight gradients. Programs are for 132 multiprocessors, whatever the chip, so that bits do not vary.
_ONE_PASS_TAPS = 9
_ONE_PASS_TILE = 512
_SPLIT_TAPS = 4  # that a program takes of one filter row where the sums of all do not fit its registers
_PROGRAMS = 12 * 132
_SPLIT_POINTS = 1024  # that a split has at least, or its slice would be a good part of what it reads


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
def diagonal_kernel(
    x, w, y, scale, shift, residual, x_scale, x_shift,
    points, rows, cols,  # of the lattice, over all images; its size in one image
    in_h, in_w, depth, columns,  # input image; maps of a group in x and in y
    tile_depth, tile_columns, all_depth, all_columns,  # those of the groups of a tile, and of all, in UNIT maps
    x_image, x_row, x_pixel, y_image, y_row, y_pixel, y_start,  # UNIT elements; y's steps are the lattice's
    r_image, r_row, r_pixel, r_start,
    w_start, w_group, w_column, w_tap_h, w_tap_w, w_depth,  # elements
    in_step_h, in_step_w, off_h, off_w, tap_h, tap_w,  # input pixels: per lattice step, of the first tap, per tap
    alpha, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr,
    SEVERAL: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of the lattice's pixels x the maps of some groups; grid (tiles of groups and their maps x of pixels,).

    Tiles of the same pixels are neighbours: together they read whole lines of x.
    """
    x_image, x_row, x_pixel = x_image * UNIT, x_row * UNIT, x_pixel * UNIT
    y_image, y_row, y_pixel, y_start = y_image * UNIT, y_row * UNIT, y_pixel * UNIT, y_start * UNIT
    r_image, r_row, r_pixel, r_start = r_image * UNIT, r_row * UNIT, r_pixel * UNIT, r_start * UNIT
    tile_depth, tile_columns = tile_depth * UNIT, tile_columns * UNIT
    all_depth, all_columns = all_depth * UNIT, all_columns * UNIT
    tiles_n = tl.cdiv(tile_columns, BLOCK_N)
    tiles = tl.cdiv(all_columns, tile_columns) * tiles_n
    first_k = tl.program_id(0) % tiles // tiles_n * tile_depth
    first_column = tl.program_id(0) % tiles // tiles_n * tile_columns
    column = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = (column < tile_columns) & (first_column + column < all_columns)
    column_group = column // columns
    group = ((first_column + column) // columns).to(tl.int64)
    w_base = w_start + group * w_group + (column % columns).to(tl.int64) * w_column

    point = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    image = (point // (rows * cols)).to(tl.int64)
    row = point // cols % rows
    col = point % cols
    h0 = row * in_step_h + off_h
    w0 = col * in_step_w + off_w
    x_base = image * x_image + first_k

    k_to = tl.minimum(tile_depth, all_depth - first_k)
    total = diagonal_sum(
        x, w, x_scale, x_shift, x_base, h0, w0, point < points, in_h, in_w, first_k, 0, k_to, depth,
        column_group, column_mask, w_base, x_row, x_pixel, w_tap_h, w_tap_w, w_depth, tap_h, tap_w, x_alpha,
        TAPS_H, TAPS_W, X_ACTIVATION, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    if SEVERAL:
        # A NaN or an infinity times the zeros off the diagonal is a NaN in other groups: then each has its own product.
        if tl.max(tl.max((tl.abs(total) < float("inf")).to(tl.int32) ^ 1, axis=1), axis=0) > 0:
            for k_from in range(0, k_to, depth):
                part = diagonal_sum(
                    x, w, x_scale, x_shift, x_base, h0, w0, point < points, in_h, in_w, first_k, k_from, k_from + depth,
                    depth, column_group, column_mask, w_base, x_row, x_pixel, w_tap_h, w_tap_w, w_depth, tap_h, tap_w,
                    x_alpha, TAPS_H, TAPS_W, X_ACTIVATION, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                total = tl.where((column_group == k_from // depth)[None, :], part, total)

    map_ = first_column + column
    mask = (point < points)[:, None] & column_mask[None, :]
    pixel = image * r_image + row.to(tl.int64) * r_row + col * r_pixel + r_start
    residual_offsets = pixel[:, None] + map_[None, :]
    total = epilogue(total, mask, scale, shift, residual, residual_offsets, map_, column_mask, ACTIVATION, alpha)
    pixel = image * y_image + row.to(tl.int64) * y_row + col * y_pixel + y_start
    tl.store(y + pixel[:, None] + map_[None, :], total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def diagonal_sweep_kernel(
    x, w, y, scale, shift, residual, x_scale, x_shift,
    points, rows, cols, band, in_h, in_w,  # columns of all images; an image of y; rows of a program; an image of x
    depth, columns, tile_depth, tile_columns, all_depth, all_columns,  # as in diagonal_kernel
    x_image, x_row, x_pixel, y_image, y_row, y_pixel, r_image, r_row, r_pixel,  # UNIT elements
    w_start, w_group, w_column, w_tap_h, w_tap_w, w_depth,  # elements
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, sweeps, alpha, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STEP: tl.constexpr,
    ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr,
    SEVERAL: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`band` rows of y, `sweeps` apart, of a tile of columns x the maps of some groups; grid as depthwise's sweep."""
    x_image, x_row, x_pixel = x_image * UNIT, x_row * UNIT, x_pixel * UNIT
    y_image, y_row, y_pixel = y_image * UNIT, y_row * UNIT, y_pixel * UNIT
    r_image, r_row, r_pixel = r_image * UNIT, r_row * UNIT, r_pixel * UNIT
    tile_depth, tile_columns = tile_depth * UNIT, tile_columns * UNIT
    all_depth, all_columns = all_depth * UNIT, all_columns * UNIT
    tiles = tl.cdiv(all_columns, tile_columns)
    first_k = tl.program_id(0) % tiles * tile_depth
    first_column = tl.program_id(0) % tiles * tile_columns
    column = tl.arange(0, BLOCK_N)
    column_mask = (column < tile_columns) & (first_column + column < all_columns)
    column_group = column // columns
    group = ((first_column + column) // columns).to(tl.int64)
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
        at = (image * r_image + row * r_row + col * r_pixel)[:, None] + (first_column + column)[None, :]
        total = epilogue(total, mask, scale, shift, residual, at, first_column + column, column_mask, ACTIVATION, alpha)
        at = (image * y_image + row * y_row + col * y_pixel)[:, None] + (first_column + column)[None, :]
        tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)
        sums = (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),) + sums[: REACH - 1]

    if SEVERAL:
        if tl.min(tl.min(finite.to(tl.int32), axis=1), axis=0) == 0:
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
                at = (image * r_image + row * r_row + col * r_pixel)[:, None] + (first_column + column)[None, :]
                total = epilogue(
                    total, mask, scale, shift, residual, at, first_column + column, column_mask, ACTIVATION, alpha
                )
                at = (image * y_image + row * y_row + col * y_pixel)[:, None] + (first_column + column)[None, :]
                tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def diagonal_wgrad_kernel(
    dy, x, slices, bias_slices, x_scale, x_shift,
    points, rows, cols, per_split,  # output pixels: all, of an image, of one split (a multiple of BLOCK_P)
    in_h, in_w, c, k,  # input image; maps of a group
    tile_c, tile_k, all_c, all_k,  # maps of a tile's groups, and of all, in UNIT maps
    dy_image, dy_row, dy_pixel, x_image, x_row, x_pixel,  # UNIT elements
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, taps_h, taps_w, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, X_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """TAPS_H x TAPS_W taps of the filters of some groups; grid (tiles of groups and maps, splits, tap blocks)."""
    x_image, x_row, x_pixel = x_image * UNIT, x_row * UNIT, x_pixel * UNIT
    dy_image, dy_row, dy_pixel = dy_image * UNIT, dy_row * UNIT, dy_pixel * UNIT
    tile_c, tile_k, all_c, all_k = tile_c * UNIT, tile_k * UNIT, all_c * UNIT, all_k * UNIT
    tiles_m, tiles_n = tl.cdiv(tile_k, BLOCK_M), tl.cdiv(tile_c, BLOCK_N)
    tile_m = tl.program_id(0) % tiles_m
    tile_n = tl.program_id(0) // tiles_m % tiles_n
    first_k = tl.program_id(0) // (tiles_m * tiles_n) * tile_k
    first_c = tl.program_id(0) // (tiles_m * tiles_n) * tile_c
    split = tl.program_id(1)
    tap_blocks_w = tl.cdiv(taps_w, TAPS_W)
    tap_h = tl.program_id(2) // tap_blocks_w * TAPS_H
    tap_w = tl.program_id(2) % tap_blocks_w * TAPS_W

    k_map = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    c_map = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k_mask = (k_map < tile_k) & (first_k + k_map < all_k)
    c_mask = (c_map < tile_c) & (first_c + c_map < all_c)

    sums = ()
    for _ in tl.static_range(TAPS_H * TAPS_W):
        sums = sums + (tl.zeros((BLOCK_M, BLOCK_N), tl.float32),)
    bias = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, points), BLOCK_P):
        point = start + tl.arange(0, BLOCK_P)
        image = (point // (rows * cols)).to(tl.int64)
        row = point // cols % rows
        col = point % cols
        pixel = image * dy_image + row.to(tl.int64) * dy_row + col * dy_pixel + first_k
        mask = (point < points)[:, None] & k_mask[None, :]
        left = tl.load(dy + pixel[:, None] + k_map[None, :], mask=mask, other=0.0)
        if bias_slices is not None:
            bias += tl.sum(left.to(tl.float32), axis=0)
        left = tl.trans(left)
        added = ()
        for r in tl.static_range(TAPS_H):
            h = row * stride_h - pad_top + (tap_h + r) * dilation_h
            for s in tl.static_range(TAPS_W):
                w_ = col * stride_w - pad_left + (tap_w + s) * dilation_w
                inside = (point < points) & (h >= 0) & (h < in_h) & (w_ >= 0) & (w_ < in_w)
                mask = inside[:, None] & c_mask[None, :]
                pixel = image * x_image + h.to(tl.int64) * x_row + w_.to(tl.int64) * x_pixel + first_c
                right = tl.load(x + pixel[:, None] + c_map[None, :], mask=mask, other=0.0)
                right = prologue(right, mask, x_scale, x_shift, first_c + c_map, c_mask, X_ACTIVATION, x_alpha)
                added = added + (tl.dot(left, right, sums[r * TAPS_W + s], input_precision=PRECISION),)
        sums = added

    out = ((split.to(tl.int64) * all_k + first_k + k_map) * (taps_h * taps_w))[:, None] * c + (c_map % c)[None, :]
    mask = ((k_map // k)[:, None] == (c_map // c)[None, :]) & k_mask[:, None] & c_mask[None, :]
    for r in tl.static_range(TAPS_H):
        for s in tl.static_range(TAPS_W):
            tap = (tap_h + r) * taps_w + tap_w + s
            tl.store(slices + (out + tap * c), sums[r * TAPS_W + s], mask=mask & (tap_w + s < taps_w))
    if bias_slices is not None:
        if (tl.program_id(2) == 0) & (tile_n == 0):
            tl.store(bias_slices + split.to(tl.int64) * all_k + first_k + k_map, bias, mask=k_mask)


def _together(p: ConvProblem, maps_of_y: int, maps_of_x: int) -> int:
    """How many groups a tile of so many maps takes."""
    return max(1, min(maps_of_y // (p.k // p.groups), maps_of_x // (p.c // p.groups), p.groups))


def _launches(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    """fprop and dgrad."""
    fprop = p.direction == "fprop"
    block_m, block_n, block_k = config.tile
    together = _together(p, *((block_n, block_k) if fprop else (block_k, block_n)))
    if _swept(p, config):
        return [_sweep(p, o, config, together)]
    launches = []
    for lattice in (fprop_launches if fprop else dgrad_launches)(p, o, config):
        depth, columns, points = (lattice.arguments[name] for name in ("depth", "columns", "points"))
        arguments = lattice.arguments | {
            "tile_depth": together * depth, "tile_columns": together * columns,
            "all_depth": p.groups * depth, "all_columns": p.groups * columns, "SEVERAL": together > 1,
        }  # fmt: skip
        grid = (cdiv(p.groups, together) * cdiv(together * columns, block_n) * cdiv(points, block_m),)
        arguments = in_units(arguments, "y_start", "r_start", "tile_depth", "tile_columns", "all_depth", "all_columns")
        launches.append(Launch(diagonal_kernel, grid, arguments, config))
    return launches


def _swept(p: ConvProblem, config: Config) -> bool:
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


def _sweep(p: ConvProblem, o: Operands, config: Config, together: int) -> Launch:
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
        "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": p.n * cols, "rows": rows, "cols": cols, "band": band, "in_h": read.shape[2], "in_w": read.shape[3],
        "depth": depth, "columns": columns, "tile_depth": together * depth, "tile_columns": together * columns,
        "all_depth": p.groups * depth, "all_columns": p.groups * columns,
        "w_start": w_start, "w_group": p.k // p.groups * o.w.stride(0), "w_column": w_column, "w_tap_h": w_tap_h,
        "w_tap_w": w_tap_w, "w_depth": w_depth,
        "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": top, "pad_left": left,
        "dilation_h": p.dilation[0], "dilation_w": p.dilation[1], "sweeps": sweeps,
        "alpha": p.epilogue.alpha, "x_alpha": p.prologue.alpha,
        "TAPS_H": p.r, "TAPS_W": p.s, "STEP": step,
        "ACTIVATION": p.epilogue.activation if fprop else "none",
        "X_ACTIVATION": p.prologue.activation if fprop else "none",
        "SEVERAL": together > 1, "PRECISION": o.precision,
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
    }  # fmt: skip
    for prefix, tensor in (("x", read), ("y", written), ("r", o.residual)):
        strides = (0, 0, 0) if tensor is None else image_strides(tensor)
        arguments |= dict(zip((f"{prefix}_image", f"{prefix}_row", f"{prefix}_pixel"), strides, strict=True))
    arguments = in_units(arguments, "tile_depth", "tile_columns", "all_depth", "all_columns")
    grid = (tiles, sweeps * cdiv(cdiv(rows, sweeps), band))
    return Launch(diagonal_sweep_kernel, grid, arguments, config)


def _wgrad(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    block_m, block_n, block_p = config.tile
    k, c, points = p.k // p.groups, p.c // p.groups, p.n * p.p * p.q
    together = _together(p, block_m, block_n)
    tiles = cdiv(p.groups, together) * cdiv(together * k, block_m) * cdiv(together * c, block_n)
    one_pass = p.r * p.s <= _ONE_PASS_TAPS and block_m * block_n <= _ONE_PASS_TILE and p.dtype != "f32"
    taps_h, taps_w = (p.r, p.s) if one_pass else (1, min(p.s, _SPLIT_TAPS))
    tap_blocks = cdiv(p.r, taps_h) * cdiv(p.s, taps_w)
    per_split = max(cdiv(points, cdiv(_PROGRAMS, tiles * tap_blocks)), min(points, _SPLIT_POINTS))
    per_split = block_p * cdiv(per_split, block_p)
    splits = cdiv(points, per_split)
    slices = torch.empty(splits, o.w.numel(), dtype=torch.float32, device=o.w.device)
    bias_slices = None if o.dbias is None else torch.empty(splits, p.k, dtype=torch.float32, device=o.w.device)
    dy_image, dy_row, dy_pixel = image_strides(o.y)
    x_image, x_row, x_pixel = image_strides(o.x)
    arguments: dict[str, Any] = {
        "dy": o.y, "x": o.x, "slices": slices, "bias_slices": bias_slices, "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": points, "rows": p.p, "cols": p.q, "per_split": per_split,
        "in_h": p.h, "in_w": p.w,
        "c": c, "k": k, "tile_c": together * c, "tile_k": together * k, "all_c": p.c, "all_k": p.k,
        "dy_image": dy_image, "dy_row": dy_row, "dy_pixel": dy_pixel,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": p.padding[0], "pad_left": p.padding[1],
        "dilation_h": p.dilation[0], "dilation_w": p.dilation[1], "taps_h": p.r, "taps_w": p.s,
        "x_alpha": p.prologue.alpha,
        "TAPS_H": taps_h, "TAPS_W": taps_w, "X_ACTIVATION": p.prologue.activation, "PRECISION": o.precision,
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_P": block_p,
    }  # fmt: skip
    grid = (tiles, splits, tap_blocks)
    arguments = in_units(arguments, "tile_c", "tile_k", "all_c", "all_k")
    launches = [Launch(diagonal_wgrad_kernel, grid, arguments, config), add_slices(slices, o.w)]
    return launches if bias_slices is None else [*launches, add_slices(bias_slices, o.dbias)]


def _pick(p: ConvProblem, chip: Chip) -> Config:
    """The tile with the fewest maps that holds a group of both tensors, else the one with the most."""
    written, read = (p.k, p.c) if p.direction == "fprop" else (p.c, p.k)
    n, k = written // p.groups, read // p.groups
    if chip.capability // 10 == 10 and not any(_swept(p, config) for config in CONFIGS):
        return CONFIGS[-1]  # Triton 3.7.1 compiles no maximum over sums in tensor memory, where larger tiles have them
    holding = (
        config
        for config in CONFIGS[:-1]
        if config.tile[1] >= n and config.tile[2] >= k and _swept(p, config) == (config.tile[0] == 32)
    )
    return min(holding, key=lambda config: config.tile[1] * config.tile[2], default=CONFIGS[-2])


def _pick_wgrad(p: ConvProblem, chip: Chip) -> Config:
    k, c = p.k // p.groups, p.c // p.groups
    holding = (config for config in WGRAD_CONFIGS[:-1] if config.tile[0] >= k and config.tile[1] >= c)
    return min(holding, key=lambda config: config.tile[0] * config.tile[1], default=WGRAD_CONFIGS[-2])


def _why_not(p: ConvProblem) -> str:
    return "" if p.groups > 1 else "needs more than one group"


def _rather_not(p: ConvProblem) -> str:
    if p.groups == p.c == p.k:
        return "one map a group is the depthwise kernel's"
    if max(p.c, p.k) // p.groups >= 64:
        return "groups of 64 maps and more fill the dense kernel's tiles"
    return ""


KERNELS = (
    TritonKernel("grouped", "fprop", CONFIGS, _why_not, _rather_not, _pick, _launches),
    TritonKernel("grouped", "dgrad", CONFIGS, _why_not, _rather_not, _pick, _launches),
    TritonKernel("grouped", "wgrad", WGRAD_CONFIGS, _why_not, _rather_not, _pick_wgrad, _wgrad),
)
