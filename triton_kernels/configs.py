"""Tiles: the frozen lists, what fits on a chip, and the choice of one without tuning.

A GEMM's tile is BLOCK_M pixels x BLOCK_N maps x BLOCK_K of the sum; a weight gradient's is BLOCK_M maps of y x BLOCK_N
maps of x x BLOCK_P pixels. A list only grows at its end: tuning results are positions in it.
"""

from __future__ import annotations

from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels.launch import Chip, Config, cdiv

CHIPS = {
    80: Chip(80, 108, 163 * 1024),
    90: Chip(90, 132, 227 * 1024),
    100: Chip(100, 148, 227 * 1024),
    120: Chip(120, 188, 99 * 1024),
}

GEMM_CONFIGS = (
    Config((128, 128, 32), 8, 3),
    Config((128, 128, 64), 8, 3),
    Config((128, 256, 64), 8, 3),
    Config((256, 128, 64), 8, 3),
    Config((128, 64, 32), 4, 4),
    Config((128, 64, 64), 4, 3),
    Config((64, 64, 32), 4, 4),
    Config((64, 128, 64), 4, 3),
    Config((64, 32, 32), 4, 4),
    Config((128, 32, 32), 4, 4),
    Config((128, 16, 32), 4, 4),
    Config((32, 32, 32), 2, 4),
    Config((16, 16, 16), 1, 2),
)

WGRAD_CONFIGS = (
    Config((128, 128, 32), 8, 3),
    Config((128, 128, 64), 8, 3),
    Config((64, 64, 32), 4, 4),
    Config((64, 64, 64), 4, 3),
    Config((64, 32, 64), 4, 3),
    Config((64, 16, 64), 4, 3),
    Config((32, 32, 32), 2, 4),
    Config((16, 16, 16), 1, 2),
)

# Kernels on tensor descriptors, which have a predicate of their own.
POINTWISE_CONFIGS = (
    Config((128, 128, 64), 8, 3),
    Config((128, 128, 32), 8, 3),
    Config((128, 64, 64), 4, 3),
    Config((64, 128, 64), 4, 3),
    Config((128, 64, 32), 4, 4),
    Config((64, 64, 64), 4, 3),
    Config((64, 64, 32), 4, 3),
    Config((128, 32, 32), 4, 4),
    Config((64, 32, 32), 4, 4),
    Config((32, 32, 32), 2, 4),
    Config((16, 16, 16), 1, 2),
)

POINTWISE_WGRAD_CONFIGS = (
    Config((128, 128, 64), 8, 3),
    Config((128, 128, 32), 8, 3),
    Config((64, 128, 64), 8, 3),
    Config((64, 128, 32), 8, 3),
    Config((64, 64, 64), 8, 3),
    Config((64, 64, 32), 8, 3),
    Config((64, 32, 64), 4, 3),
    Config((32, 32, 32), 2, 3),
    Config((16, 16, 16), 1, 2),
)

# Gathered operands: an address an element, so more warps share a tile.
DIRECT_CONFIGS = (
    Config((64, 128, 32), 8, 2),
    Config((128, 64, 32), 8, 2),
    Config((128, 32, 32), 8, 2),
    Config((64, 64, 32), 4, 2),
    Config((64, 32, 32), 4, 2),
    Config((128, 16, 32), 8, 2),
    Config((32, 32, 32), 4, 2),
    Config((16, 16, 16), 1, 2),
)

DIRECT_WGRAD_CONFIGS = (
    Config((128, 64, 32), 8, 2),
    Config((64, 64, 32), 4, 2),
    Config((64, 32, 32), 8, 2),
    Config((32, 32, 32), 4, 2),
    Config((16, 32, 64), 4, 2),
    Config((16, 16, 16), 1, 2),
)

_ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2}
_REGISTERS = 160  # a thread's share of the sums: the rest of its 255 holds addresses and operands


def why_not_fit(config: Config, dtype: str, chip: Chip, depth: int = 4, descriptors: bool = False) -> str:
    """Empty, or why a GEMM tile cannot run on the chip; asked by the heuristic, the tuner and the tests.

    depth is the number of maps that lie next to each other in a pixel: where it is odd, elements are loaded one by one.
    With descriptors a step is at most the 128 bytes that are copied in one piece, and beside the stages shared memory
    holds what an epilogue overlaps them with, the tiles of y and of the residual, or float32 operands turned over.
    """
    m, n, k = config.tile
    if descriptors and k * _ELEMENT_BYTES[dtype] > 128:
        return f"its steps of {k} are more than 128 bytes"
    shared = (config.stages * (m * k + k * n) + 2 * m * n * descriptors) * _ELEMENT_BYTES[dtype]
    if shared > chip.shared_bytes:
        return (
            f"its {config.stages} stages take {shared} bytes of shared memory, of which there are {chip.shared_bytes}"
        )
    if dtype == "f32" and k > 32:
        return "a step of more than 32 float32 products does not fit the registers"  # it spills, as compiled
    if depth % 4 and (m + n) * k > 32 * 32 * config.warps:
        return "the addresses of its single elements do not fit the registers"
    if m * n > _REGISTERS * 32 * config.warps:
        return f"its sums of {m}x{n} do not fit the registers of {config.warps} warps"
    return ""


