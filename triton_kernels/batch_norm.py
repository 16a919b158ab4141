"""Batch normalisation with the statistics of the batch itself, its activation and residual, forward and backward.

With z (N, K, P, Q) the result of a convolution, NHWC, n = N * P * Q, and per map of z

    mean, var = the statistics of z (biased),  rstd = 1 / sqrt(var + eps)
    scale = gamma * rstd,  shift = beta - mean * scale
    v = scale * (z - mean) + beta + residual,  y = act(v)

Forward: the convolution's epilogue leaves partial statistics (statistics.py), `finish_kernel` merges them into mean,
var, scale and shift and moves the running statistics. A convolution that follows takes scale, shift and act as its
prologue, and y is never written; `normalise_kernel` writes it where none follows. It subtracts the mean first, which
keeps the digits that scale * z + shift loses where the mean is large against sigma.

Backward, with g = dy * act'(v), u = z - mean, and every sum over the n pixels of a map:

    dbeta = sum g,  dgamma = rstd * sum g u
    dmean = -scale * sum g     (u's own sum is zero, so var does not pass anything on to the mean)
    dvar  = gamma * sum g u * d(rstd)/d(var) = -gamma * rstd^3 / 2 * sum g u
    dz    = scale * g + dvar * 2 u / n + dmean / n
          = A g + B u + C,  A = scale,  B = -scale * rstd^2 * (sum g u) / n,  C = -scale * (sum g) / n
    dresidual = g

What is written may be channel_shuffle(cat([beside, y])), with beside of y's size. Then y is written, and dy read, where
the shuffle puts its maps, and beside and its gradient are copied in the same pass.

v is computed anew from z, so nothing but z and the residual is kept. `sums_kernel` reads dy and z and leaves the sums
of each split of the pixels, `coefficients_kernel` adds them in order and finds dgamma, dbeta, B and C, and `dz_kernel`
reads dy and z again and writes dz, and dresidual with it. No atomics: the same bits from every run.

Bound: memory. In bf16 the forward pass moves 4 bytes per element beside the convolution (2 where a prologue takes it),
the backward 4 for the sums and 6 for dz, a residual 2 more in each and 2 for its gradient: on an H200 (4.3 TB/s) 1.1e12
elements a second forward and 0.43e12 backward.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.operands import Layer, pixel_stride
from cnnkern.triton_kernels.fused import activate, place, write
from cnnkern.triton_kernels.launch import Config, Launch, cdiv
from cnnkern.triton_kernels.pixels import multiple, vector_of
from cnnkern.triton_kernels.statistics import BLOCK_C, MERGED, merge, merge_partials

_TILE = 2048  # elements
_PROGRAMS = 528  # of the sums, four to each multiprocessor of an H200; a constant, so that the bits are the same on all


@triton.jit
def finish_kernel(
    stats, moments, gamma, beta, running_mean, running_var, partials, maps, count, eps, momentum,
    MERGED: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """moments [4, maps]: mean, var, scale and shift, of the last partials; running statistics in place. Grid (maps)."""
    map_ = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = map_ < maps
    _, mean, m2 = merge_partials(stats, 0, partials, maps, map_, MERGED)
    var = m2 / count
    scale = tl.rsqrt(var + eps)
    if gamma is not None:
        scale *= tl.load(gamma + map_, mask=mask, other=0.0).to(tl.float32)
    shift = -mean * scale
    if beta is not None:
        shift += tl.load(beta + map_, mask=mask, other=0.0).to(tl.float32)
    tl.store(moments + map_, mean, mask=mask)
    tl.store(moments + maps + map_, var, mask=mask)
    tl.store(moments + 2 * maps + map_, scale, mask=mask)
    tl.store(moments + 3 * maps + map_, shift, mask=mask)
    if running_mean is not None:
        old = tl.load(running_mean + map_, mask=mask, other=0.0).to(tl.float32)
        new = old + momentum * (mean - old)
        tl.store(running_mean + map_, new.to(running_mean.dtype.element_ty), mask=mask)
        old = tl.load(running_var + map_, mask=mask, other=0.0).to(tl.float32)
        new = old + momentum * (m2 / (count - 1) - old)
        tl.store(running_var + map_, new.to(running_var.dtype.element_ty), mask=mask)


@triton.jit
def before_activation(z, residual, moments, beta, points, maps, z_pixel, r_pixel, point, map_, VECTOR: tl.constexpr):
    """z - mean and v of a tile [pixels, maps], in float32, with its mask."""
    mask = (point < points)[:, None] & (map_ < maps)[None, :]
    pixel = point.to(tl.int64)[:, None]
    mean = tl.load(moments + map_, mask=map_ < maps, other=0.0)
    scale = tl.load(moments + 2 * maps + map_, mask=map_ < maps, other=0.0)
    u = tl.load(z + pixel * multiple(z_pixel, VECTOR) + map_[None, :], mask=mask, other=0.0)
    u = u.to(tl.float32) - mean[None, :]
    v = u * scale[None, :]
    if beta is not None:
        v += tl.load(beta + map_, mask=map_ < maps, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        offsets = pixel * multiple(r_pixel, VECTOR) + map_[None, :]
        v += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    return u, v, mask


@triton.jit
def slope(v, ACTIVATION: tl.constexpr, alpha):
    """act'(v), torch's where there are two."""
    if ACTIVATION == "relu":
        s = tl.where(v <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "relu6":
        s = tl.where((v <= 0.0) | (v >= 6.0), 0.0, 1.0)
    elif ACTIVATION == "leaky_relu":
        s = tl.where(v > 0.0, 1.0, alpha)
    elif ACTIVATION == "elu":
        s = tl.where(v > 0.0, 1.0, alpha * tl.exp(v))
    elif ACTIVATION == "hardswish":
        s = tl.where(v <= -3.0, 0.0, tl.where(v < 3.0, v / 3.0 + 0.5, 1.0))
    elif ACTIVATION == "silu":
        t = 1.0 / (1.0 + tl.exp(-v))
        s = t * (1.0 + v * (1.0 - t))
    elif ACTIVATION == "sigmoid":
        t = 1.0 / (1.0 + tl.exp(-v))
        s = t * (1.0 - t)
    elif ACTIVATION == "tanh":
        t = 2.0 / (1.0 + tl.exp(-2.0 * v)) - 1.0
        s = 1.0 - t * t
    else:
        s = tl.full(v.shape, 1.0, tl.float32)
    return s


@triton.jit
def normalise_kernel(
    z, residual, beside, y, moments, beta, points, maps, per_group, z_pixel, r_pixel, b_pixel, y_pixel, alpha,
    ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y of a tile; grid (pixels, maps)."""
    maps, y_pixel = multiple(maps, VECTOR), multiple(y_pixel, VECTOR)
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    _, v, mask = before_activation(z, residual, moments, beta, points, maps, z_pixel, r_pixel, point, map_, VECTOR)
    v = activate(v, ACTIVATION, alpha)
    pixel = point.to(tl.int64)
    at = pixel[:, None] * multiple(b_pixel, VECTOR) + map_[None, :]
    write(y, pixel * y_pixel, v, mask, map_, maps, beside, at, per_group, SHUFFLE)


