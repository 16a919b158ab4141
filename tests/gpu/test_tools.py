"""The kernels around convolution on a real GPU, by both backends, against torch in float64."""

import pytest
import torch
import torch.nn.functional as F

from cnnkern import gpu_tools
from cnnkern.backends import cuda_tools, triton_tools, why_no_gpu
from cnnkern.testing import error

pytestmark = pytest.mark.skipif(bool(why_no_gpu()), reason="no kernel runs on this GPU")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDINGS = 16  # of sums of some hundred terms of either sign, in units of their last place
WINDOWS = (
    ((3, 3), (2, 2), (1, 1), False),
    ((2, 2), (2, 2), (0, 0), False),
    ((3, 2), (1, 3), (1, 0), True),
)


@pytest.fixture(autouse=True, params=[triton_tools, cuda_tools], ids=lambda tools: tools.BACKEND)
def _by_each_backend(request, monkeypatch):
    monkeypatch.setattr(gpu_tools, "tools", lambda flags=0: request.param)


def images(n, c, h, w, dtype, gap=0):
    """NHWC, as a slice of maps of a wider buffer where there is a gap."""
    generator = torch.Generator("cuda").manual_seed(c)
    wide = torch.randn(n, h, w, c + gap, generator=generator, device="cuda").to(dtype)
    return wide[..., :c].permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(240, 3), (32, 2), (40, 5), (7, 7)])
def test_channel_shuffle(channels, groups, dtype):
    for x in (images(2, channels, 9, 7, torch.float32, gap=8), images(2, channels, 9, 7, torch.float32).contiguous()):
        x = x.to(dtype)
        assert torch.equal(gpu_tools.channel_shuffle(x, groups), F.channel_shuffle(x, groups))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels", [64, 5])
def test_max_pool(channels, window, dtype):
    kernel, stride, padding, ceil_mode = window
    x = images(2, channels, 29, 31, dtype, gap=8)
    how = (kernel, stride, padding, (1, 1), ceil_mode)
    y, places = gpu_tools.max_pool2d(x, *how)
    assert torch.equal(y, F.max_pool2d(x, *how))
    assert torch.equal(x.flatten(2).gather(2, places.flatten(2)), y.flatten(2))
    dy = images(*y.shape, dtype, gap=8)
    dx = gpu_tools.max_pool2d_backward(dy, places, x.shape, *how, True)
    truth = torch.zeros(*x.shape[:2], 29 * 31, dtype=torch.float64, device="cuda")
    truth.scatter_add_(2, places.flatten(2), dy.double().flatten(2))
    assert error(dx.flatten(2), truth) <= ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_avg_pool(window, dtype):
    kernel, stride, padding, ceil_mode = window
    x = images(2, 40, 29, 31, dtype, gap=8)
    given = x.double().requires_grad_()
    wanted = F.avg_pool2d(given, kernel, stride, padding, ceil_mode, False)
    how = (kernel, stride, padding, ceil_mode, False)
    y = gpu_tools.avg_pool2d(x, *how)
    assert error(y, wanted.detach()) <= ROUNDINGS * torch.finfo(dtype).eps
    dy = images(*y.shape, dtype)
    (truth,) = torch.autograd.grad(wanted, given, dy.double())
    assert error(gpu_tools.avg_pool2d_backward(dy, x.shape, *how, True), truth) <= ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(2, 2048, 7, 7), (1, 5, 40, 33)])
def test_global_avg_pool(size, dtype):
    x = images(*size, dtype, gap=8)
    truth = x.double().mean((2, 3), keepdim=True)
    assert error(gpu_tools.global_avg_pool2d(x), truth) <= ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "k", "stride"), [(64, 128, 1), (40, 72, 2), (16, 200, 1)])
def test_depthwise_separable(c, k, stride, dtype):
    x = images(2, c, 29, 31, dtype, gap=8)
    dw, pw = images(c, 1, 3, 3, dtype), images(k, c, 1, 1, dtype) / c**0.5
    scale, shift = torch.rand(c, device="cuda") + 0.5, torch.randn(c, device="cuda")
    geometry = (stride, stride, 1, 1, 1, 1, 1, 1, c)
    y = gpu_tools.depthwise_separable(x, dw, scale, shift, "relu6", 0, pw, None, None, "none", 0, geometry, 0, None)
    between = F.conv2d(x.double(), dw.double(), None, stride, 1, 1, c) * scale.double()[:, None, None]
    wanted = F.conv2d(F.relu6(between + shift.double()[:, None, None]), pw.double())
    assert error(y, wanted) <= ROUNDINGS * torch.finfo(dtype).eps