def _best(
    configs: tuple[Config, ...], dtype: str, chip: Chip, m: int, n: int, k: int, copies: int, depth: int = 4
) -> Config:
    """The config with the least estimated time for `copies` products of m x n x k, of `depth` maps each.

    Time is that of the multiprocessors' rounds, in each of which every one of them computes a tile at a rate that
    grows with the bytes it reuses: m * n / (m + n), up to where the tensor cores are the bound.
    """

    def time(config: Config) -> float:
        bm, bn, bk = config.tile
        rounds = cdiv(cdiv(m, bm) * cdiv(n, bn) * copies, chip.multiprocessors)
        reuse = min(bm * bn / (bm + bn), 64.0)
        return rounds * bm * bn * (cdiv(k, bk) * bk + 2 * bk * config.stages) / reuse

    return min((config for config in configs if not why_not_fit(config, dtype, chip, depth)), key=time)


def pick_gemm(p: ConvProblem, chip: Chip) -> Config:
    """The tile for fprop or dgrad."""
    fprop = p.direction == "fprop"
    pixels = p.n * (p.p * p.q if fprop else p.h * p.w // (p.stride[0] * p.stride[1]))
    columns, depth = (p.k, p.c) if fprop else (p.c, p.k)
    taps = p.r * p.s if fprop else cdiv(p.r, p.stride[0]) * cdiv(p.s, p.stride[1])
    depth //= p.groups
    return _best(GEMM_CONFIGS, p.dtype, chip, max(pixels, 1), columns // p.groups, depth * taps, p.groups, depth)


def _step(config: Config) -> float:
    """The estimated time of one step of a descriptor kernel's tile: as above, but not less than its barrier's wait."""
    bm, bn, bk = config.tile
    return max(bm * bn * bk / min(bm * bn / (bm + bn), 64.0), 4096.0)


def pick_pointwise(p: ConvProblem, chip: Chip) -> Config:
    """The tile for fprop or dgrad of a 1x1 convolution by the persistent kernel, which fills its stages once."""
    pixels = p.n * p.h * p.w
    columns, depth = (p.k, p.c) if p.direction == "fprop" else (p.c, p.k)

    def time(config: Config) -> float:
        bm, bn, bk = config.tile
        return cdiv(cdiv(pixels, bm) * cdiv(columns, bn), chip.multiprocessors) * cdiv(depth, bk) * _step(config)

    return min(
        (config for config in POINTWISE_CONFIGS if not why_not_fit(config, p.dtype, chip, descriptors=True)), key=time
    )


def pick_pointwise_wgrad(p: ConvProblem, chip: Chip) -> Config:
    """The tile for wgrad of a 1x1 convolution on descriptors."""
    pixels = p.n * p.h * p.w

    def time(config: Config) -> float:
        bm, bn, bp = config.tile
        tiles = cdiv(p.k, bm) * cdiv(p.c, bn)
        splits = wgrad_splits(pixels, tiles, bp)
        return cdiv(tiles * splits, chip.multiprocessors) * cdiv(cdiv(pixels, bp), splits) * _step(config)

    return min(
        (config for config in POINTWISE_WGRAD_CONFIGS if not why_not_fit(config, p.dtype, chip, descriptors=True)),
        key=time,
    )


def pick_direct(p: ConvProblem, chip: Chip) -> Config:
    """The tile for a convolution whose whole filter is one sum, and in wgrad one row."""
    filter_size = p.r * p.s * p.c
    if p.direction == "fprop":
        return _best(DIRECT_CONFIGS, p.dtype, chip, max(p.n * p.p * p.q, 1), p.k, filter_size, 1)
    pixels = max(cdiv(p.n * p.p * p.q, chip.multiprocessors), 1)
    return _best(DIRECT_WGRAD_CONFIGS, p.dtype, chip, p.k, filter_size, pixels, chip.multiprocessors)


def pick_wgrad(p: ConvProblem, chip: Chip) -> Config:
    """The tile for wgrad; its pixels are split over the chip whatever the tile is."""
    copies = p.r * p.s * p.groups * chip.multiprocessors
    pixels = max(cdiv(p.n * p.p * p.q, chip.multiprocessors), 1)
    c, k = p.c // p.groups, p.k // p.groups
    return _best(WGRAD_CONFIGS, p.dtype, chip, k, c, pixels, copies, c | k)


def wgrad_splits(pixels: int, tiles: int, block: int) -> int:
    """Into how many parts the pixels of a weight gradient are cut: enough to fill a chip of 132 multiprocessors twice.

    It depends on the problem alone, not on the chip, so that a result's bits do not. A part has 4 blocks or more.
    """
    return max(1, min(cdiv(264, tiles), pixels // (4 * block)))
