"""Pointwise (1x1) convolution as a persistent GEMM on tensor descriptors.

fprop   Y[M,K]  = X[M,C] W[K,C]^T       M = N*P*Q pixels
dgrad   dX[M,C] = dY[M,K] W[K,C]
wgrad   dW[K,C] = dY[M,K]^T X[M,C]

x and y NHWC with a pixel stride and no gaps between rows or images, so that each is a matrix; w KC.

A tensor descriptor names a matrix once, and a load of a tile is one instruction of the copy engine (TMA: compute
capability 9.0). It fills what lies outside with zeros, so the loop over gemm_k has neither addresses nor masks. fprop
and dgrad are one kernel, *persistent*: no more programs than run at once, 8 warps a multiprocessor, each of which walks
over tiles. The two loops are flattened into one, so that the loads of the next tile are under way while the epilogue of
the last is computed and stored. wgrad sums over pixels, so pixels are split over the grid into float32 slices, which
are added in order: the same bits from every run.

Bound: flops = 2*M*C*K, bytes = (M*C + M*K + C*K) * bytes an element. On an H200 (4.3 TB/s; 790 TFLOP/s bf16 dense, 67
TFLOP/s fp32 FMA) bf16 turns at 184 flop/byte, C*K/(C+K) = 184: 64 -> 256 maps (51) stops at 220 TFLOP/s, 256 -> 256
(128) at 550, and only 512 -> 512 (256) reaches the tensor cores' rate. fp32 turns at 16 flop/byte, C*K/(C+K) = 31. So
it is bytes that count, and the overlap of one tile's store with the next one's loads is what this family adds.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from cnnkern.backends.triton import chip
from cnnkern.operands import Operands
from cnnkern.problem import DTYPES, ConvProblem
from cnnkern.triton_kernels import implicit_gemm
from cnnkern.triton_kernels.configs import (
    POINTWISE_CONFIGS,
    POINTWISE_WGRAD_CONFIGS,
    pick_pointwise,
    pick_pointwise_wgrad,
    wgrad_splits,
)
from cnnkern.triton_kernels.fused import epilogue, prologue
from cnnkern.triton_kernels.launch import Config, Launch, TritonKernel, cdiv
from cnnkern.triton_kernels.pixels import multiple
from cnnkern.triton_kernels.slices import added, slices_of


@triton.jit
def product_kernel(
    x, w, y,  # descriptors: [points, depth]; [columns, depth] in fprop, [depth, columns] in dgrad; [points, columns]
    scale, shift, residual, x_scale, x_shift,
    points, depth, columns, r_pixel, alpha, x_alpha,
    FPROP: tl.constexpr, ACTIVATION: tl.constexpr, X_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Every num_programs-th tile of pixels x maps from the program's own on; grid (programs,)."""
    columns, r_pixel = multiple(columns, VECTOR), multiple(r_pixel, VECTOR)
    tiles_m, tiles_n = tl.cdiv(points, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        # Tiles next to each other take the same columns of up to 8 tiles of points, so that L2 serves w and x again.
        band = tile // (8 * tiles_n)
        height = tl.minimum(tiles_m - band * 8, 8)
        start_m = (band * 8 + tile % (8 * tiles_n) % height) * BLOCK_M
        start_n = tile % (8 * tiles_n) // height * BLOCK_N

        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start_k in range(0, depth, BLOCK_K):
            left = x.load([start_m, start_k])
            k = start_k + tl.arange(0, BLOCK_K)
            k_mask = k < depth
            left = prologue(left, k_mask[None, :], x_scale, x_shift, k, k_mask, X_ACTIVATION, x_alpha)
            right = w.load([start_n, start_k]).T if FPROP else w.load([start_k, start_n])
            if x.dtype == tl.float32 and PRECISION == "ieee":
                # FMAs read shared memory in a layout of their own: brought into it by way of registers, nothing spills.
                left += 0.0
                right += 0.0
            total = tl.dot(left, right, total, input_precision=PRECISION)

        point = start_m + tl.arange(0, BLOCK_M)
        column = start_n + tl.arange(0, BLOCK_N)
        column_mask = column < columns
        mask = (point < points)[:, None] & column_mask[None, :]
        offsets = (point.to(tl.int64) * r_pixel)[:, None] + column[None, :]
        total = epilogue(total, mask, scale, shift, residual, offsets, column, column_mask, ACTIVATION, alpha)
        y.store([start_m, start_n], total.to(y.dtype))


@triton.jit
def wgrad_kernel(
    dy, x,  # descriptors of [points, k] and [points, c]
    slices, bias_slices, x_scale, x_shift,
    points, per_split, c, k, x_alpha,  # per_split: pixels, a multiple of BLOCK_P
    X_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One tile of maps of y x maps of x, for one split; grid (tiles, splits)."""
    c = multiple(c, VECTOR)
    tiles_m = tl.cdiv(k, BLOCK_M)
    start_m = tl.program_id(0) % tiles_m * BLOCK_M
    start_n = tl.program_id(0) // tiles_m * BLOCK_N
    split = tl.program_id(1)
    k_map = start_m + tl.arange(0, BLOCK_M)
    c_map = start_n + tl.arange(0, BLOCK_N)
    k_mask, c_mask = k_map < k, c_map < c

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    bias = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, points), BLOCK_P):
        left = dy.load([start, start_m])
        right = x.load([start, start_n])
        mask = (start + tl.arange(0, BLOCK_P) < points)[:, None] & c_mask[None, :]
        right = prologue(right, mask, x_scale, x_shift, c_map, c_mask, X_ACTIVATION, x_alpha)
        total = tl.dot(left.T, right, total, input_precision=PRECISION)
        if bias_slices is not None:
            bias += tl.sum(left.to(tl.float32), axis=0)

    out = (split.to(tl.int64) * k + k_map) * c
    tl.store(slices + out[:, None] + c_map[None, :], total, mask=k_mask[:, None] & c_mask[None, :])
    if bias_slices is not None:
        if start_n == 0:
            tl.store(bias_slices + split * k + k_map, bias, mask=k_mask)


_IMPLICIT_GEMM = {kernel.direction: kernel.launches for kernel in implicit_gemm.KERNELS}
"""What launches a problem whose tensors turn out to have gaps; its tiles are the same."""


def matrix(tensor: torch.Tensor) -> torch.Tensor | None:
    """An (N, C, H, W) tensor as [pixels, maps], or None where no descriptor can name that without a copy."""
    n, c, h, w = tensor.shape
    try:
        flat = tensor.permute(0, 2, 3, 1).view(n * h * w, c)
    except RuntimeError:  # gaps between rows or images
        return None
    pixel, between = flat.stride()
    return flat if between == 1 and pixel >= c > 0 and pixel * tensor.element_size() % 16 == 0 else None


def _product(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    fprop = p.direction == "fprop"
    block_m, block_n, block_k = config.tile
    x, y = (matrix(o.x), matrix(o.y)) if fprop else (matrix(o.y), matrix(o.x))
    w = matrix(o.w)
    residual = None if o.residual is None else matrix(o.residual)
    if x is None or w is None or y is None or (residual is None) != (o.residual is None):
        return _IMPLICIT_GEMM[p.direction](p, o, config)
    (points, depth), columns = x.shape, y.shape[1]
    arguments: dict[str, Any] = {
        "x": TensorDescriptor.from_tensor(x, [block_m, block_k]),
        "w": TensorDescriptor.from_tensor(w, [block_n, block_k] if fprop else [block_k, block_n]),
        "y": TensorDescriptor.from_tensor(y, [block_m, block_n]),
        "scale": o.scale, "shift": o.shift, "residual": residual, "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": points, "depth": depth, "columns": columns,
        "r_pixel": 0 if residual is None else residual.stride(0),
        "alpha": p.epilogue.alpha, "x_alpha": p.prologue.alpha,
        "FPROP": fprop,
        "ACTIVATION": p.epilogue.activation if fprop else "none",
        "X_ACTIVATION": p.prologue.activation if fprop else "none",
        "PRECISION": o.precision, "VECTOR": _vector(p), "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
    }  # fmt: skip
    resident = chip().multiprocessors * max(1, 8 // config.warps)
    programs = min(cdiv(points, block_m) * cdiv(columns, block_n), resident)
    return [Launch(product_kernel, (programs,), arguments, config)]


def _wgrad(p: ConvProblem, o: Operands, config: Config) -> Sequence[Launch]:
    block_m, block_n, block_p = config.tile
    dy, x = matrix(o.y), matrix(o.x)
    if dy is None or x is None:
        return _IMPLICIT_GEMM[p.direction](p, o, config)
    points, tiles = len(x), cdiv(p.k, block_m) * cdiv(p.c, block_n)
    per_split = block_p * cdiv(cdiv(points, block_p), wgrad_splits(points, tiles, block_p))
    splits = cdiv(points, per_split)
    arguments: dict[str, Any] = {
        "dy": TensorDescriptor.from_tensor(dy, [block_p, block_m]),
        "x": TensorDescriptor.from_tensor(x, [block_p, block_n]),
        **slices_of(o, splits), "x_scale": o.x_scale, "x_shift": o.x_shift,
        "points": points, "per_split": per_split, "c": p.c, "k": p.k, "x_alpha": p.prologue.alpha,
        "X_ACTIVATION": p.prologue.activation, "PRECISION": o.precision, "VECTOR": _vector(p),
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_P": block_p,
    }  # fmt: skip
    return added(Launch(wgrad_kernel, (tiles, splits), arguments, config), o)


def _vector(p: ConvProblem) -> int:
    """Maps in 16 bytes, of which a descriptor's strides are multiples, and so all numbers of maps here."""
    return 16 // DTYPES[p.dtype].itemsize


def _why_not(p: ConvProblem) -> str:
    if (p.r, p.s, *p.stride) != (1, 1, 1, 1) or any(p.padding):
        return "the filter is not 1x1 with stride 1 and no padding"
    if p.groups > 1:
        return "it has groups"
    vector = _vector(p)
    if any(size % vector for size in (p.c, p.k, p.x_pixel_stride, p.y_pixel_stride)):
        return f"a descriptor's strides are multiples of 16 bytes, so maps and pixel strides are of {vector}"
    return ""


def _no_objection(p: ConvProblem) -> str:
    return ""


KERNELS = tuple(
    TritonKernel("pointwise", direction, configs, _why_not, _no_objection, pick, launches, aligned=True, capability=90)
    for direction, configs, pick, launches in (
        ("fprop", POINTWISE_CONFIGS, pick_pointwise, _product),
        ("dgrad", POINTWISE_CONFIGS, pick_pointwise, _product),
        ("wgrad", POINTWISE_WGRAD_CONFIGS, pick_pointwise_wgrad, _wgrad),
    )
)
