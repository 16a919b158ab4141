"""The CUDA kernels that are no single convolution, run on the CPU (tests/simt) through the library's C interface."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cnnkern import composed, gpu, gpu_tools
from cnnkern.arguments import alpha_of
from cnnkern.backends import cuda, cuda_tools
from cnnkern.batch_norm import conv_bn_act
from cnnkern.flags import TF32
from cnnkern.functional import joined
from cnnkern.operands import Layer, Operands
from cnnkern.problem import ACTIVATIONS
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
    monkeypatch.setattr(gpu_tools, "tools", lambda flags=0: cuda_tools)


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


STEMS = (
    # x, maps, filter, stride, padding; padding of the pool, ceil_mode
    ((2, 3, 33, 29), 64, 7, 2, 3, 1, False),
    ((1, 3, 64, 66), 72, 7, 2, 3, 0, True),
    ((1, 3, 75, 67), 40, 11, 4, 0, 0, False),
    ((3, 1, 13, 37), 24, 3, 2, 1, 1, True),
    ((1, 4, 3, 4), 8, 3, 2, (1, 0), 1, False),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stem", STEMS, ids=str)
def test_a_stem_with_its_pooling(stem, dtype):
    """Of integers, whose sums are exact, and a NaN: what the two layers give, from several tiles, cut off and not."""
    size, maps, taps, stride, padding, pool_padding, ceil_mode = stem
    x = images(*size, dtype, gap=1).round()
    x[-1, 0, -1, -1] = torch.nan
    w = images(maps, size[1], taps, taps, dtype).round().clamp(-1, 1)
    scale, shift = torch.arange(maps) % 3 - 1.0, (torch.arange(maps) % 5 - 2).to(dtype)
    top, left = (padding, padding) if isinstance(padding, int) else padding
    geometry = (stride, stride, top, left, top, left, 1, 1, 1)
    window = ((3, 3), (2, 2), (pool_padding,) * 2, ceil_mode)
    y = gpu_tools.conv2d_max_pool2d(x, w, scale, shift, geometry, "relu", 0.0, *window, TF32)
    z = F.conv2d(x.double(), w.double(), None, stride, padding)
    z = F.relu(z * scale[:, None, None] + shift.double()[:, None, None]).to(dtype)
    wanted = F.max_pool2d(z, *window[:3], 1, ceil_mode)
    assert y.isnan().any() == wanted.isnan().any()
    assert torch.equal(y.nan_to_num(-1), wanted.nan_to_num(-1))


def test_what_no_kernel_pools_is_two_kernels(monkeypatch):
    x, w = images(1, 3, 9, 9, torch.float32), images(8, 3, 3, 3, torch.float32)
    monkeypatch.setattr(gpu_tools, "conv2d_fprop", lambda x, w, *rest: F.conv2d(x, w, None, 2, 1))
    geometry = (2, 2, 1, 1, 1, 1, 1, 1, 1)
    for pool, flags in (((3, 3), 0), ((2, 2), TF32)):  # neither TF32 nor windows of 2x2
        y = gpu_tools.conv2d_max_pool2d(x, w, None, None, geometry, "none", 0.0, pool, (2, 2), (0, 0), False, flags)
        assert torch.equal(y, F.max_pool2d(F.conv2d(x, w, None, 2, 1), pool, 2))


def large_mean(pixels, maps, dtype=torch.float32):
    """Mean 100, sigma 0.05: in float32 the square of the one has no digit of the square of the other."""
    return (images(1, maps, pixels, 1, torch.float64) * 0.05 + 100).to(dtype)


@pytest.mark.parametrize(("pixels", "maps"), [(40, 5), (700, 8), (9000, 5), (70, 1100)])
def test_statistics_of_a_large_mean(pixels, maps):
    """Maps in vectors and one by one, of fewer and more pixels than a block has threads, and in several blocks."""
    z, layer = large_mean(pixels, maps), Layer(None, None, eps=1e-9)
    y = torch.empty_like(z)
    moments = cuda_tools.normalise(z, cuda_tools.partials_of(z), None, y, layer, None, 0.0)
    var, mean = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    eps = torch.finfo(torch.float32).eps
    assert error(moments[0], mean) <= 2 * eps
    assert error(moments[1], var) <= eps * 100 / 0.05  # a mean that is rounded is off by so much of a sigma
    assert error(y, F.batch_norm(z.double(), None, None, None, None, True, 0.0, 1e-9)) <= 5e-4


@pytest.mark.parametrize("count", [1, 512, 513, 300_000])
def test_partials_are_merged_over_several_levels(count):
    """Of parts of one to five pixels, which have means of their own."""
    generator = torch.Generator().manual_seed(count)
    counts = torch.randint(1, 6, (count,), generator=generator)
    values = (
        torch.randn(count, 5, 3, generator=generator, dtype=torch.float64) + torch.arange(count)[:, None, None] / count
    )
    there = (torch.arange(5) < counts[:, None])[:, :, None]
    mean = (values * there).sum(1) / counts[:, None]
    m2 = ((values - mean[:, None]).square() * there).sum(1)
    stats = torch.stack([counts[:, None].expand(-1, 3), mean, m2], 1).float()
    z = torch.zeros(1, 3, 1, int(counts.sum())).contiguous(memory_format=torch.channels_last)
    moments = cuda_tools.normalise(z, stats, None, torch.empty_like(z), Layer(None, None), None, 0.0)
    var, mean = torch.var_mean(values[there.expand_as(values)].view(-1, 3), 0, correction=0)
    assert error(moments[0], mean) <= 1e-6
    assert error(moments[1], var) <= 1e-6


class Torchs:
    """A prepared call that is torch's convolution."""

    partials = 0

    def __init__(self, kernel, problem, flags):
        self.problem = problem

    def __call__(self, operands: Operands):
        p, o = self.problem, operands
        geometry = (p.stride, p.padding[:2], p.dilation)
        if p.direction == "fprop":
            o.y.copy_(F.conv2d(o.x, o.w, None, *geometry, p.groups))
            return
        wanted = (p.direction == "dgrad", p.direction == "wgrad", False)
        x = torch.empty(p.x_size, dtype=o.x.dtype) if p.direction == "dgrad" else o.x
        rest = (None, *geometry, False, (0, 0), p.groups, wanted)
        dx, dw, _ = torch.ops.aten.convolution_backward(o.y, x, o.w.nan_to_num() if wanted[1] else o.w, *rest)
        (o.x if wanted[0] else o.w).copy_(dx if wanted[0] else dw)


