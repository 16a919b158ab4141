"""Depthwise convolution: one filter per map, so the arithmetic of a copy and the reads of a stencil.

fprop   y[n,p,q,c]  = sum over r,s of x[n, p*u + r*l - pad, q*u + s*l - pad, c] * w[c,r,s]
dgrad   dx[n,h,w,c] = sum over r,s of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, c] * w[c,r,s]

x and y NHWC with a pixel stride, w [C][R][S]; stride u, dilation l. Maps are in the lanes, 16 bytes of them a load;
the columns of all images stand in one line, of which a tile takes BLOCK_P, so that 7x7 pixels fill tiles as well.

Two kernels:

- sweep: fprop, and dgrad at stride 1 as fprop with the filter turned around, up to 7 filter rows. A program walks
  down ROWS rows of y and holds the sums of the rows that the current row of x reaches: each x is loaded and widened
  once per filter *column* and added R times. 3x3: 3 loads from L1 (the first from memory) and 9 FMA per element.
- gather: any filter, stride and dilation in both directions; a program computes a tile for one residue of (h, w)
  modulo dgrad's stride, whose taps are the same for every pixel, and skips the others. The residues of a tile are
  neighbours in the grid, so that dy comes from memory once. R * S / residues loads and FMA per element.
A dilation is taken apart into as many interleaved sweeps, in which the taps are neighbours.

Bound: x + y read and written once. In bf16 at 4.3 TB/s that is 1.07e12 elements/s: 19 TFLOP/s for 3x3, 54 for 5x5, 105
for 7x7, where the FMA units (67 TFLOP/s) are the bound at 64% of a copy. Issue slots, 128 lanes a clock in each of 132
multiprocessors at 1.75 GHz, with one conversion of x to float32 per filter column: 12 per element for 3x3, 30 for 5x5,
56 for 7x7, which is 2.3, 0.9 and 0.5 times the copy's rate. A load per tap would take 18, 50 and 98.
"""

# mypy: disable-error-code="assignment, no-untyped-def, var-annotated"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.fused import epilogue, prologue, write
from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Chip, Config, Launch, TritonKernel, cdiv
from cnnkern.triton_kernels.pixels import multiple

# ROWS x BLOCK_P columns x BLOCK_C maps; 8 elements to a thread are 16 bytes of bf16. gather has no use for ROWS.
CONFIGS = (
    Config((32, 16, 64)),
    Config((16, 16, 64)),
    Config((8, 16, 64)),
    Config((4, 16, 64)),
    Config((32, 32, 32)),
    Config((16, 32, 32)),
    Config((8, 32, 32)),
    Config((4, 32, 32)),
    Config((32, 32, 64)),
    Config((16, 32, 64)),
    Config((8, 32, 64)),
    Config((2, 8, 16), 1),
)

HELD_TAPS = 9  # whose weights a thread holds in registers; of a larger filter they are read again in each row
SWEPT_ROWS = 7  # of a filter, at most: there is a tile of sums for each


@triton.jit
def with_term(sums, i: tl.constexpr, term):
    """The tuple, with the term added to its i-th member."""
    return sums[:i] + (sums[i] + term,) + sums[i + 1 :]


