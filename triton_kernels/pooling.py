"""Pooling over windows of an NHWC image.

max       y = max over the window, indices = its place h * W + w: the first of equals, the last NaN, as in torch
          dx = sum of dy over the windows that cover the pixel and picked it
average   y = sum over the window / divisor;  dx = sum of dy / divisor over the windows that cover the pixel
global    y = sum over the image / pixels

A program owns a tile of pixels x maps of what it writes and reads the taps of its windows; overlapping windows re-read
rows from L1 and L2. Both backward passes gather: along an axis at most cdiv(window, stride) windows cover a pixel, and
they are added in order, so nothing is added atomically and the bits are the same from every run. The global average
sums parts of a large image first, then the parts.

Bound: memory. The 3x3 max pool of stride 2 moves, per element of y in bf16, 8 bytes of x, 2 of y and 8 of indices, and
as many in its backward pass: on an H200 (4.3 TB/s) 0.24e12 elements of y a second. The average moves 10 of them.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnkern.triton_kernels.implicit_gemm import image_strides
from cnnkern.triton_kernels.launch import Config, Launch, cdiv
from cnnkern.triton_kernels.pixels import strides, vector_of
from cnnkern.window import Window

_TILE = 1024  # elements that a program writes
_PART = 512  # pixels of an image that one program sums, at least
_PARTS = 1024  # of an image, at most


@triton.jit
def place_of(point, rows, cols):
    """Image (64 bits), row and column of a point among images of rows x cols."""
    return (point // (rows * cols)).to(tl.int64), point // cols % rows, point % cols


@triton.jit
def max_pool_kernel(
    x, y, indices, points, rows, cols, in_h, in_w, maps, x_image, x_row, x_pixel,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    R: tl.constexpr, S: tl.constexpr,
    SUM: tl.constexpr, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y and indices, dense NHWC, of rows x cols pixels; grid (pixels, maps)."""
    maps, x_image, x_row, x_pixel = strides(maps, x_image, x_row, x_pixel, VECTOR)
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image, row, col = place_of(point, rows, cols)
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (point < points)[:, None] & (map_ < maps)[None, :]
    h0 = row * stride_h - pad_h
    w0 = col * stride_w - pad_w

    # Where nothing is greater than -inf, torch names the window's first tap inside the image.
    first_h = h0 + tl.cdiv(tl.maximum(-h0, 0), dilation_h) * dilation_h
    first_w = w0 + tl.cdiv(tl.maximum(-w0, 0), dilation_w) * dilation_w
    index = tl.zeros((BLOCK_P, BLOCK_C), tl.int32) + (first_h * in_w + first_w)[:, None]
    best = tl.full((BLOCK_P, BLOCK_C), float("-inf"), SUM)
    for r in range(R):
        h = h0 + r * dilation_h
        base = image * x_image + h.to(tl.int64) * x_row
        for s in range(S):
            w = w0 + s * dilation_w
            inside = (h >= 0) & (h < in_h) & (w >= 0) & (w < in_w)
            offsets = (base + w.to(tl.int64) * x_pixel)[:, None] + map_[None, :]
            value = tl.load(x + offsets, mask=mask & inside[:, None], other=float("-inf")).to(SUM)
            better = (value > best) | (value != value)
            best = tl.where(better, value, best)
            index = tl.where(better, (h * in_w + w)[:, None], index)

    out = point.to(tl.int64)[:, None] * maps + map_[None, :]
    tl.store(y + out, best.to(y.dtype.element_ty), mask=mask)
    tl.store(indices + out, index.to(tl.int64), mask=mask)


