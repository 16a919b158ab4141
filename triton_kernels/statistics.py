"""Statistics of maps over pixels, as (count, mean, M2) with M2 the sum of squared deviations from the mean.

A partial is one of these of a few pixels for every map; partials are float32 [partials, 3, K]. Each is found in two
passes over registers, and they are merged in a fixed order around the first one's mean (Chan, Golub and LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances", 1979, for many parts at once):

    n = sum n_i,  d_i = mean_i - mean_0,  d = sum n_i d_i / n,  mean = mean_0 + d,
    M2 = sum M2_i + sum n_i (d_i - d)^2

So nothing is lost where the mean is large: a sum of squares at mean 100 and sigma 0.05 has no digit of the variance.

A convolution writes its partials in its epilogue, of the values that it writes, so that y is not read again for them.
Bound: memory. A partial of 128 pixels adds 12 bytes a map to y's 256 in bf16; `statistics_kernel`, for convolutions
that write none, reads y once: 2.1e12 bf16 elements a second on an H200 (4.3 TB/s).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.operands import pixel_stride
from cnnkern.triton_kernels.launch import Config, Launch, cdiv
from cnnkern.triton_kernels.pixels import multiple, vector_of

MERGED = 64  # partials that one program merges
BLOCK_C = 32  # maps of such a program


@triton.jit
def store_statistics(stats, partial, tile, mask, maps, map_, maps_mask):
    """Writes the statistics of a tile [pixels, maps], whose first pixel there is, as one of the partials."""
    v = tile.to(tl.float32)
    count = tl.sum(mask.to(tl.float32), axis=0)
    mean = tl.sum(tl.where(mask, v, 0.0), axis=0) / tl.maximum(count, 1.0)
    deviation = tl.where(mask, v - mean[None, :], 0.0)
    rest = tl.sum(deviation, axis=0)  # what rounding took from the mean
    correction = rest / tl.maximum(count, 1.0)
    out = stats + tl.cast(partial, tl.int64) * 3 * maps + map_
    tl.store(out, count, mask=maps_mask)
    tl.store(out + maps, mean + correction, mask=maps_mask)
    tl.store(out + 2 * maps, tl.sum(deviation * deviation, axis=0) - rest * correction, mask=maps_mask)


@triton.jit
def merge_partials(stats, first, partials, maps, map_, MERGED: tl.constexpr):
    """Count, mean and M2 of the partials from `first` on, at most MERGED."""
    i = first + tl.arange(0, MERGED)
    mask = (i < partials)[:, None] & (map_ < maps)[None, :]
    place = stats + i.to(tl.int64)[:, None] * 3 * maps + map_[None, :]
    counts = tl.load(place, mask=mask, other=0.0)
    means = tl.load(place + maps, mask=mask, other=0.0)
    m2s = tl.load(place + 2 * maps, mask=mask, other=0.0)

    count = tl.sum(counts, axis=0)
    pivot = tl.load(stats + tl.cast(first, tl.int64) * 3 * maps + maps + map_, mask=map_ < maps, other=0.0)
    shifted = means - pivot[None, :]
    shift = tl.sum(counts * shifted, axis=0) / tl.maximum(count, 1.0)
    between = shifted - shift[None, :]
    return count, pivot + shift, tl.sum(m2s + counts * between * between, axis=0)


@triton.jit
def merge_kernel(stats, merged, partials, maps, MERGED: tl.constexpr, BLOCK_C: tl.constexpr):
    """Every MERGED partials as one; grid (partials of the result, maps)."""
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    count, mean, m2 = merge_partials(stats, tl.program_id(0) * MERGED, partials, maps, map_, MERGED)
    out = merged + tl.program_id(0).to(tl.int64) * 3 * maps + map_
    tl.store(out, count, mask=map_ < maps)
    tl.store(out + maps, mean, mask=map_ < maps)
    tl.store(out + 2 * maps, m2, mask=map_ < maps)


@triton.jit
def statistics_kernel(
    y, stats, points, maps, y_pixel, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """A partial of each BLOCK_P pixels of NHWC y; grid (partials, maps)."""
    maps, y_pixel = multiple(maps, VECTOR), multiple(y_pixel, VECTOR)
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (point < points)[:, None] & (map_ < maps)[None, :]
    tile = tl.load(y + (point.to(tl.int64) * y_pixel)[:, None] + map_[None, :], mask=mask, other=0.0)
    store_statistics(stats, tl.program_id(0), tile, mask, maps, map_, map_ < maps)


def empty_partials(pixels: int, block: int, maps: int, device: torch.device) -> Tensor:
    """Room for a partial of each `block` pixels."""
    return torch.empty(cdiv(pixels, block), 3, maps, dtype=torch.float32, device=device)


def partials_of(y: Tensor) -> tuple[Launch, Tensor]:
    """The launch that reads evenly spaced y (N, K, P, Q), and the partials that it writes."""
    n, maps, p, q = y.shape
    block_c = min(triton.next_power_of_2(maps), 64)
    block_p = 4096 // block_c
    stats = empty_partials(n * p * q, block_p, maps, y.device)
    arguments = {
        "y": y, "stats": stats, "points": n * p * q, "maps": maps, "y_pixel": pixel_stride(y),
        "VECTOR": vector_of(maps, pixel_stride(y)), "BLOCK_P": block_p, "BLOCK_C": block_c,
    }  # fmt: skip
    grid = (stats.shape[0], cdiv(maps, block_c))
    return Launch(statistics_kernel, grid, arguments, Config((block_p, block_c))), stats


def merge(stats: Tensor) -> tuple[Sequence[Launch], Tensor]:
    """The launches that merge partials until MERGED or fewer are left, and those."""
    launches = []
    while stats.shape[0] > MERGED:
        merged = stats.new_empty(cdiv(stats.shape[0], MERGED), *stats.shape[1:])
        maps = stats.shape[2]
        arguments = {
            "stats": stats, "merged": merged, "partials": stats.shape[0], "maps": maps, "MERGED": MERGED,
            "BLOCK_C": BLOCK_C,
        }  # fmt: skip
        grid = (merged.shape[0], cdiv(maps, BLOCK_C))
        launches.append(Launch(merge_kernel, grid, arguments, Config((MERGED, BLOCK_C))))
        stats = merged
    return launches, stats
