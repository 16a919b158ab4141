"""What the operators for CUDA tensors make of their operands before a kernel sees a pointer; it needs no GPU."""

import pytest
import torch
import torch.nn.functional as F

from cnnkern import gpu, ops
from cnnkern.operands import evenly_spaced, pixel_stride

GEOMETRY = (1, 1, 1, 1, 1, 1, 1, 1, 1)


def nhwc(*size, dtype=torch.float32):
    return torch.randn(size).to(dtype).to(memory_format=torch.channels_last)


def fprop(x, w, scale=None, shift=None, residual=None, x_scale=None):
    prologue = (x_scale, None, "none", 0.0)
    return gpu.conv2d_fprop(x, w, scale, shift, residual, GEOMETRY, "relu", 0.0, *prologue, 0, None)


X, W, Y = nhwc(2, 8, 5, 6), nhwc(4, 8, 3, 3), nhwc(2, 4, 5, 6)
WGRAD = (W.shape, GEOMETRY, False, True, *ops.NO_PROLOGUE, 0, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fprop(X, W.bfloat16()), "w is torch.bfloat16"),
        (lambda: fprop(X, W[0]), "4 dimensions"),
        (lambda: fprop(X, W.to("meta")), "on meta"),
        (lambda: fprop(X, W, shift=torch.randn(5)), "shift .* no vector of 4"),
        (lambda: fprop(X, W, scale=torch.randn(4, 1)), "scale .* no vector of 4"),
        (lambda: fprop(X, W, scale=torch.randn(4).half()), "scale is torch.float16"),
        (lambda: fprop(X, W, x_scale=torch.randn(4)), "x_scale .* no vector of 8"),
        (lambda: fprop(X, W, residual=Y[:1]), "residual has sizes"),
        (lambda: fprop(X, W, residual=Y.half()), "residual is torch.float16"),
        (lambda: gpu.conv2d_dgrad(Y[:, :, 1:], W, X.shape, GEOMETRY, True, 0, None), "dy has sizes"),
        (lambda: gpu.conv2d_dgrad(Y, W.half(), X.shape, GEOMETRY, True, 0, None), "w is torch.float16"),
        (lambda: gpu.conv2d_wgrad(Y[:1], X, *WGRAD), "dy has sizes"),
        (lambda: gpu.conv2d_wgrad(Y, X.half(), *WGRAD), "x is torch.float16"),
    ],
)
def test_operands_that_do_not_fit_are_refused(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_expanded_pixels_are_copied():
    """Pixels that are all the same one are as far apart as any: no problem can say so."""
    x = torch.randn(1, 8, 1, 1).expand(2, 8, 5, 6)
    assert x.stride() == (0, 1, 0, 0)
    even = evenly_spaced(x)
    assert torch.equal(even, x)
    assert pixel_stride(even) == 8


@pytest.mark.parametrize(("gap", "kept"), [(0, True), (4, True), (1, False)])
def test_a_residual_is_copied_where_vectors_would_not_be_aligned(gap, kept):
    wide = nhwc(2, 4 + gap, 5, 6)
    residual = gpu._in_vectors(wide[:, :4])
    assert torch.equal(residual, wide[:, :4])
    assert (residual.data_ptr() == wide.data_ptr()) is kept


def test_without_maps_to_sum_the_epilogue_is_left():
    shift, residual = torch.randn(4), nhwc(2, 4, 5, 6)
    y = fprop(nhwc(2, 0, 5, 6), nhwc(4, 0, 3, 3), shift=shift, residual=residual)
    assert torch.equal(y, F.relu(shift[:, None, None] + residual))


def test_rows_of_more_than_2_31_elements_are_copied():
    """Kernels count the elements of a row in 32 bits."""
    wide = torch.empty(2, 1, 1 << 16, 1 << 16, device="meta").permute(0, 3, 1, 2)[:, :8]
    assert pixel_stride(evenly_spaced(wide)) == 8
