"""Channel shuffle and pooling by their Triton kernels, against torch."""

import pytest
import torch
import torch.nn.functional as F

from cnnkern import gpu_tools

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# x size, kernel, stride, padding, dilation, ceil_mode
WINDOWS = (
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), False),  # the least there is
    ((2, 17, 9, 7), (3, 3), (2, 2), (1, 1), (1, 1), False),  # the stem's
    ((1, 5, 8, 9), (2, 2), (2, 2), (0, 0), (1, 1), True),  # a last window that is cut off
    ((1, 130, 5, 4), (3, 3), (1, 1), (1, 1), (1, 1), False),  # two tiles of maps, the second with a tail
    ((1, 3, 7, 10), (3, 2), (2, 3), (1, 1), (1, 1), True),  # nothing equal
    ((2, 4, 6, 5), (2, 3), (3, 4), (0, 1), (1, 1), True),  # pixels that no window covers
    ((1, 6, 11, 8), (3, 2), (2, 1), (1, 1), (2, 3), False),  # dilated
    ((1, 2, 1, 1), (2, 2), (1, 1), (1, 1), (2, 2), False),  # dilated, no tap inside
)
LAYOUTS = ("nhwc", "nchw", "slice", "crop")


def image(size, dtype, layout="nhwc", fill="normal"):
    """Random x; a slice of maps, and a crop of pixels, of a wider NHWC buffer whose rest is NaN."""
    n, c, h, w = size
    generator = torch.Generator().manual_seed(sum(size))
    values = torch.randn(size, generator=generator) if fill == "normal" else ties(size, generator)
    wide = {"slice": (n, h, w, c + 3), "crop": (n, h + 2, w + 1, c)}.get(layout, (n, h, w, c))
    x = torch.full(wide, torch.nan, dtype=dtype)[:, :h, :w, :c].permute(0, 3, 1, 2)
    return x.copy_(values) if layout != "nchw" else values.to(dtype)


def ties(size, generator):
    """Small integers with NaN and infinities among them."""
    values = torch.randint(-2, 3, size, generator=generator).float()
    special = torch.rand(size, generator=generator)
    values[special < 0.1], values[special > 0.9], values[:, 0] = torch.nan, torch.inf, -torch.inf
    return values


def laid_out(result, layout):
    return result.is_contiguous(memory_format=torch.contiguous_format if layout == "nchw" else torch.channels_last)


def check(result, truth, layout):
    assert laid_out(result, layout)
    eps = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result, truth.to(result.dtype), rtol=4 * eps, atol=4 * eps, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c", "groups"), [(6, 2), (12, 3), (10, 1), (8, 8), (130, 65)])
def test_channel_shuffle(c, groups, dtype, layout):
    x = image((2, c, 3, 5), dtype, layout)
    y = gpu_tools.channel_shuffle(x, groups)
    assert torch.equal(y, F.channel_shuffle(x, groups))
    assert laid_out(y, layout)


def test_channel_shuffle_of_several_tiles():
    for x in (torch.randn(2, 96, 7, 13), torch.randn(1, 10000, 1, 2)):
        for t in (x, x.to(memory_format=torch.channels_last)):
            assert torch.equal(gpu_tools.channel_shuffle(t, 4), F.channel_shuffle(t, 4))


@pytest.mark.parametrize("fill", ["normal", "ties"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max_pool(window, dtype, fill):
    size, *rest = window
    for layout in LAYOUTS if dtype is torch.float32 else LAYOUTS[:1]:
        x = image(size, dtype, layout, fill)
        result = gpu_tools.max_pool2d(x, *rest)
        truth = F.max_pool2d_with_indices(x, *rest)
        for mine, theirs in zip(result, truth, strict=True):
            assert torch.equal(mine.nan_to_num(9), theirs.nan_to_num(9))
            assert mine.dtype is theirs.dtype
            assert laid_out(mine, layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS[:-1], ids=str)
def test_max_pool_backward(window, dtype):
    size, *rest = window
    x = image(size, torch.float64, fill="ties" if dtype is torch.float32 else "normal").requires_grad_()
    y, indices = F.max_pool2d_with_indices(x, *rest)
    for layout in LAYOUTS if dtype is torch.float32 else LAYOUTS[:1]:
        dy = image(y.shape, dtype, layout)
        (truth,) = torch.autograd.grad(y, x, dy.double(), retain_graph=True)
        given = indices.contiguous() if layout == "nchw" else indices
        dx = gpu_tools.max_pool2d_backward(dy, given, size, *rest, layout != "nchw")
        check(dx, truth, layout)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [window for window in WINDOWS if window[4] == (1, 1)], ids=str)
def test_avg_pool(window, dtype, count_include_pad):
    size, kernel, stride, padding, _, ceil_mode = window
    rest = (kernel, stride, padding, ceil_mode, count_include_pad)
    for layout in LAYOUTS if dtype is torch.float32 else LAYOUTS[:1]:
        x = image(size, dtype, layout)
        wide = x.double().requires_grad_()
        truth = F.avg_pool2d(wide, *rest)
        y = gpu_tools.avg_pool2d(x, *rest)
        check(y, truth.detach(), layout)
        dy = image(truth.shape, dtype, layout)
        (truth,) = torch.autograd.grad(truth, wide, dy.double())
        check(gpu_tools.avg_pool2d_backward(dy, size, *rest, layout != "nchw"), truth, layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 5, 7, 7), (2, 130, 3, 2), (2, 9, 31, 40)])
def test_global_avg_pool(size, dtype):
    """The last is large enough to be summed in parts."""
    for layout in LAYOUTS:
        x = image(size, dtype, layout)
        check(gpu_tools.global_avg_pool2d(x), F.adaptive_avg_pool2d(x.double(), 1), layout)


def test_wrong_arguments_and_empty_batches():
    x = torch.randn(1, 6, 4, 4)
    pair = (2, 2)
    with pytest.raises(RuntimeError, match="does not divide"):
        gpu_tools.channel_shuffle(x, 4)
    with pytest.raises(RuntimeError, match="positive"):
        gpu_tools.max_pool2d(x, pair, (0, 1), (0, 0), (1, 1), False)
    with pytest.raises(RuntimeError, match="half its size"):
        gpu_tools.avg_pool2d(x, pair, pair, pair, False, True)
    with pytest.raises(RuntimeError, match="larger than the padded input"):
        gpu_tools.avg_pool2d(x, (5, 5), pair, (0, 0), False, True)
    with pytest.raises(RuntimeError, match="dy has the wrong sizes"):
        gpu_tools.avg_pool2d_backward(x, (1, 6, 4, 4), pair, pair, (0, 0), False, True, False)
    assert gpu_tools.max_pool2d(x[:0], pair, pair, (0, 0), (1, 1), False)[1].shape == (0, 6, 2, 2)
    assert gpu_tools.global_avg_pool2d(x[:0]).shape == (0, 6, 1, 1)
