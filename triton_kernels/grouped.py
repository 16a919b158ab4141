"""Grouped convolution with few maps a group: several groups in one product, by weights that are zero off the diagonal.

fprop   y[n,p,q,k]  = sum over r,s,c of x[n, p*u + r*l - pad, q*u + s*l - pad, group(k) * C/g + c] * w[k,r,s,c]
dgrad   dx[n,h,w,c] = sum over r,s,k in c's group of dy[n, (h + pad - r*l)/u, (w + pad - s*l)/u, k] * w[k,r,s,c]

x and y NHWC with a pixel stride, w KRSC with C/g maps; stride u, dilation l, g groups.

A tensor core multiplies by 16 maps or more, and a group may have 4. A tile takes as many whole groups as fit its maps
of x and of y; their filters are laid out as a matrix with one block of weights per group on its diagonal, and zeros,
which are never read from memory, elsewhere. Maps per group need not be powers of two, nor as many in y as in x; a group
larger than a tile is cut. What is not finite would spoil its tile's other groups: a tile with such a sum is computed
again, group by group.

What grouped_sweep.py can hold in registers goes down the rows of y there, with a load of x per filter *column*; the
rest goes over implicit_gemm's lattices here, with a load of x per tap. The weight gradient is in grouped_wgrad.py.

Bound: x + y once. In bf16 at 4.3 TB/s, with as many maps of y as of x, that is 1.07e12 elements/s, each with
2*R*S*BLOCK_K flops, the zeros' included: for 3x3 310 TFLOP/s in tiles of 16 maps, 620 in tiles of 32. So a tile is as
narrow as a group allows, and groups of 64 maps and more, whose arithmetic is the bound, belong to the dense kernel. A
load of x per tap would be 9 * x from L2, more than twice the time of a copy even at twice the memory's rate; in a sweep
it is x from L2, and 3 * x from L1.
"""

# mypy: disable-error-code="assignment, no-untyped-def, var-annotated"

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from cnnkern.operands import Operands
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.depthwise import in_units
from cnnkern.triton_kernels.fused import epilogue, write
from cnnkern.triton_kernels.grouped_sweep import diagonal_sum, sweep, swept
from cnnkern.triton_kernels.implicit_gemm import dgrad_lattices, fprop_lattices, scattering
from cnnkern.triton_kernels.launch import Chip, Config, Launch, TritonKernel, cdiv
from cnnkern.triton_kernels.pixels import multiple

# BLOCK_M pixels x BLOCK_N written maps x BLOCK_K read maps
CONFIGS = (
    Config((64, 16, 16), 2, 1),
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


@triton.jit
def diagonal_kernel(
    x, w, y, scale, shift, residual, beside, x_scale, x_shift,
    points, rows, cols,  # of the lattice, over all images; its size in one image
    in_h, in_w, depth, columns, per_group,  # image; maps of a group in x and in y, and of a shuffle's
    tile_depth, tile_columns, all_depth, all_columns,  # those of the groups of a tile, and of all, in UNIT maps
    x_image, x_row, x_pixel, y_image, y_row, y_pixel, y_start,  # in UNITs but the images; y's are the lattice's
    r_image, r_row, r_pixel, r_start,
    w_start, w_group, w_column, w_tap_h, w_tap_w, w_depth,  # elements
    in_step_h, in_step_w, off_h, off_w, tap_h, tap_w,  # input pixels: per lattice step, of the first tap, per tap
    alpha, x_alpha,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr,
    SHUFFLE: tl.constexpr, SEVERAL: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of the lattice's pixels x the maps of some groups; grid (tiles of groups and their maps x of pixels,).

    Tiles of the same pixels are neighbours: together they read whole lines of x.
    """
    x_image, x_row, x_pixel = multiple(x_image, UNIT), x_row * UNIT, x_pixel * UNIT
    y_image, y_row, y_pixel, y_start = multiple(y_image, UNIT), y_row * UNIT, y_pixel * UNIT, y_start * UNIT
    r_image, r_row, r_pixel, r_start = multiple(r_image, UNIT), r_row * UNIT, r_pixel * UNIT, r_start * UNIT
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
        finite = tl.reshape((tl.abs(total) < float("inf")).to(tl.int32), (BLOCK_M * BLOCK_N,))
        if tl.min(finite, axis=0) == 0:  # of one axis: Triton 3.7 compiles no other over sums in tensor memory
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
    write(y, pixel, total, mask, map_, all_columns, beside, residual_offsets, per_group, SHUFFLE)


def groups_together(p: ConvProblem, maps_of_y: int, maps_of_x: int) -> int:
    """How many groups a tile of so many maps takes."""
    return max(1, min(maps_of_y // (p.k // p.groups), maps_of_x // (p.c // p.groups), p.groups))


def _launches(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    """fprop and dgrad."""
    fprop = p.direction == "fprop"
    config = scattering(config) if o.shuffle > 1 else config
    block_m, block_n, block_k = config.tile
    together = groups_together(p, *((block_n, block_k) if fprop else (block_k, block_n)))
    if swept(p, config):
        return [sweep(p, o, config, together)]
    launches = []
    for lattice in (fprop_lattices if fprop else dgrad_lattices)(p, o, config):
        depth, columns, points = (lattice.arguments[name] for name in ("depth", "columns", "points"))
        arguments = lattice.arguments | {
            "tile_depth": together * depth, "tile_columns": together * columns, "all_depth": p.groups * depth,
            "SEVERAL": together > 1,
        }  # fmt: skip
        grid = (cdiv(p.groups, together) * cdiv(together * columns, block_n) * cdiv(points, block_m),)
        arguments = in_units(arguments, "y_start", "r_start", "tile_depth", "tile_columns", "all_depth", "all_columns")
        launches.append(Launch(diagonal_kernel, grid, arguments, config))
    return launches


def _pixels(p: ConvProblem, config: Config) -> int:
    """Of a tile of the config's maps: half or a quarter for float32, and where weights are held, or registers spill."""
    halvings = (p.dtype == "f32") + swept(p, config)
    return 128 >> min(halvings if config.tile[1:] == (16, 16) else 2 * halvings, 2)


def _pick(p: ConvProblem, chip: Chip) -> Config:
    """The tile with the fewest maps that holds a group of both tensors, else the one with the most."""
    written, read = (p.k, p.c) if p.direction == "fprop" else (p.c, p.k)
    n, k = written // p.groups, read // p.groups
    fitting = [config for config in CONFIGS[:-1] if config.tile[0] == _pixels(p, config)]
    holding = (config for config in fitting if config.tile[1] >= n and config.tile[2] >= k)
    return min(holding, key=lambda config: config.tile[1] * config.tile[2], default=fitting[-1])


def why_not(p: ConvProblem) -> str:
    """Empty, or why the family cannot compute the problem, in any direction."""
    return "" if p.groups > 1 else "needs more than one group"


def rather_not(p: ConvProblem) -> str:
    """Empty, or why a later family is the better choice."""
    if p.groups == p.c == p.k:
        return "one map a group is the depthwise kernel's"
    if max(p.c, p.k) // p.groups >= 64:
        return "groups of 64 maps and more fill the dense kernel's tiles"
    return ""


KERNELS = (
    TritonKernel("grouped", "fprop", CONFIGS, why_not, rather_not, _pick, _launches, shuffles=True),
    TritonKernel("grouped", "dgrad", CONFIGS, why_not, rather_not, _pick, _launches),
)