@triton.jit
def sweep_kernel(
    x, w, y, scale, shift, residual, beside, x_scale, x_shift,
    points, rows, cols, maps, per_group, in_h, in_w,  # columns of all images; an image of y; maps; an image of x
    x_image, x_row, x_pixel, y_image, y_row, y_pixel, r_image, r_row, r_pixel,  # rows and pixels in UNIT elements
    w_start, w_map, w_tap_h, w_tap_w,  # elements
    stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, sweeps, alpha, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, STEP: tl.constexpr, HELD: tl.constexpr,
    ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """ROWS rows of y, `sweeps` apart, of a tile of columns x maps; grid (tiles x sweeps x bands of rows,).

    From row to row of a sweep of y, x goes STEP taps down: the rows of y that a row of x reaches stand together.
    """
    x_image, x_row, x_pixel, maps = multiple(x_image, UNIT), x_row * UNIT, x_pixel * UNIT, maps * UNIT
    y_image, y_row, y_pixel = multiple(y_image, UNIT), y_row * UNIT, y_pixel * UNIT
    r_image, r_row, r_pixel = multiple(r_image, UNIT), r_row * UNIT, r_pixel * UNIT
    blocks = tl.cdiv(maps, BLOCK_C)
    tiles = blocks * tl.cdiv(points, BLOCK_P)
    tile_index = tl.program_id(0) % tiles
    map_ = tile_index % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    map_mask = map_ < maps
    point = tile_index // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    image = (point // cols).to(tl.int64)
    col = point % cols
    w0 = col * stride_w - pad_left
    x_base = x + image * x_image + w0.to(tl.int64) * x_pixel
    band = (tl.program_id(0) // tiles).to(tl.int64)
    sweep = band % sweeps
    first = band // sweeps * ROWS
    h0 = sweep * stride_h - pad_top + first * STEP * dilation_h

    weights = ()
    if HELD:
        for r in tl.static_range(TAPS_H):
            for s in tl.static_range(TAPS_W):
                tap = w + (w_start + r * w_tap_h + s * w_tap_w)
                weights = weights + (tl.load(tap + map_ * w_map, mask=map_mask, other=0.0).to(tl.float32),)

    # sums[i] is of the row of y that is i above the one whose first tap is here.
    REACH: tl.constexpr = (TAPS_H + STEP - 1) // STEP
    UNROLLED: tl.constexpr = TAPS_W if HELD else 1
    sums = ()
    for _ in tl.static_range(REACH):
        sums = sums + (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),)
    for step in range(ROWS + REACH - 1):
        for j in tl.static_range(min(STEP, TAPS_H)):
            h = h0 + (step * STEP + j) * dilation_h
            for s0 in range(0, TAPS_W, UNROLLED):
                for s1 in tl.static_range(UNROLLED):
                    w_ = w0 + (s0 + s1) * dilation_w
                    inside = (point < points) & (h >= 0) & (h < in_h) & (w_ >= 0) & (w_ < in_w)
                    mask = inside[:, None] & map_mask[None, :]
                    pixel = x_base + (h * x_row + (s0 + s1) * dilation_w * x_pixel)
                    tile = tl.load(pixel[:, None] + map_[None, :], mask=mask, other=0.0)
                    tile = prologue(tile, mask, x_scale, x_shift, map_, map_mask, X_ACTIVATION, x_alpha).to(tl.float32)
                    for i in tl.static_range(REACH):
                        if i * STEP + j < TAPS_H:
                            if HELD:
                                weight = weights[(i * STEP + j) * TAPS_W + s1]
                            else:
                                tap = w + (w_start + (i * STEP + j) * w_tap_h + (s0 + s1) * w_tap_w)
                                weight = tl.load(tap + map_ * w_map, mask=map_mask, other=0.0).to(tl.float32)
                            sums = with_term(sums, i, tile * weight[None, :])
        # The last row of sums is complete, if it is not above the band.
        place = first + step - (REACH - 1)
        row = sweep + place * sweeps
        mask = ((place >= first) & (row < rows) & (point < points))[:, None] & map_mask[None, :]
        pixel = image * r_image + row * r_row + col * r_pixel
        at = pixel[:, None] + map_[None, :]
        total = epilogue(sums[REACH - 1], mask, scale, shift, residual, at, map_, map_mask, ACTIVATION, alpha)
        pixel = image * y_image + row * y_row + col * y_pixel
        write(y, pixel, total, mask, map_, maps, beside, at, per_group, SHUFFLE)
        sums = (tl.zeros((BLOCK_P, BLOCK_C), tl.float32),) + sums[: REACH - 1]


@triton.jit
def gather_kernel(
    x, w, y, scale, shift, residual, beside, x_scale, x_shift,
    points, rows, cols, out_h, out_w, maps, per_group, in_h, in_w,  # of a residue: all, of an image; images of y and x
    x_image, x_row, x_pixel, y_image, y_row, y_pixel, r_image, r_row, r_pixel,  # rows and pixels in UNIT elements
    residues_h, residues_w, stride_h, stride_w, off_h, off_w, tap_h, tap_w, taps_h, taps_w, alpha, x_alpha,
    ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr,
    UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of pixels x maps of one residue of y; grid (residues x tiles,). w is [taps][maps] in float32.

    Pixel (i, j) of residue (h0, w0) is y's (h0 + i * residues_h, w0 + j * residues_w); its tap (r, s) is x's pixel
    (i * stride_h + (h0 + off_h + r * tap_h) / residues_h, ...) where that is whole.
    """
    x_image, x_row, x_pixel, maps = multiple(x_image, UNIT), x_row * UNIT, x_pixel * UNIT, maps * UNIT
    y_image, y_row, y_pixel = multiple(y_image, UNIT), y_row * UNIT, y_pixel * UNIT
    r_image, r_row, r_pixel = multiple(r_image, UNIT), r_row * UNIT, r_pixel * UNIT
    residue = tl.program_id(0) % (residues_h * residues_w)
    h0 = residue // residues_w
    w0 = residue % residues_w
    tile_index = tl.program_id(0) // (residues_h * residues_w)
    blocks = tl.cdiv(maps, BLOCK_C)
    map_ = tile_index % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    map_mask = map_ < maps
    point = tile_index // blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    image = (point // (rows * cols)).to(tl.int64)
    i = point // cols % rows
    j = point % cols

    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for r in range(taps_h):
        reach_h = h0 + off_h + r * tap_h
        if reach_h % residues_h == 0:
            h = i * stride_h + reach_h // residues_h
            row_inside = (point < points) & (h >= 0) & (h < in_h)
            x_base = x + image * x_image + h.to(tl.int64) * x_row
            for s in range(taps_w):
                reach_w = w0 + off_w + s * tap_w
                if reach_w % residues_w == 0:
                    w_ = j * stride_w + reach_w // residues_w
                    mask = (row_inside & (w_ >= 0) & (w_ < in_w))[:, None] & map_mask[None, :]
                    pixel = x_base + w_.to(tl.int64) * x_pixel
                    tile = tl.load(pixel[:, None] + map_[None, :], mask=mask, other=0.0)
                    tile = prologue(tile, mask, x_scale, x_shift, map_, map_mask, X_ACTIVATION, x_alpha)
                    weight = tl.load(w + (r * taps_w + s) * maps + map_, mask=map_mask, other=0.0)
                    total += tile.to(tl.float32) * weight[None, :]

    row = (h0 + i * residues_h).to(tl.int64)
    col = w0 + j * residues_w
    mask = ((point < points) & (row < out_h) & (col < out_w))[:, None] & map_mask[None, :]
    at = (image * r_image + row * r_row + col * r_pixel)[:, None] + map_[None, :]
    total = epilogue(total, mask, scale, shift, residual, at, map_, map_mask, ACTIVATION, alpha)
    pixel = image * y_image + row * y_row + col * y_pixel
    write(y, pixel, total, mask, map_, maps, beside, at, per_group, SHUFFLE)


@triton.jit
def turn_kernel(w, out, maps, w_map, w_tap_h, w_tap_w, taps_w, BLOCK_C: tl.constexpr):
    """out [taps][maps] = w [maps][taps] in float32; grid (map blocks, taps)."""
    map_ = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.program_id(1)
    value = tl.load(w + map_ * w_map + tap // taps_w * w_tap_h + tap % taps_w * w_tap_w, mask=map_ < maps)
    tl.store(out + tap * maps + map_, value.to(tl.float32), mask=map_ < maps)


def turned(w: torch.Tensor) -> tuple[torch.Tensor, list[Launch]]:
    """w as [taps][maps] in float32, and the launch that writes it."""
    maps, _, taps_h, taps_w = w.shape
    out = torch.empty(taps_h * taps_w, maps, dtype=torch.float32, device=w.device)
    w_map, _, w_tap_h, w_tap_w = w.stride()
    arguments = {
        "w": w, "out": out, "maps": maps, "w_map": w_map, "w_tap_h": w_tap_h, "w_tap_w": w_tap_w, "taps_w": taps_w,
        "BLOCK_C": 128,
    }  # fmt: skip
    return out, [Launch(turn_kernel, (cdiv(maps, 128), taps_h * taps_w), arguments, Config((128,)))]


def in_units(arguments: dict[str, Any], *maps: str) -> dict[str, Any]:
    """The arguments with strides and numbers of maps in UNIT elements, the largest power of 2 up to 8 that divides all.

    Triton sees by itself only that an argument is a multiple of 16; of a product with UNIT it sees what it is a
    multiple of, and loads 8 maps at once where there are 24. The elements of an image stay as they are: where they
    pass 2^31 their UNITs may not, and a product of 32 bits would.
    """
    names = [name for name in arguments if name.endswith(("_row", "_pixel"))]
    names += maps or ("maps",)
    images = [name for name in arguments if name.endswith("_image")]
    unit = math.gcd(8, *(arguments[name] for name in (*names, *images)))
    return arguments | {name: arguments[name] // unit for name in names} | {"UNIT": unit}


def sweeps_of(stride: int, dilation: int) -> tuple[int, int]:
    """Into how many interleaved sweeps rows of y are taken apart, and how many taps x moves from row to row of one."""
    common = math.gcd(stride, dilation)
    return dilation // common, stride // common


def _launches(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    """fprop and dgrad."""
    fprop = p.direction == "fprop"
    read, written = (o.x, o.y) if fprop else (o.y, o.x)
    shared: dict[str, Any] = {
        "x": read, "y": written, "scale": o.scale, "shift": o.shift, "residual": o.residual,
        "beside": o.beside, "x_scale": o.x_scale, "x_shift": o.x_shift, "maps": p.c, "per_group": o.per_group,
        "in_h": read.shape[2], "in_w": read.shape[3],
        "alpha": p.epilogue.alpha, "x_alpha": p.prologue.alpha,
        "ACTIVATION": p.epilogue.activation if fprop else "none",
        "X_ACTIVATION": p.prologue.activation if fprop else "none", "SHUFFLE": o.shuffle,
    }  # fmt: skip
    beside = o.residual if o.beside is None else o.beside
    for prefix, tensor in (("x", read), ("y", written), ("r", beside)):
        strides = (0, 0, 0) if tensor is None else image_strides(tensor)
        shared |= dict(zip((f"{prefix}_image", f"{prefix}_row", f"{prefix}_pixel"), strides, strict=True))
    return (_sweep if _swept(p) else _gather)(p, o, config, shared)


def _swept(p: ConvProblem) -> bool:
    return p.r <= SWEPT_ROWS and (p.direction == "fprop" or p.stride == (1, 1))


def _sweep(p: ConvProblem, o: Operands, config: Config, shared: dict[str, Any]) -> Sequence[Launch]:
    rows, block_p, block_c = config.tile
    sweeps, step = sweeps_of(p.stride[0], p.dilation[0])
    (top, left), size, w_start = p.padding[:2], (p.p, p.q), 0
    held = p.r * p.s <= HELD_TAPS
    w, turn = (o.w, []) if held else turned(o.w)
    w_map, w_tap_h, w_tap_w = (o.w.stride(0), o.w.stride(2), o.w.stride(3)) if held else (1, p.s * p.k, p.k)
    if p.direction == "dgrad":  # the filter turned around, which begins with the last tap
        top, left = (p.r - 1) * p.dilation[0] - top, (p.s - 1) * p.dilation[1] - left
        size, w_start = (p.h, p.w), (p.r - 1) * w_tap_h + (p.s - 1) * w_tap_w
        w_tap_h, w_tap_w = -w_tap_h, -w_tap_w
    arguments = shared | {
        "w": w, "w_start": w_start, "w_map": w_map, "w_tap_h": w_tap_h, "w_tap_w": w_tap_w,
        "points": p.n * size[1], "rows": size[0], "cols": size[1],
        "stride_h": p.stride[0], "stride_w": p.stride[1], "pad_top": top, "pad_left": left,
        "dilation_h": p.dilation[0], "dilation_w": p.dilation[1], "sweeps": sweeps,
        "TAPS_H": p.r, "TAPS_W": p.s, "STEP": step, "HELD": held,
        "ROWS": rows, "BLOCK_P": block_p, "BLOCK_C": block_c,
    }  # fmt: skip
    grid = (cdiv(p.n * size[1], block_p) * cdiv(p.c, block_c) * sweeps * cdiv(cdiv(size[0], sweeps), rows),)
    return [*turn, Launch(sweep_kernel, grid, in_units(arguments), config)]


def _gather(p: ConvProblem, o: Operands, config: Config, shared: dict[str, Any]) -> Sequence[Launch]:
    _, block_p, block_c = config.tile
    w, turn = turned(o.w)
    (top, left), (dilation_h, dilation_w) = p.padding[:2], p.dilation
    if p.direction == "fprop":
        residues, stride, size = (1, 1), p.stride, (p.p, p.q)
        off, tap = (-top, -left), (dilation_h, dilation_w)
    else:
        residues, stride, size = p.stride, (1, 1), (p.h, p.w)
        off, tap = (top, left), (-dilation_h, -dilation_w)
    rows, cols = cdiv(size[0], residues[0]), cdiv(size[1], residues[1])
    points = p.n * rows * cols
    arguments = shared | {
        "w": w, "points": points, "rows": rows, "cols": cols, "out_h": size[0], "out_w": size[1],
        "residues_h": residues[0], "residues_w": residues[1], "stride_h": stride[0], "stride_w": stride[1],
        "off_h": off[0], "off_w": off[1], "tap_h": tap[0], "tap_w": tap[1], "taps_h": p.r, "taps_w": p.s,
        "BLOCK_P": block_p, "BLOCK_C": block_c,
    }  # fmt: skip
    grid = (residues[0] * residues[1] * cdiv(points, block_p) * cdiv(p.c, block_c),)
    return [*turn, Launch(gather_kernel, grid, in_units(arguments), config)]


def _pick(p: ConvProblem, chip: Chip) -> Config:
    """The tallest tile of which every multiprocessor has 8 or more, else the lowest.

    Where weights are read in the loop, 16 elements to a thread share each of them; where they are held, 8 fit beside.
    """
    rows, cols = (p.p, p.q) if p.direction == "fprop" else (p.h, p.w)
    width = 64 if p.c > 32 else 32
    block_p = 32 if width == 32 or not (_swept(p) and p.r * p.s <= HELD_TAPS) else 16
    fitting = [config for config in CONFIGS[:-1] if config.tile[1:] == (block_p, width)]

    def programs(config: Config) -> int:
        return cdiv(p.n * cols, block_p) * cdiv(p.c, width) * cdiv(rows, config.tile[0])

    return next((config for config in fitting if programs(config) >= 8 * chip.multiprocessors), fitting[-1])


def why_not(p: ConvProblem) -> str:
    """Empty, or why the family cannot compute the problem, in any direction."""
    if not p.groups == p.c == p.k:
        return "needs one filter per map: groups == C == K"
    return ""


def rather_not(p: ConvProblem) -> str:
    """Empty, or why a later family is the better choice."""
    return ""


KERNELS = (
    TritonKernel("depthwise", "fprop", CONFIGS, why_not, rather_not, _pick, _launches, shuffles=True),
    TritonKernel("depthwise", "dgrad", CONFIGS, why_not, rather_not, _pick, _launches),
)