@triton.jit
def sums_kernel(
    dy, z, residual, moments, beta, slices, points, per_split, maps,
    first, per_group,  # maps of dy, before it was shuffled: that are not y's, of a group
    dy_pixel, z_pixel, r_pixel, alpha, ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """slices [splits, 2, maps]: the sums of g and of g * (z - mean) over a split's pixels; grid (splits, maps)."""
    maps, dy_pixel = multiple(maps, VECTOR), multiple(dy_pixel, VECTOR)
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    dy_map = place(multiple(first, VECTOR) + map_, per_group, SHUFFLE)
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    sum_gu = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    start = tl.program_id(0) * per_split
    for first in range(start, tl.minimum(start + per_split, points), BLOCK_P):
        point = first + tl.arange(0, BLOCK_P)
        u, v, mask = before_activation(z, residual, moments, beta, points, maps, z_pixel, r_pixel, point, map_, VECTOR)
        offsets = point.to(tl.int64)[:, None] * dy_pixel + dy_map[None, :]
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(tl.float32) * slope(v, ACTIVATION, alpha)
        g = tl.where(mask, g, 0.0)
        sum_g += g
        sum_gu += tl.where(mask, g * u, 0.0)
    out = slices + tl.program_id(0).to(tl.int64) * 2 * maps + map_
    tl.store(out, tl.sum(sum_g, axis=0), mask=map_ < maps)
    tl.store(out + maps, tl.sum(sum_gu, axis=0), mask=map_ < maps)


@triton.jit
def coefficients_kernel(
    slices, moments, dgamma, dbeta, coefficients, splits, maps, count, eps,
    MERGED: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dgamma and dbeta, and coefficients [2, maps]: B and C; grid (maps)."""
    map_ = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    sum_g = tl.zeros((BLOCK_C,), tl.float32)
    sum_gu = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, splits, MERGED):
        split = first + tl.arange(0, MERGED)
        mask = (split < splits)[:, None] & (map_ < maps)[None, :]
        place = slices + split.to(tl.int64)[:, None] * 2 * maps + map_[None, :]
        sum_g += tl.sum(tl.load(place, mask=mask, other=0.0), axis=0)
        sum_gu += tl.sum(tl.load(place + maps, mask=mask, other=0.0), axis=0)

    mask = map_ < maps
    rstd = tl.rsqrt(tl.load(moments + maps + map_, mask=mask, other=1.0) + eps)
    scale = tl.load(moments + 2 * maps + map_, mask=mask, other=0.0)
    tl.store(coefficients + map_, -scale * rstd * rstd * sum_gu / count, mask=mask)
    tl.store(coefficients + maps + map_, -scale * sum_g / count, mask=mask)
    if dgamma is not None:
        tl.store(dgamma + map_, (rstd * sum_gu).to(dgamma.dtype.element_ty), mask=mask)
    if dbeta is not None:
        tl.store(dbeta + map_, sum_g.to(dbeta.dtype.element_ty), mask=mask)


@triton.jit
def dz_kernel(
    dy, z, residual, moments, beta, coefficients, dz, dresidual, dbeside, points, maps, first, per_group,
    dy_pixel, z_pixel, r_pixel, dz_pixel, dr_pixel, db_pixel, alpha, ACTIVATION: tl.constexpr, SHUFFLE: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dz, and dresidual and dbeside unless they are None, of a tile; grid (pixels, maps)."""
    maps, dy_pixel, dz_pixel = multiple(maps, VECTOR), multiple(dy_pixel, VECTOR), multiple(dz_pixel, VECTOR)
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    u, v, mask = before_activation(z, residual, moments, beta, points, maps, z_pixel, r_pixel, point, map_, VECTOR)
    pixel = point.to(tl.int64)[:, None]
    dy_map = place(multiple(first, VECTOR) + map_, per_group, SHUFFLE)
    g = tl.load(dy + pixel * dy_pixel + dy_map[None, :], mask=mask, other=0.0).to(tl.float32)
    g *= slope(v, ACTIVATION, alpha)
    a = tl.load(moments + 2 * maps + map_, mask=map_ < maps, other=0.0)
    b = tl.load(coefficients + map_, mask=map_ < maps, other=0.0)
    c = tl.load(coefficients + maps + map_, mask=map_ < maps, other=0.0)
    out = a[None, :] * g + (b[None, :] * u + c[None, :])
    tl.store(dz + pixel * dz_pixel + map_[None, :], out.to(dz.dtype.element_ty), mask=mask)
    if dresidual is not None:
        out = dresidual + pixel * multiple(dr_pixel, VECTOR) + map_[None, :]
        tl.store(out, g.to(dresidual.dtype.element_ty), mask=mask)
    if dbeside is not None:
        tile = tl.load(dy + pixel * dy_pixel + place(map_, per_group, SHUFFLE)[None, :], mask=mask, other=0.0)
        tl.store(dbeside + pixel * multiple(db_pixel, VECTOR) + map_[None, :], tile, mask=mask)


def finish(
    stats: Tensor, layer: Layer, pixels: int, running: tuple[Tensor, Tensor] | None = None, momentum: float = 0.1
) -> tuple[Sequence[Launch], Tensor]:
    """The launches that make moments of partial statistics [partials, 3, K], and the moments.

    moments are float32 [4, K]: mean, var, and scale and shift, which are a prologue's as they are. `running`, mean and
    var (K,), moves towards the batch's, with the unbiased variance, by `momentum`.
    """
    launches, stats = merge(stats)
    partials, _, maps = stats.shape
    moments = torch.empty(4, maps, dtype=torch.float32, device=stats.device)
    running_mean, running_var = running or (None, None)
    arguments = {
        "stats": stats, "moments": moments, "gamma": layer.gamma, "beta": layer.beta,
        "running_mean": running_mean, "running_var": running_var, "partials": partials, "maps": maps,
        "count": float(pixels), "eps": layer.eps, "momentum": momentum, "MERGED": MERGED, "BLOCK_C": BLOCK_C,
    }  # fmt: skip
    last = Launch(finish_kernel, (cdiv(maps, BLOCK_C),), arguments, Config((MERGED, BLOCK_C)))
    return [*launches, last], moments


def normalise(
    z: Tensor, residual: Tensor | None, y: Tensor, moments: Tensor, layer: Layer, beside: Tensor | None = None,
    shuffle: int = 1,
) -> Launch:  # fmt: skip
    """The launch that writes y; tensors (N, K, P, Q) here and below are evenly spaced.

    With beside, or shuffled, y is channel_shuffle(cat([beside, y], 1), shuffle).
    """
    n, maps, p, q = z.shape
    arguments = {
        **_read(z, residual, moments, layer),
        "beside": beside, "b_pixel": 0 if beside is None else pixel_stride(beside),
        "y": y, "y_pixel": pixel_stride(y), "per_group": y.shape[1] // shuffle, "SHUFFLE": shuffle,
    }  # fmt: skip
    return _tiled(normalise_kernel, cdiv(n * p * q, _tile(maps)[0]), z, arguments)


def backward(
    dy: Tensor, z: Tensor, residual: Tensor | None, moments: Tensor, layer: Layer, dz: Tensor, dgamma: Tensor | None,
    dbeta: Tensor | None, dresidual: Tensor | None, dbeside: Tensor | None = None, shuffle: int = 1,
) -> Sequence[Launch]:  # fmt: skip
    """The launches that write dz, and dgamma, dbeta, dresidual and dbeside unless they are None.

    dy has the maps of what :func:`normalise` wrote, of which the last K, before they were shuffled, are of z.
    """
    n, maps, p, q = z.shape
    points, (block_p, block_c) = n * p * q, _tile(maps)
    tiles = cdiv(maps, block_c)
    per_split = block_p * cdiv(cdiv(points, block_p), cdiv(_PROGRAMS, tiles))
    splits = cdiv(points, per_split)
    slices = torch.empty(splits, 2, maps, dtype=torch.float32, device=z.device)
    coefficients = torch.empty(2, maps, dtype=torch.float32, device=z.device)
    read = {
        **_read(z, residual, moments, layer), "dy": dy, "dy_pixel": pixel_stride(dy),
        "first": dy.shape[1] - maps, "per_group": dy.shape[1] // shuffle, "SHUFFLE": shuffle,
    }  # fmt: skip
    summed = {**read, "slices": slices, "per_split": per_split}
    found = {
        "slices": slices, "moments": moments, "dgamma": dgamma, "dbeta": dbeta, "coefficients": coefficients,
        "splits": splits, "maps": maps, "count": float(points), "eps": layer.eps, "MERGED": MERGED, "BLOCK_C": BLOCK_C,
    }  # fmt: skip
    written = {
        **read, "coefficients": coefficients, "dz": dz, "dz_pixel": pixel_stride(dz),
        "dresidual": dresidual, "dr_pixel": 0 if dresidual is None else pixel_stride(dresidual),
        "dbeside": dbeside, "db_pixel": 0 if dbeside is None else pixel_stride(dbeside),
    }  # fmt: skip
    return [
        _tiled(sums_kernel, splits, z, summed),
        Launch(coefficients_kernel, (cdiv(maps, BLOCK_C),), found, Config((MERGED, BLOCK_C))),
        _tiled(dz_kernel, cdiv(points, block_p), z, written),
    ]


def _read(z: Tensor, residual: Tensor | None, moments: Tensor, layer: Layer) -> dict[str, Any]:
    """The arguments by which a kernel computes v."""
    n, maps, p, q = z.shape
    return {
        "z": z, "residual": residual, "moments": moments, "beta": layer.beta, "points": n * p * q, "maps": maps,
        "z_pixel": pixel_stride(z), "r_pixel": 0 if residual is None else pixel_stride(residual),
        "ACTIVATION": layer.activation, "alpha": layer.alpha,
    }  # fmt: skip


def _tiled(kernel: Any, programs: int, z: Tensor, arguments: dict[str, Any]) -> Launch:
    """The launch of as many programs for each block of maps."""
    maps = z.shape[1]
    block_p, block_c = _tile(maps)
    steps = [size for name, size in arguments.items() if name.endswith("_pixel")]
    constants = {"VECTOR": vector_of(maps, *steps), "BLOCK_P": block_p, "BLOCK_C": block_c}
    return Launch(kernel, (programs, cdiv(maps, block_c)), {**arguments, **constants}, Config((block_p, block_c)))


def _tile(maps: int) -> tuple[int, int]:
    """Pixels and maps of a tile."""
    block_c = min(triton.next_power_of_2(maps), 64)
    return _TILE // block_c, block_c