@triton.jit
def max_pool_backward_kernel(
    dy, indices, dx, points, in_h, in_w, rows, cols, maps,
    dy_image, dy_row, dy_pixel, i_image, i_row, i_pixel,
    stride_h, stride_w, pad_h, pad_w, extent_h, extent_w,
    COVER_H: tl.constexpr, COVER_W: tl.constexpr,
    SUM: tl.constexpr, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx, dense NHWC, from dy and indices of rows x cols pixels; grid (pixels of dx, maps).

    COVER_H x COVER_W windows are looked at: no more can cover a pixel.
    """
    maps, dy_image, dy_row, dy_pixel = strides(maps, dy_image, dy_row, dy_pixel, VECTOR)
    maps, i_image, i_row, i_pixel = strides(maps, i_image, i_row, i_pixel, VECTOR)
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image, h, w = place_of(point, in_h, in_w)
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (point < points)[:, None] & (map_ < maps)[None, :]

    total = tl.zeros((BLOCK_P, BLOCK_C), SUM)
    for i in range(COVER_H):
        p = (h + pad_h) // stride_h - (COVER_H - 1 - i)
        p_inside = (p >= 0) & (p < rows) & (h + pad_h - p * stride_h < extent_h)
        for j in range(COVER_W):
            q = (w + pad_w) // stride_w - (COVER_W - 1 - j)
            inside = p_inside & (q >= 0) & (q < cols) & (w + pad_w - q * stride_w < extent_w)
            seen = mask & inside[:, None]
            pixel = image * i_image + p.to(tl.int64) * i_row + q.to(tl.int64) * i_pixel
            index = tl.load(indices + pixel[:, None] + map_[None, :], mask=seen, other=-1)
            pixel = image * dy_image + p.to(tl.int64) * dy_row + q.to(tl.int64) * dy_pixel
            value = tl.load(dy + pixel[:, None] + map_[None, :], mask=seen, other=0.0).to(SUM)
            total += tl.where(index == (h * in_w + w)[:, None], value, 0.0)

    out = point.to(tl.int64)[:, None] * maps + map_[None, :]
    tl.store(dx + out, total.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def window_length(output, size, taps, stride, pad, COUNT_PAD: tl.constexpr):
    """A window's share of the divisor along an axis: padding may count, what ceil_mode adds beyond it does not."""
    begin = output * stride - pad
    end = tl.minimum(begin + taps, size + pad)
    if not COUNT_PAD:
        begin = tl.maximum(begin, 0)
        end = tl.minimum(end, size)
    return end - begin


@triton.jit
def avg_pool_kernel(
    x, y, points, rows, cols, in_h, in_w, maps, x_image, x_row, x_pixel, stride_h, stride_w, pad_h, pad_w,
    R: tl.constexpr, S: tl.constexpr, COUNT_PAD: tl.constexpr,
    SUM: tl.constexpr, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y, dense NHWC, of rows x cols pixels; grid (pixels, maps)."""
    maps, x_image, x_row, x_pixel = strides(maps, x_image, x_row, x_pixel, VECTOR)
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image, row, col = place_of(point, rows, cols)
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (point < points)[:, None] & (map_ < maps)[None, :]

    total = tl.zeros((BLOCK_P, BLOCK_C), SUM)
    for r in range(R):
        h = row * stride_h - pad_h + r
        base = image * x_image + h.to(tl.int64) * x_row
        for s in range(S):
            w = col * stride_w - pad_w + s
            inside = (h >= 0) & (h < in_h) & (w >= 0) & (w < in_w)
            offsets = (base + w.to(tl.int64) * x_pixel)[:, None] + map_[None, :]
            total += tl.load(x + offsets, mask=mask & inside[:, None], other=0.0).to(SUM)

    height = window_length(row, in_h, R, stride_h, pad_h, COUNT_PAD)
    width = window_length(col, in_w, S, stride_w, pad_w, COUNT_PAD)
    total /= (height * width).to(SUM)[:, None]
    tl.store(y + point.to(tl.int64)[:, None] * maps + map_[None, :], total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def avg_pool_backward_kernel(
    dy, dx, points, in_h, in_w, rows, cols, maps, dy_image, dy_row, dy_pixel, stride_h, stride_w, pad_h, pad_w,
    R: tl.constexpr, S: tl.constexpr, COVER_H: tl.constexpr, COVER_W: tl.constexpr, COUNT_PAD: tl.constexpr,
    SUM: tl.constexpr, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx, dense NHWC, from dy of rows x cols pixels; grid (pixels of dx, maps)."""
    maps, dy_image, dy_row, dy_pixel = strides(maps, dy_image, dy_row, dy_pixel, VECTOR)
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image, h, w = place_of(point, in_h, in_w)
    map_ = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (point < points)[:, None] & (map_ < maps)[None, :]

    total = tl.zeros((BLOCK_P, BLOCK_C), SUM)
    for i in range(COVER_H):
        p = (h + pad_h) // stride_h - (COVER_H - 1 - i)
        p_inside = (p >= 0) & (p < rows) & (h + pad_h - p * stride_h < R)
        height = window_length(p, in_h, R, stride_h, pad_h, COUNT_PAD)
        for j in range(COVER_W):
            q = (w + pad_w) // stride_w - (COVER_W - 1 - j)
            inside = p_inside & (q >= 0) & (q < cols) & (w + pad_w - q * stride_w < S)
            width = window_length(q, in_w, S, stride_w, pad_w, COUNT_PAD)
            pixel = image * dy_image + p.to(tl.int64) * dy_row + q.to(tl.int64) * dy_pixel
            value = tl.load(dy + pixel[:, None] + map_[None, :], mask=mask & inside[:, None], other=0.0).to(SUM)
            total += value / tl.where(inside, height * width, 1).to(SUM)[:, None]

    tl.store(dx + point.to(tl.int64)[:, None] * maps + map_[None, :], total.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def sum_pixels_kernel(
    x, y, points, cols, part, maps, divisor, x_image, x_row, x_pixel,
    SUM: tl.constexpr, VECTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y[image, part, map] = the sum over a part of an image's points / divisor; grid (images, parts, maps)."""
    maps, x_image, x_row, x_pixel = strides(maps, x_image, x_row, x_pixel, VECTOR)
    map_ = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x += tl.program_id(0).to(tl.int64) * x_image
    start = tl.program_id(1) * part
    end = tl.minimum(start + part, points)

    total = tl.zeros((BLOCK_P, BLOCK_C), SUM)
    for first in range(start, end, BLOCK_P):
        point = first + tl.arange(0, BLOCK_P)
        pixel = (point // cols).to(tl.int64) * x_row + (point % cols).to(tl.int64) * x_pixel
        mask = (point < end)[:, None] & (map_ < maps)[None, :]
        total += tl.load(x + pixel[:, None] + map_[None, :], mask=mask, other=0.0).to(SUM)

    sums = tl.sum(total, axis=0) / divisor
    out = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * maps
    tl.store(y + out + map_, sums.to(y.dtype.element_ty), mask=map_ < maps)


def max_pool(x: Tensor, y: Tensor, indices: Tensor, window: Window) -> Launch:
    """The launch for x (N, C, H, W) with its maps next to each other; y and indices (int64) are channels_last."""
    (r, s), (dilation_h, dilation_w) = window.kernel, window.dilation
    rest = {"indices": indices, "dilation_h": dilation_h, "dilation_w": dilation_w, "R": r, "S": s}
    return _forward(max_pool_kernel, x, y, window, rest)


def avg_pool(x: Tensor, y: Tensor, window: Window) -> Launch:
    """The launch for x (N, C, H, W) with its maps next to each other; y is channels_last."""
    rest = {"R": window.kernel[0], "S": window.kernel[1], "COUNT_PAD": window.count_include_pad}
    return _forward(avg_pool_kernel, x, y, window, rest)


def max_pool_backward(dy: Tensor, indices: Tensor, dx: Tensor, window: Window) -> Launch:
    """The launch for dy and indices with their maps next to each other; dx (N, C, H, W) is channels_last."""
    i_image, i_row, i_pixel = image_strides(indices)
    rest = {
        "indices": indices, "i_image": i_image, "i_row": i_row, "i_pixel": i_pixel,
        "extent_h": window.extent(0), "extent_w": window.extent(1),
    }  # fmt: skip
    return _backward(max_pool_backward_kernel, dy, dx, window, rest)


def avg_pool_backward(dy: Tensor, dx: Tensor, window: Window) -> Launch:
    """The launch for dy with its maps next to each other; dx (N, C, H, W) is channels_last."""
    rest = {"R": window.kernel[0], "S": window.kernel[1], "COUNT_PAD": window.count_include_pad}
    return _backward(avg_pool_backward_kernel, dy, dx, window, rest)


def global_avg_pool(x: Tensor, y: Tensor) -> Sequence[Launch]:
    """The launches for x (N, C, H, W) with its maps next to each other; y is (N, C, 1, 1)."""
    n, maps, h, w = x.shape
    parts = min(cdiv(h * w, _PART), _PARTS)
    if parts == 1:
        return [_sum_pixels(x, y, 1, h * w)]
    sums = torch.empty(n, parts, 1, maps, dtype=_sum_dtype(x), device=x.device).permute(0, 3, 1, 2)
    return [_sum_pixels(x, sums, parts, 1), _sum_pixels(sums, y, 1, h * w)]


def _forward(kernel: Any, x: Tensor, y: Tensor, window: Window, rest: dict[str, Any]) -> Launch:
    _, _, p, q = y.shape
    _, _, h, w = x.shape
    x_image, x_row, x_pixel = image_strides(x)
    arguments = {
        "x": x, "y": y, "rows": p, "cols": q, "in_h": h, "in_w": w,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel, **rest,
    }  # fmt: skip
    return _tiled(kernel, y, window, arguments)


def _backward(kernel: Any, dy: Tensor, dx: Tensor, window: Window, rest: dict[str, Any]) -> Launch:
    _, _, p, q = dy.shape
    _, _, h, w = dx.shape
    dy_image, dy_row, dy_pixel = image_strides(dy)
    arguments = {
        "dy": dy, "dx": dx, "rows": p, "cols": q, "in_h": h, "in_w": w,
        "dy_image": dy_image, "dy_row": dy_row, "dy_pixel": dy_pixel,
        "COVER_H": cdiv(window.extent(0), window.stride[0]), "COVER_W": cdiv(window.extent(1), window.stride[1]),
        **rest,
    }  # fmt: skip
    return _tiled(kernel, dx, window, arguments)


def _tiled(kernel: Any, written: Tensor, window: Window, arguments: dict[str, Any]) -> Launch:
    """The launch over tiles of pixels x maps of `written`."""
    n, maps, rows, cols = written.shape
    points, block_p, block_c = n * rows * cols, *_tile(maps)
    steps = [size for name, size in arguments.items() if name.endswith(("_image", "_row", "_pixel"))]
    (stride_h, stride_w), (pad_h, pad_w) = window.stride, window.padding
    common = {
        "points": points, "maps": maps, "stride_h": stride_h, "stride_w": stride_w, "pad_h": pad_h, "pad_w": pad_w,
        "SUM": _SUM[_sum_dtype(written)], "VECTOR": vector_of(maps, *steps), "BLOCK_P": block_p, "BLOCK_C": block_c,
    }  # fmt: skip
    grid = (cdiv(points, block_p), cdiv(maps, block_c))
    return Launch(kernel, grid, {**arguments, **common}, Config((block_p, block_c)))


def _sum_pixels(x: Tensor, y: Tensor, parts: int, divisor: int) -> Launch:
    n, maps, h, w = x.shape
    block_p, block_c = _tile(maps)
    x_image, x_row, x_pixel = image_strides(x)
    arguments = {
        "x": x, "y": y, "points": h * w, "cols": w, "part": cdiv(h * w, parts), "maps": maps, "divisor": divisor,
        "x_image": x_image, "x_row": x_row, "x_pixel": x_pixel,
        "SUM": _SUM[_sum_dtype(x)], "VECTOR": vector_of(maps, x_image, x_row, x_pixel),
        "BLOCK_P": block_p, "BLOCK_C": block_c,
    }  # fmt: skip
    return Launch(sum_pixels_kernel, (n, parts, cdiv(maps, block_c)), arguments, Config((block_p, block_c)))


_SUM = {torch.float32: tl.float32, torch.float64: tl.float64}


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _tile(maps: int) -> tuple[int, int]:
    """Pixels and maps of a tile: 128 maps, or all of fewer, so that bf16 is read 16 bytes at a time."""
    block_c = min(triton.next_power_of_2(maps), 128)
    return _TILE // block_c, block_c
