"""The CUDA kernels that are no single convolution, run on the CPU (tests/simt) through the library's C interface."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cnnkern import gpu_tools
from cnnkern.backends import cuda, cuda_tools
from cnnkern.testing import error
from cnnkern.window import Window

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "simt_tools"
HEADERS = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include" / "cuda_bf16.h"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDINGS = 16  # of sums of up to 200 terms of either sign, in units of their last place

pytestmark = [
    pytest.mark.skipif(not HEADERS.exists(), reason="there are no headers of a CUDA toolkit"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def built():
    options = ("-DCNNKERN_CPU=OFF", "-DCNNKERN_SIMT=ON", f"-DPython_EXECUTABLE={sys.executable}")
    subprocess.run(("cmake", "-S", ROOT, "-B", BUILD, *options), check=True, stdout=subprocess.DEVNULL)
    build = ("cmake", "--build", BUILD, "--parallel", str(os.cpu_count()), "--target", "simt_tools")
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    library = ctypes.CDLL(str(BUILD / "tests" / "simt" / "libsimt_tools.so"))
    cuda.declare(library, cuda.TOOLS)
    return library


@pytest.fixture(autouse=True)
def on_the_cpu(built, monkeypatch):
    monkeypatch.setattr(cuda_tools, "library", lambda: built)
    monkeypatch.setattr(cuda_tools, "place", lambda tensor: (0, 0))
    monkeypatch.setattr(gpu_tools, "_tools", lambda flags=0: cuda_tools)


def images(n, c, h, w, dtype, gap=0):
    """NHWC, as a slice of maps of a wider buffer of NaN where there is a gap."""
    wide = torch.full((n, h, w, c + gap), torch.nan, dtype=dtype)
    x = wide[..., :c].permute(0, 3, 1, 2)
    return x.copy_(torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(c), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64, torch.int8], ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(48, 3), (32, 2), (40, 5), (7, 7), (6, 1)])
def test_channel_shuffle(channels, groups, dtype):
    x = images(2, channels, 3, 5, torch.float64, gap=8).to(dtype)
    assert torch.equal(gpu_tools.channel_shuffle(x, groups), F.channel_shuffle(x, groups))


WINDOWS = (
    Window((3, 3), (2, 2), (1, 1)),
    Window((2, 2), (2, 2), (0, 0)),
    Window((3, 2), (1, 3), (1, 0), (2, 1)),
    Window((3, 3), (2, 2), (0, 1), ceil_mode=True),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels", [8, 5])
def test_max_pool(channels, window, dtype):
    """Values, places and gradients, where values are the same more than once and some are NaN."""
    x = images(2, channels, 9, 7, dtype, gap=8).mul(2).round()
    x[0, 0, 0, 0], x[-1, -1, -1, -1] = torch.nan, torch.nan
    how = (window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode)
    wanted, places = F.max_pool2d(x, *how, return_indices=True)
    y, indices = gpu_tools.max_pool2d(x, *how)
    assert torch.equal(y.nan_to_num(99), wanted.nan_to_num(99))
    assert torch.equal(indices, places)
    dy = images(*y.shape, dtype, gap=8)
    dx = gpu_tools.max_pool2d_backward(dy, indices, x.shape, *how, True)
    given = x.double().nan_to_num(99).requires_grad_()
    (truth,) = torch.autograd.grad(F.max_pool2d(given, *how), given, dy.double())
    assert error(dx, truth) <= ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [window for window in WINDOWS if window.dilation == (1, 1)], ids=str)
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_avg_pool(count_include_pad, window, dtype):
    x = images(2, 12, 9, 7, dtype, gap=4)
    how = (window.kernel, window.stride, window.padding, window.ceil_mode, count_include_pad)
    given = x.double().requires_grad_()
    wanted = F.avg_pool2d(given, *how)
    y = gpu_tools.avg_pool2d(x, *how)
    assert error(y, wanted.detach()) <= ROUNDINGS * torch.finfo(dtype).eps
    dy = images(*y.shape, dtype, gap=4)
    (truth,) = torch.autograd.grad(wanted, given, dy.double())
    assert error(gpu_tools.avg_pool2d_backward(dy, x.shape, *how, True), truth) <= ROUNDINGS * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(2, 16, 7, 7), (1, 5, 40, 33), (3, 8, 1, 1)])
def test_global_avg_pool(size, dtype):
    x = images(*size, dtype, gap=8)
    assert (
        error(gpu_tools.global_avg_pool2d(x), x.double().mean((2, 3), keepdim=True))
        <= ROUNDINGS * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "k", "stride"), [(8, 16, 1), (40, 72, 2), (16, 200, 1)])
def test_depthwise_separable(c, k, stride, dtype):
    x = images(2, c, 9, 7, dtype, gap=8)
    dw, pw = images(c, 1, 3, 3, dtype), images(k, c, 1, 1, dtype) / c**0.5
    scale, shift, bias = torch.rand(c) + 0.5, torch.randn(c), torch.randn(k).to(dtype)
    geometry = (stride, stride, 1, 1, 1, 1, 1, 1, c)
    y = gpu_tools.depthwise_separable(
        x, dw, scale, shift, "relu6", 0.0, pw, None, bias, "leaky_relu", 0.1, geometry, 0, None
    )
    per_map = scale.double()[:, None, None], shift.double()[:, None, None]
    between = F.relu6(F.conv2d(x.double(), dw.double(), None, stride, 1, 1, c) * per_map[0] + per_map[1])
    wanted = F.leaky_relu(F.conv2d(between, pw.double(), bias.double()), 0.1)
    assert error(y, wanted) <= ROUNDINGS * torch.finfo(dtype).eps
