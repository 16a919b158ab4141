"""Channel shuffle: y[n, p, q, j * groups + g] = x[n, p, q, g * per_group + j].

It is the transpose of a groups x per_group matrix of maps (Zhang et al., "ShuffleNet", arXiv 1707.01083).

NHWC moves single elements inside each pixel: a tile of x is read along j, transposed through shared memory and written
along (j, g), so that both sides are contiguous. NCHW moves whole planes: y is written in order, and a run of h * w of
its elements is a run of x. There is no arithmetic, so any element type goes. After a convolution or a normalisation it
is no pass of its own: fused.py's write.

Bound: x is read once and y written once, in bf16 4 bytes per element: 1.1e12 elements a second on an H200 (4.3 TB/s).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cnnkern.operands import pixel_stride
from cnnkern.triton_kernels.launch import Config, Launch, cdiv

_TILE = 2048  # elements that a program moves


@triton.jit
def shuffle_maps_kernel(
    x, y, points, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, X_PIXEL: tl.constexpr, Y_PIXEL: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """A tile of pixels x groups x maps of a group of NHWC tensors; grid (pixels, maps of a group, groups).

    The numbers of maps are constants, so that it is known how many of them can be read at once.
    """
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    g = tl.program_id(2) * BLOCK_G + tl.arange(0, BLOCK_G)

    source = x + (point.to(tl.int64) * X_PIXEL)[:, None, None]
    mask = (point < points)[:, None, None] & (g < GROUPS)[None, :, None] & (j < PER_GROUP)[None, None, :]
    tile = tl.load(source + (g[:, None] * PER_GROUP + j[None, :])[None, :, :], mask=mask)
    tile = tl.trans(tile, 0, 2, 1)

    target = y + point.to(tl.int64) * Y_PIXEL
    if BLOCK_G == GROUPS:  # the maps written are one run
        tile = tl.reshape(tile, (BLOCK_P, BLOCK_J * BLOCK_G))
        map_ = tl.program_id(1) * BLOCK_J * BLOCK_G + tl.arange(0, BLOCK_J * BLOCK_G)
        mask = (point < points)[:, None] & (map_ < PER_GROUP * GROUPS)[None, :]
        tl.store(target[:, None] + map_[None, :], tile, mask=mask)
    else:
        map_ = j[:, None] * GROUPS + g[None, :]
        mask = (point < points)[:, None, None] & ((j < PER_GROUP)[:, None] & (g < GROUPS)[None, :])[None, :, :]
        tl.store(target[:, None, None] + map_[None, :, :], tile, mask=mask)


@triton.jit
def shuffle_planes_kernel(x, y, image, plane, per_group, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """A run of one image of dense NCHW tensors; image and plane have so many elements; grid (images x runs,)."""
    runs = tl.cdiv(image, BLOCK)
    start = tl.program_id(0) % runs * BLOCK
    mask = tl.arange(0, BLOCK) < image - start
    i = start + tl.arange(0, BLOCK)
    map_ = i // plane
    source = (map_ % GROUPS * per_group + map_ // GROUPS) * plane + i % plane
    first = (tl.program_id(0) // runs).to(tl.int64) * image
    tl.store(y + first + i, tl.load(x + first + source, mask=mask), mask=mask)


def shuffle_maps(x: Tensor, y: Tensor, groups: int) -> Launch:
    """The launch for evenly spaced x and y (N, C, H, W)."""
    n, maps, h, w = x.shape
    per_group = maps // groups
    block_g = min(triton.next_power_of_2(groups), 64)
    block_j = min(triton.next_power_of_2(per_group), _TILE // block_g)
    block_p = max(_TILE // (block_g * block_j), 1)
    arguments = {
        "x": x, "y": y, "points": n * h * w, "GROUPS": groups, "PER_GROUP": per_group,
        "X_PIXEL": pixel_stride(x), "Y_PIXEL": pixel_stride(y),
        "BLOCK_P": block_p, "BLOCK_G": block_g, "BLOCK_J": block_j,
    }  # fmt: skip
    grid = (cdiv(n * h * w, block_p), cdiv(per_group, block_j), cdiv(groups, block_g))
    return Launch(shuffle_maps_kernel, grid, arguments, Config((block_p, block_g, block_j)))


def shuffle_planes(x: Tensor, y: Tensor, groups: int) -> Launch:
    """The launch for x and y (N, C, H, W) that are both contiguous."""
    n, maps, h, w = x.shape
    arguments = {
        "x": x, "y": y, "image": maps * h * w, "plane": h * w, "per_group": maps // groups, "GROUPS": groups,
        "BLOCK": _TILE,
    }  # fmt: skip
    return Launch(shuffle_planes_kernel, (n * cdiv(maps * h * w, _TILE),), arguments, Config((_TILE,)))