@pytest.fixture
def by_torch(monkeypatch):
    """Convolutions are torch's, and statistics therefore read from what they write."""
    monkeypatch.setattr(gpu, "_chosen", lambda *_: "torch's")
    monkeypatch.setattr(gpu, "_prepared", lambda problem, flags, name: Torchs(name, problem, flags))
    monkeypatch.setattr(cuda_tools, "_prepared", Torchs)


def layer_of(dtype, maps, groups=1):
    """x, w, gamma, beta and residual of a 3x3 convolution, x as a slice of a wider buffer, and dy."""
    x, w = images(2, 8, 7, 6, dtype, gap=8), images(maps, 8 // groups, 3, 3, dtype, gap=1) / 9
    gamma, beta = torch.rand(maps) + 0.5, torch.randn(maps, generator=torch.Generator().manual_seed(1))
    residual, dy = images(2, maps, 4, 3, dtype, gap=3), images(2, maps, 4, 3, dtype)
    return x, w, gamma, beta, residual, dy


def gradients_of(layer, tensors, dy):
    given = [tensor if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    y = layer(*given)
    return y.detach(), *torch.autograd.grad(y, [tensor for tensor in given if tensor is not None], dy.to(y.dtype))


CASES = (
    # dtype, maps, activation, whether there are gamma and beta, a residual
    *((torch.float32, 16, activation, True, True) for activation in ACTIVATIONS),
    (torch.float32, 6, "relu", False, False),
    (torch.bfloat16, 24, "tanh", True, True),
    (torch.float16, 6, "none", True, False),
)


@pytest.mark.parametrize(("dtype", "maps", "activation", "affine", "residual"), CASES, ids=str)
def test_a_layer_in_training(by_torch, dtype, maps, activation, affine, residual):
    """Value, gradients and running statistics, with at most twice the error of torch's own layers."""
    *tensors, dy = layer_of(dtype, maps)
    tensors[2:4] = tensors[2:4] if affine else (None, None)
    tensors[4] = tensors[4] if residual else None
    running = (torch.randn(maps), torch.rand(maps).to(dtype))

    def torchs(running):
        def layer(x, w, gamma, beta, residual):
            z = F.batch_norm(F.conv2d(x, w, None, 2, 1), *running, gamma, beta, True, 0.3, 1e-3)
            return composed.activate(z if residual is None else z + residual, activation, alpha_of(activation, None))

        return layer

    def own(x, w, gamma, beta, residual):
        how = {"eps": 1e-3, "momentum": 0.3, "activation": activation, "residual": residual}
        return conv_bn_act(x, w, gamma, beta, *running, 2, 1, **how)

    wide = tuple(tensor.double() for tensor in running)
    truth = gradients_of(torchs(wide), [None if t is None else t.double() for t in tensors], dy)
    narrow = gradients_of(torchs((running[0].clone(), running[1].float().clone())), tensors, dy)
    for mine, theirs, torchs_own in zip(gradients_of(own, tensors, dy), truth, narrow, strict=True):
        assert error(mine, theirs) <= max(2 * error(torchs_own, theirs), 4e-6)
    for mine, theirs in zip(running, wide, strict=True):
        assert error(mine, theirs) <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("with_others", [False, True])
def test_a_shuffled_layer_in_training(by_torch, with_others):
    """The same bits as the layer, concatenated and shuffled afterwards."""
    *tensors, dy = layer_of(torch.float32, 24)
    tensors[4] = images(2, 24, 4, 3, torch.float32) if with_others else None
    dy = torch.cat([dy, dy.flip(1)], 1) if with_others else dy

    def shuffled(*t):
        return conv_bn_act(*t[:4], None, None, 2, 1, beside=t[4], shuffle=4)

    def apart(*t):
        return joined(conv_bn_act(*t[:4], None, None, 2, 1), t[4], 4)

    assert all(map(torch.equal, gradients_of(shuffled, tensors, dy), gradients_of(apart, tensors, dy)))


def test_the_same_bits_from_every_run(by_torch):
    x, w, gamma, beta, residual, dy = layer_of(torch.float32, 24, groups=2)

    def once():
        return gradients_of(
            lambda *t: conv_bn_act(*t[:4], None, None, 2, 1, 1, 2, residual=t[4]), (x, w, gamma, beta, residual), dy
        )

    assert all(map(torch.equal, once(), once()))
