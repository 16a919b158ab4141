"""Implicit GEMM: a convolution as a matrix product whose left side is never written down.

fprop   y[n,p,q,k]  = sum over r,s,c of x[n, p*u + r*l - pad, q*u + s*l - pad, c] * w[k,r,s,c]
dgrad   dx[n,h,w,c] = sum over r,s,k of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, k] * w[k,r,s,c]
wgrad   dw[k,r,s,c] = sum over n,p,q of dy[n,p,q,k] * x[n, p*u + r*l - pad, q*u + s*l - pad, c]

x and y NHWC with a pixel stride, w KRSC; stride u, dilation l, groups as a grid axis.

fprop and dgrad are one kernel over a *lattice*: output pixels a fixed step apart that all read the same taps, each tap
a fixed step of input pixels from the one before. fprop is one lattice. dgrad has one per residue of (h, w) modulo the
stride: within it the taps that divide evenly are the same for every pixel, so no multiplication by an inserted zero is
made (stride 2: four launches that do a quarter of the work each).

wgrad reduces over all pixels, so pixels are split over the grid; each split writes its sum to a float32 slice and a
second kernel adds the slices in order. No atomics: the same bits from every run.

Bound: flops = 2*N*P*Q*K*R*S*C/groups against the tensor cores' rate; bytes = x + w + y once if L2 holds a row of tiles.
With BLOCK_M x BLOCK_N = 128x128 and bf16 a tile does 64 flop per byte that it loads, twice what L2 can feed on an H200.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.configs import GEMM_CONFIGS, WGRAD_CONFIGS, pick_gemm, pick_wgrad, wgrad_splits
from cnnkern.triton_kernels.fused import epilogue, prologue, write
from cnnkern.triton_kernels.launch import Config, Launch, TritonKernel, cdiv
from cnnkern.triton_kernels.pixels import multiple, vector_of
from cnnkern.triton_kernels.slices import added, slices_of
from cnnkern.triton_kernels.statistics import empty_partials, store_statistics


@triton.jit
def lattice_kernel(
    x, w, y, scale, shift, residual, beside, x_scale, x_shift,
    points, rows, cols,  # of the lattice, over all images; its size in one image
    in_h, in_w, depth, columns, all_columns, per_group,  # image; maps of a group of x, of y, of all y, of a shuffle's
    x_image, x_row, x_pixel, y_image, y_row, y_pixel, y_start,  # elements; y's steps are the lattice's
    r_image, r_row, r_pixel, r_start,
    w_start, w_group, w_column, w_tap_h, w_tap_w, w_depth,  # elements
    in_step_h, in_step_w, off_h, off_w, tap_h, tap_w,  # input pixels: per lattice step, of the first tap, per tap
    alpha, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr,
    SHUFFLE: tl.constexpr, PRECISION: tl.constexpr, FPROP: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    stats=None,
):  # fmt: skip
    """One tile of output pixels x maps, over all taps; grid (groups x tiles,). stats: see fprop_with_statistics.

    The groups of a tile are neighbours: shuffled, they write every SHUFFLE-th map, and L2 puts whole lines together.
    """
    depth, columns, x_image = multiple(depth, VECTOR), multiple(columns, VECTOR), multiple(x_image, VECTOR)
    x_row, x_pixel, y_image = multiple(x_row, VECTOR), multiple(x_pixel, VECTOR), multiple(y_image, VECTOR)
    y_row, y_pixel, y_start = multiple(y_row, VECTOR), multiple(y_pixel, VECTOR), multiple(y_start, VECTOR)
    r_image, r_row, r_pixel = multiple(r_image, VECTOR), multiple(r_row, VECTOR), multiple(r_pixel, VECTOR)
    w_start, w_group, r_start = multiple(w_start, VECTOR), multiple(w_group, VECTOR), multiple(r_start, VECTOR)
    w_tap_h, w_tap_w = multiple(w_tap_h, VECTOR), multiple(w_tap_w, VECTOR)
    if FPROP:
        w_column = multiple(w_column, VECTOR)
    else:
        w_depth = multiple(w_depth, VECTOR)
    groups = all_columns // columns
    group = (tl.program_id(0) % groups).to(tl.int64)
    tile = tl.program_id(0) // groups
    # Tiles next to each other take the same columns of up to 8 tiles of points, so that L2 serves w and x again.
    tiles_m, tiles_n = tl.cdiv(points, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    band = tile // (8 * tiles_n)
    height = tl.minimum(tiles_m - band * 8, 8)
    tile_m = band * 8 + tile % (8 * tiles_n) % height
    tile_n = tile % (8 * tiles_n) // height

    point = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    image = (point // (rows * cols)).to(tl.int64)
    row = point // cols % rows
    col = point % cols
    h0 = row * in_step_h + off_h
    w0 = col * in_step_w + off_w
    x_base = image * x_image + group * depth
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = column < columns
    w_base = w_start + group * w_group + column.to(tl.int64) * w_column

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    blocks = tl.cdiv(depth, BLOCK_K)
    for step in range(TAPS_H * TAPS_W * blocks):
        tap = step // blocks
        k = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        k_mask = k < depth
        h = h0 + tap // TAPS_W * tap_h
        w_ = w0 + tap % TAPS_W * tap_w
        inside = (point < points) & (h >= 0) & (h < in_h) & (w_ >= 0) & (w_ < in_w)
        offsets = x_base + h.to(tl.int64) * x_row + w_.to(tl.int64) * x_pixel
        mask = inside[:, None] & k_mask[None, :]
        left = tl.load(x + offsets[:, None] + k[None, :], mask=mask, other=0.0)
        left = prologue(left, mask, x_scale, x_shift, group * depth + k, k_mask, X_ACTIVATION, x_alpha)
        tap_offset = tap // TAPS_W * w_tap_h + tap % TAPS_W * w_tap_w
        right = tl.load(
            w + (w_base + tap_offset)[None, :] + (k.to(tl.int64) * w_depth)[:, None],
            mask=k_mask[:, None] & column_mask[None, :],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION)

    map_ = group * columns + column
    mask = (point < points)[:, None] & column_mask[None, :]
    pixel = image * r_image + row.to(tl.int64) * r_row + col * r_pixel + r_start
    residual_offsets = pixel[:, None] + map_[None, :]
    total = epilogue(total, mask, scale, shift, residual, residual_offsets, map_, column_mask, ACTIVATION, alpha)
    pixel = image * y_image + row.to(tl.int64) * y_row + col * y_pixel + y_start
    out = write(y, pixel, total, mask, map_, all_columns, beside, residual_offsets, per_group, SHUFFLE)
    if stats is not None:
        # The tile is read back, after a barrier: as the store lays it out, its sums take far fewer registers.
        tl.debug_barrier()
        tile = tl.load(out, mask=mask, other=0.0)
        store_statistics(stats, tile_m, tile, mask, all_columns, map_, column_mask)


@triton.jit
def wgrad_kernel(
    dy, x, slices, bias_slices, x_scale, x_shift,
    points, rows, cols, per_split,  # output pixels: all, of an image, of one split (a multiple of BLOCK_P)
    in_h, in_w, c, k,  # maps of a group
    dy_image, dy_row, dy_pixel, x_image, x_row, x_pixel, slice_size, slice_k,
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, x_alpha,
    TAPS: tl.constexpr, TAPS_W: tl.constexpr, X_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One tile of maps of y x maps of x, for one tap and split; grid (tiles x taps x groups, splits)."""
    c, k = multiple(c, VECTOR), multiple(k, VECTOR)
    slice_k, slice_size = multiple(slice_k, VECTOR), multiple(slice_size, VECTOR)
    dy_image, dy_row, dy_pixel = multiple(dy_image, VECTOR), multiple(dy_row, VECTOR), multiple(dy_pixel, VECTOR)
    x_image, x_row, x_pixel = multiple(x_image, VECTOR), multiple(x_row, VECTOR), multiple(x_pixel, VECTOR)
    tiles_m, tiles_n = tl.cdiv(k, BLOCK_M), tl.cdiv(c, BLOCK_N)
    tile_m = tl.program_id(0) % tiles_m
    tile_n = tl.program_id(0) // tiles_m % tiles_n
    tap = tl.program_id(0) // (tiles_m * tiles_n) % TAPS
    group = (tl.program_id(0) // (tiles_m * tiles_n * TAPS)).to(tl.int64)
    split = tl.program_id(1)

    k_map = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    c_map = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k_mask, c_mask = k_map < k, c_map < c
    tap_h = tap // TAPS_W * dilation_h - pad_top
    tap_w = tap % TAPS_W * dilation_w - pad_left

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    bias = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, points), BLOCK_P):
        point = start + tl.arange(0, BLOCK_P)
        image = (point // (rows * cols)).to(tl.int64)
        row = point // cols % rows
        col = point % cols
        pixel = image * dy_image + row.to(tl.int64) * dy_row + col * dy_pixel + group * k
        dy_mask = (point < points)[:, None] & k_mask[None, :]
        left = tl.load(dy + pixel[:, None] + k_map[None, :], mask=dy_mask, other=0.0)
        h = row * stride_h + tap_h
        w_ = col * stride_w + tap_w
        inside = (point < points) & (h >= 0) & (h < in_h) & (w_ >= 0) & (w_ < in_w)
        x_mask = inside[:, None] & c_mask[None, :]
        pixel = image * x_image + h.to(tl.int64) * x_row + w_.to(tl.int64) * x_pixel + group * c
        right = tl.load(x + pixel[:, None] + c_map[None, :], mask=x_mask, other=0.0)
        right = prologue(right, x_mask, x_scale, x_shift, group * c + c_map, c_mask, X_ACTIVATION, x_alpha)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
        if bias_slices is not None:
            bias += tl.sum(left.to(tl.float32), axis=0)

    out = split.to(tl.int64) * slice_size + (group * k + k_map) * slice_k + tap * c
    tl.store(slices + out[:, None] + c_map[None, :], total, mask=k_mask[:, None] & c_mask[None, :])
    if bias_slices is not None:
        if (tap == 0) & (tile_n == 0):
            maps = slice_size // slice_k
            tl.store(bias_slices + split * maps + group * k + k_map, bias, mask=k_mask)


def image_strides(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Elements from image to image, row to row and pixel to pixel of an (N, C, H, W) tensor, 0 where there is but one.

    torch leaves the stride of such an axis as it happened to be: if odd, the compiler would load element by element.
    """
    image, row, pixel = (tensor.stride(axis) if tensor.shape[axis] > 1 else 0 for axis in (0, 2, 3))
    return image, row, pixel


def scattering(config: Config) -> Config:
    """The config with at most 32 sums to a thread: each has an address of its own, and registers for it."""
    rows, *maps = config.tile
    return replace(config, tile=(min(rows, 32 * 32 * config.warps // maps[0]), *maps))


def fprop_launches(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    """What computes y."""
    return [_in_vectors(launch, p) for launch in fprop_lattices(p, o, config)]


def dgrad_launches(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    """What computes dx."""
    return [_in_vectors(launch, p) for launch in dgrad_lattices(p, o, config)]


def _in_vectors(launch: Launch, p: ConvProblem) -> Launch:
    """The lattice's launch, told how many maps can be read at once."""
    names = ("depth", "columns", *(f"{tensor}_{step}" for tensor in "xyr" for step in ("image", "row", "pixel")))
    vector = vector_of(*(launch.arguments[name] for name in names))
    return replace(launch, arguments={**launch.arguments, "VECTOR": vector, "FPROP": p.direction == "fprop"})


def fprop_lattices(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    """fprop's one lattice."""
    top, left, _, _ = p.padding
    w_column, w_depth, w_row, w_col = o.w.stride()
    return [
        _lattice_launch(
            p, o, config, o.x, o.y, (p.p, p.q), (1, 1), (0, 0), p.stride, (-top, -left), p.dilation, (p.r, p.s),
            {"w_start": 0, "w_column": w_column, "w_depth": w_depth, "w_tap_h": w_row, "w_tap_w": w_col},
        )
    ]  # fmt: skip


def fprop_with_statistics(p: ConvProblem, o: Operands, config: Config) -> tuple[Launch, torch.Tensor]:
    """The launch of fprop that also writes y's statistics, a partial of each tile of pixels, and those partials."""
    (launch,) = fprop_launches(p, o, config)
    stats = empty_partials(p.n * p.p * p.q, config.tile[0], p.k, o.y.device)
    return replace(launch, arguments={**launch.arguments, "stats": stats}), stats


def dgrad_lattices(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    """dgrad's lattices, one for each residue of (h, w) modulo the stride."""
    launches = []
    w_depth, w_column, w_row, w_col = o.w.stride()
    for h0 in range(min(p.stride[0], p.h)):
        for w0 in range(min(p.stride[1], p.w)):
            axes = [
                _residue(first, size, *rest)
                for first, size, *rest in (
                    (h0, p.h, p.r, p.padding[0], p.stride[0], p.dilation[0]),
                    (w0, p.w, p.s, p.padding[1], p.stride[1], p.dilation[1]),
                )
            ]
            (rows, off_h, tap_h, first_r, step_r, taps_r), (cols, off_w, tap_w, first_s, step_s, taps_s) = axes
            weights = {
                "w_start": first_r * w_row + first_s * w_col, "w_column": w_column, "w_depth": w_depth,
                "w_tap_h": step_r * w_row, "w_tap_w": step_s * w_col,
            }  # fmt: skip
            launches.append(
                _lattice_launch(
                    p, o, config, o.y, o.x, (rows, cols), p.stride, (h0, w0), (1, 1), (off_h, off_w), (tap_h, tap_w),
                    (taps_r, taps_s), weights,
                )
            )  # fmt: skip
    return launches


def _residue(first: int, size: int, taps: int, pad: int, stride: int, dilation: int) -> tuple[int, ...]:
    """The lattice of input pixels first, first + stride, ... along one axis, in dgrad.

    Tap r reaches dy pixel (h + pad - r * dilation) / stride where that is whole: every step-th tap from the first.
    Returns its number of pixels, the dy pixel of its first pixel's first tap, dy pixels from tap to tap, and the first
    tap, the step between taps and their number.
    """
    pixels = cdiv(size - first, stride)
    step = stride // math.gcd(stride, dilation)
    whole = [r for r in range(min(step, taps)) if (first + pad - r * dilation) % stride == 0]
    if not whole:
        return pixels, 0, 0, 0, 0, 0
    first_pixel = (first + pad - whole[0] * dilation) // stride
    return pixels, first_pixel, -(step * dilation // stride), whole[0], step, cdiv(taps - whole[0], step)


def _lattice_launch(
    p: ConvProblem, o: Operands, config: Config, read: torch.Tensor, written: torch.Tensor, size: tuple[int, int],
    out_step: tuple[int, int], out_start: tuple[int, int], in_step: tuple[int, int], offset: tuple[int, int],
    tap_step: tuple[int, int], taps: tuple[int, int], weights: dict[str, int],
) -> Launch:  # fmt: skip
    """The launch for one lattice of `size` pixels of `written`."""
    config = scattering(config) if o.shuffle > 1 else config
    block_m, block_n, block_k = config.tile
    points, columns, depth = p.n * size[0] * size[1], written.shape[1] // p.groups, read.shape[1] // p.groups

    def places(tensor: torch.Tensor | None, prefix: str) -> dict[str, int]:
        image, row, pixel = (0, 0, 0) if tensor is None else image_strides(tensor)
        return {
            f"{prefix}_image": image, f"{prefix}_row": row * out_step[0], f"{prefix}_pixel": pixel * out_step[1],
            f"{prefix}_start": out_start[0] * row + out_start[1] * pixel,
        }  # fmt: skip

    # As in image_strides, for an axis of one tap.
    weights = weights | {f"w_tap_{axis}": 0 for axis, count in zip("hw", taps, strict=True) if count == 1}
    x_image, x_row, x_pixel = image_strides(read)
    fprop = p.direction == "fprop"
    arguments: dict[str, Any] = {
        "x": read, "w": o.w, "y": written, "scale": o.scale, "shift": o.shift, "residual": o.residual,
        "beside": o.beside, "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": points, "rows": size[0], "cols": size[1],
        "in_h": read.shape[2], "in_w": read.shape[3], "depth": depth, "columns": columns,
        "all_columns": p.groups * columns, "per_group": o.per_group,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        **places(written, "y"), **places(o.residual if o.beside is None else o.beside, "r"),
        **weights, "w_group": p.k // p.groups * o.w.stride(0),
        "in_step_h": in_step[0], "in_step_w": in_step[1], "off_h": offset[0], "off_w": offset[1],
        "tap_h": tap_step[0], "tap_w": tap_step[1],
        "alpha": p.epilogue.alpha, "x_alpha": p.prologue.alpha,
        "TAPS_H": taps[0], "TAPS_W": taps[1],
        "ACTIVATION": p.epilogue.activation if fprop else "none",
        "X_ACTIVATION": p.prologue.activation if fprop else "none",
        "SHUFFLE": o.shuffle, "PRECISION": o.precision, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
    }  # fmt: skip
    grid = (p.groups * cdiv(points, block_m) * cdiv(columns, block_n),)
    return Launch(lattice_kernel, grid, arguments, config)


def _wgrad(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    block_m, block_n, block_p = config.tile
    k, c, points = p.k // p.groups, p.c // p.groups, p.n * p.p * p.q
    tiles = cdiv(k, block_m) * cdiv(c, block_n) * p.r * p.s
    per_split = block_p * cdiv(cdiv(points, block_p), wgrad_splits(points, tiles * p.groups, block_p))
    splits = cdiv(points, per_split)
    dy_image, dy_row, dy_pixel = image_strides(o.y)
    x_image, x_row, x_pixel = image_strides(o.x)
    arguments: dict[str, Any] = {
        "dy": o.y, "x": o.x, **slices_of(o, splits), "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": points, "rows": p.p, "cols": p.q, "per_split": per_split,
        "in_h": p.h, "in_w": p.w, "c": c, "k": k,
        "dy_image": dy_image, "dy_row": dy_row, "dy_pixel": dy_pixel,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        "slice_size": o.w.numel(), "slice_k": p.r * p.s * c,
        "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": p.padding[0], "pad_left": p.padding[1],
        "dilation_h": p.dilation[0], "dilation_w": p.dilation[1], "x_alpha": p.prologue.alpha,
        "TAPS": p.r * p.s, "TAPS_W": p.s, "X_ACTIVATION": p.prologue.activation, "PRECISION": o.precision,
        "VECTOR": vector_of(c, k, dy_image, dy_row, dy_pixel, x_image, x_row, x_pixel),
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_P": block_p,
    }  # fmt: skip
    return added(Launch(wgrad_kernel, (tiles * p.groups, splits), arguments, config), o)


def _why_not(p: ConvProblem) -> str:
    return ""


def _rather_not(p: ConvProblem) -> str:
    few = min(p.c, p.k) // p.groups < 8
    return "with fewer than 8 maps a group most of a tile multiplies nothing" if few else ""


KERNELS = (
    TritonKernel(
        "implicit_gemm", "fprop", GEMM_CONFIGS, _why_not, _rather_not, pick_gemm, fprop_launches, shuffles=True
    ),
    TritonKernel("implicit_gemm", "dgrad", GEMM_CONFIGS, _why_not, _rather_not, pick_gemm, dgrad_launches),
    TritonKernel("implicit_gemm", "wgrad", WGRAD_CONFIGS, _why_not, _rather_not, pick_wgrad, _wgrad),
)
