"""The weight gradient of grouped convolution with few maps a group: products of which the diagonal blocks are stored.

wgrad   dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n, p*u + r*l - pad, q*u + s*l - pad, group(k) * C/g + c]

Layouts are those of grouped.py. A tile takes as many whole groups as fit its maps of x and of y. All taps of a 3x3 go
in one pass, with dy loaded once, where their sums fit the registers, else up to 4 taps of one filter row. Pixels are
split over the grid (slices.py).

Bound: x + dy once; 2*R*S*BLOCK_N flops per element of dy, the wasted ones included.
"""

# mypy: disable-error-code="assignment, no-untyped-def, var-annotated"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.depthwise import in_units
from cnnkern.triton_kernels.fused import prologue
from cnnkern.triton_kernels.grouped import groups_together, rather_not, why_not
from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Chip, Config, Launch, TritonKernel, cdiv
from cnnkern.triton_kernels.pixels import multiple
from cnnkern.triton_kernels.slices import added, slices_of

# BLOCK_M maps of y x BLOCK_N maps of x x BLOCK_P pixels. Loads are not staged: the taps of a tile find x in L1.
CONFIGS = (
    Config((16, 16, 32), 1, 1),
    Config((32, 16, 32), 2, 1),
    Config((16, 32, 32), 4, 1),
    Config((32, 32, 32), 4, 1),
    Config((16, 16, 16), 1, 1),
)

# Programs are for 132 multiprocessors, whatever the chip, so that bits do not vary.
_ONE_PASS_TAPS = 9
_ONE_PASS_TILE = 512
_SPLIT_TAPS = 4  # that a program takes of one filter row where the sums of all do not fit its registers
_PROGRAMS = 12 * 132
_SPLIT_POINTS = 1024  # that a split has at least, or its slice would be a good part of what it reads


@triton.jit
def diagonal_wgrad_kernel(
    dy, x, slices, bias_slices, x_scale, x_shift,
    points, rows, cols, per_split,  # output pixels: all, of an image, of one split (a multiple of BLOCK_P)
    in_h, in_w, c, k,  # input image; maps of a group
    tile_c, tile_k, all_c, all_k,  # maps of a tile's groups, and of all, in UNIT maps
    dy_image, dy_row, dy_pixel, x_image, x_row, x_pixel,  # rows and pixels in UNIT elements
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, taps_h, taps_w, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, X_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """TAPS_H x TAPS_W taps of the filters of some groups; grid (tiles of groups and maps, splits, tap blocks)."""
    x_image, x_row, x_pixel = multiple(x_image, UNIT), x_row * UNIT, x_pixel * UNIT
    dy_image, dy_row, dy_pixel = multiple(dy_image, UNIT), dy_row * UNIT, dy_pixel * UNIT
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


def _wgrad(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    block_m, block_n, block_p = config.tile
    k, c, points = p.k // p.groups, p.c // p.groups, p.n * p.p * p.q
    together = groups_together(p, block_m, block_n)
    tiles = cdiv(p.groups, together) * cdiv(together * k, block_m) * cdiv(together * c, block_n)
    one_pass = p.r * p.s <= _ONE_PASS_TAPS and block_m * block_n <= _ONE_PASS_TILE and p.dtype != "f32"
    taps_h, taps_w = (p.r, p.s) if one_pass else (1, min(p.s, _SPLIT_TAPS))
    tap_blocks = cdiv(p.r, taps_h) * cdiv(p.s, taps_w)
    per_split = max(cdiv(points, cdiv(_PROGRAMS, tiles * tap_blocks)), min(points, _SPLIT_POINTS))
    per_split = block_p * cdiv(per_split, block_p)
    splits = cdiv(points, per_split)
    dy_image, dy_row, dy_pixel = image_strides(o.y)
    x_image, x_row, x_pixel = image_strides(o.x)
    arguments: dict[str, Any] = {
        "dy": o.y, "x": o.x, **slices_of(o, splits), "x_scale": o.x_scale, "x_shift": o.x_shift,
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
    return added(Launch(diagonal_wgrad_kernel, grid, arguments, config), o)


def _pick(p: ConvProblem, chip: Chip) -> Config:
    k, c = p.k // p.groups, p.c // p.groups
    holding = (config for config in CONFIGS[:-1] if config.tile[0] >= k and config.tile[1] >= c)
    return min(holding, key=lambda config: config.tile[0] * config.tile[1], default=CONFIGS[-2])


KERNELS = (TritonKernel("grouped", "wgrad", CONFIGS, why_not, rather_not, _pick, _wgrad),)
