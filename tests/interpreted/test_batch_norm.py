"""Training convolution, batch normalisation, activation and residual by the Triton kernels, against float64 torch."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F

import cnnkern
from cnnkern import composed, dispatch, gpu
from cnnkern.arguments import alpha_of
from cnnkern.batch_norm import conv_bn_act
from cnnkern.operands import Operands
from cnnkern.problem import ACTIVATIONS, ConvProblem
from cnnkern.testing import error
from cnnkern.triton_kernels import batch_norm, implicit_gemm, statistics
from cnnkern.triton_kernels.launch import run

LAYERS = (
    # x, w, stride, padding, dilation, groups
    ((2, 5, 6, 7), (9, 5, 3, 3), 1, 1, 1, 1),
    ((3, 8, 5, 4), (20, 8, 1, 1), 2, 0, 1, 1),
    ((2, 6, 9, 8), (12, 3, 3, 3), (2, 1), (2, 1), 2, 2),
    ((1, 7, 6, 5), (7, 1, 3, 3), 1, 1, 1, 7),
)


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed + sum(size)), dtype=torch.float64).to(dtype)


def close(result, truth, allowed, name=""):
    assert result.shape == truth.shape
    found = error(result, truth)
    assert found <= allowed, f"{name}: error {found:.2e}, allowed {allowed:.2e}"


def torchs_layers(x, w, gamma, beta, running, geometry, eps, momentum, activation, residual):
    z = F.conv2d(x, w, None, *geometry)
    v = F.batch_norm(z, *running, gamma, beta, True, momentum, eps)
    return composed.activate(v if residual is None else v + residual, activation, alpha_of(activation, None))


def compare(layer, dtype=torch.float32, activation="relu", residual=True, affine=True, nhwc=True):
    """Value, every gradient and the running statistics of one layer, which may have twice the error of torch's own."""
    x_size, w_size, *geometry = layer
    maps = w_size[0]
    x, w = normal(*x_size, dtype=dtype), normal(*w_size, dtype=dtype)
    if nhwc:
        x = x.contiguous(memory_format=torch.channels_last)
    gamma, beta = (normal(maps, seed=1).float() + 2, normal(maps, seed=2).float()) if affine else (None, None)
    running = (normal(maps, seed=3).float(), normal(maps, seed=4).float().abs())
    y_size = F.conv2d(x.double(), w.double(), None, *geometry).shape
    r = normal(*y_size, seed=5, dtype=dtype) if residual else None
    dy = normal(*y_size, seed=6, dtype=dtype)

    def gradients(f, tensors):
        given = [tensor if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
        y = f(*given)
        return y.detach(), *torch.autograd.grad(y, [tensor for tensor in given if tensor is not None], dy.to(y.dtype))

    def of_torch(tensors, running):
        rest = (running, geometry, 1e-3, 0.3, activation)
        return gradients(lambda x, w, g, b, r: torchs_layers(x, w, g, b, *rest, r), tensors)

    wide = tuple(tensor.double() for tensor in running)
    tensors = (x, w, gamma, beta, r)
    truth = of_torch([tensor if tensor is None else tensor.double() for tensor in tensors], wide)
    own = of_torch(tensors, tuple(tensor.clone() for tensor in running))
    result = gradients(
        lambda x, w, g, b, r: conv_bn_act(
            x, w, g, b, *running, *geometry, eps=1e-3, momentum=0.3, activation=activation, residual=r
        ),
        tensors,
    )
    format_ = torch.channels_last if nhwc else torch.contiguous_format
    assert result[0].is_contiguous(memory_format=format_)
    factor = 4 if dtype is torch.bfloat16 else 2  # the interpreter cuts bf16 off where a GPU rounds
    for i, (mine, theirs, torchs) in enumerate(zip(result, truth, own, strict=True)):
        close(mine, theirs, max(factor * error(torchs, theirs), 4e-6), f"gradient {i}" if i else "y")
    for mine, theirs in zip(running, wide, strict=True):
        close(mine, theirs, 8 * torch.finfo(dtype).eps, "running statistics")


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers(layer):
    compare(layer)
    compare(layer, residual=False, affine=False, nhwc=False)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    compare(LAYERS[1], activation=activation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype):
    """With smooth activations: the slope of relu at a value rounded to 0 is either of two."""
    for activation in ("none", "tanh"):
        compare(LAYERS[1], dtype, activation, residual=activation == "tanh")


def large_mean(pixels, maps):
    """Mean 100, sigma 0.05: in float32 the square of the one has no digit of the square of the other."""
    return (100 + 0.05 * normal(1, maps, pixels, 1)).float().contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pixels", [2, 700, 9000])
def test_statistics_of_a_large_mean(pixels):
    """The last has more partials than are merged at once."""
    z = large_mean(pixels, 5)
    launch, stats = statistics.partials_of(z)
    layer = batch_norm.Layer(None, None, eps=1e-9)
    launches, moments = batch_norm.finish(stats, layer, pixels)
    y = torch.empty_like(z)
    run([launch, *launches, batch_norm.normalise(z, None, y, moments, layer)])
    truth = z.double()
    var, mean = torch.var_mean(truth, (0, 2, 3), correction=0)
    close(moments[0], mean, 1e-7, "mean")
    close(moments[1], var, 1e-5, "var")
    close(y, F.batch_norm(truth, None, None, None, None, True, 0.0, 1e-9), 5e-4, "y")


def test_a_layer_with_a_large_mean():
    x = large_mean(300, 5).requires_grad_()
    w, gamma = torch.eye(5)[:, :, None, None], torch.full((5,), 1.5, requires_grad=True)
    dy = normal(1, 5, 300, 1, seed=1)
    y = conv_bn_act(x, w, gamma, None, None, None, activation="tanh")
    truth = torchs_layers(x.double(), w.double(), gamma.double(), None, (None, None), (), 1e-5, 0.1, "tanh", None)
    close(y, truth.detach(), 5e-4, "y")
    results = (torch.autograd.grad(t, (x, gamma), dy.to(t.dtype)) for t in (y, truth))
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs.double(), 1e-3, "gradient")


def test_partials_are_merged_over_several_levels():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(i % 5 + 1, 3, generator=generator, dtype=torch.float64) + i / 100 for i in range(4200)]
    stats = torch.stack(
        [torch.stack([torch.full((3,), len(p)), p.mean(0), (p - p.mean(0)).square().sum(0)]).float() for p in parts]
    )
    launches, merged = statistics.merge(stats)
    assert len(launches) == 2
    count = sum(map(len, parts))
    last, moments = batch_norm.finish(merged, batch_norm.Layer(None, None), count)
    run([*launches, *last])
    var, mean = torch.var_mean(torch.cat(parts), 0, correction=0)
    close(moments[0], mean, 1e-6)
    close(moments[1], var, 1e-6)
    assert torch.equal(merged[:, 0].sum(0), torch.full((3,), float(count)))


@pytest.mark.parametrize("text", ["n2c5h6w7-k19r3s3-p1", "n2c8h5w5-k12r3s3-u2-g4"])
def test_a_convolutions_partials(text):
    """Every tile's count, mean and M2 of what the convolution wrote, in each of its configs."""
    p = ConvProblem.parse(f"fprop-f32-{text}")
    x, w = (normal(*size).float().contiguous(memory_format=torch.channels_last) + 3 for size in (p.x_size, p.w_size))
    for config in implicit_gemm.KERNELS[0].configs[4:]:
        z = torch.empty(p.y_size).contiguous(memory_format=torch.channels_last)
        launch, stats = implicit_gemm.fprop_with_statistics(p, Operands(x, w, z), config)
        run([launch])
        tiles = z.double().permute(0, 2, 3, 1).reshape(-1, p.k).split(config.tile[0])
        assert stats.shape[0] == len(tiles)
        for partial, tile in zip(stats, tiles, strict=True):
            assert torch.equal(partial[0], torch.full((p.k,), float(len(tile))))
            close(partial[1], tile.mean(0), 1e-6)
            close(partial[2], (tile - tile.mean(0)).square().sum(0), 1e-5)


def test_scale_and_shift_are_a_prologue():
    """The next convolution reads z through them: y is never written."""
    z = normal(2, 6, 5, 4).float().contiguous(memory_format=torch.channels_last)
    gamma, beta = normal(6).float(), normal(6, seed=1).float()
    w = normal(8, 6, 3, 3).float()
    launch, stats = statistics.partials_of(z)
    launches, moments = batch_norm.finish(stats, batch_norm.Layer(gamma, beta), 40)
    run([launch, *launches])
    geometry = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    prologue = (moments[2], moments[3], "relu", 0.0)
    y = gpu.conv2d_fprop(z, w, None, None, None, geometry, "none", 0.0, *prologue, 0, None)
    t = F.batch_norm(z.double(), None, None, gamma.double(), beta.double(), True).relu()
    close(y, F.conv2d(t, w.double(), None, 1, 1), 1e-5)


def test_a_kernel_that_leaves_no_statistics(monkeypatch):
    """They are read from z."""

    def last(problem, flags, name):
        asked = dispatch.candidates(problem, flags, "triton", "cuda")
        return next(candidate.kernel for candidate in reversed(asked) if not candidate.why_not)

    gpu.clear_memo()
    monkeypatch.setattr(gpu, "_chosen", functools.cache(last))
    compare(LAYERS[0])
    gpu.clear_memo()


def test_the_same_bits_from_every_run():
    x, w = normal(2, 4, 9, 8).float().requires_grad_(), normal(6, 4, 1, 1).float().requires_grad_()

    def gradients():
        y = conv_bn_act(x, w, None, None, None, None, activation="silu")
        return y, *torch.autograd.grad(y.square().sum(), (x, w))

    assert all(map(torch.equal, gradients(), gradients()))


@pytest.mark.parametrize(("activation", "residual"), [("silu", True), ("none", True), ("tanh", False)])
def test_gradients_of_gradients(activation, residual):
    given = [normal(2, 3, 4, 5), normal(4, 3, 3, 3), normal(4, seed=1) + 2, normal(4, seed=2)]
    given += [normal(2, 4, 4, 5, seed=3)] * residual

    def second_order(layer, dtype):
        tensors = [tensor.to(dtype).requires_grad_() for tensor in given]
        y = layer(*tensors[:4], tensors[4] if residual else None)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), tensors)

    mine = second_order(
        lambda x, w, gamma, beta, r: conv_bn_act(
            x, w, gamma, beta, None, None, 1, 1, activation=activation, residual=r
        ),
        torch.float32,
    )
    theirs = second_order(
        lambda x, w, gamma, beta, r: torchs_layers(x, w, gamma, beta, (None, None), (1, 1), 1e-5, 0.1, activation, r),
        torch.float64,
    )
    for one, other in zip(mine, theirs, strict=True):
        close(one, other, 1e-4)


@pytest.mark.parametrize("residual", [True, False])
def test_the_module_trains_by_them(monkeypatch, residual):
    """Value, gradients, running statistics and the count of batches are those of the three layers."""
    fused = cnnkern.ConvBNReLU2d(6, 8, 3, 2, 1, groups=2, activation="leaky_relu")
    plain = copy.deepcopy(fused)
    x, r = normal(3, 6, 7, 5).float(), normal(3, 8, 4, 3, seed=1).float() if residual else None

    def step(block):
        given = x.clone().requires_grad_()
        for _ in range(2):
            y = cnnkern.nn.conv_bn_act(block.conv, block.bn, given, "leaky_relu", r)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (given, *block.parameters()))

    wanted = step(plain)
    monkeypatch.setattr(cnnkern.nn, "_trains_fused", lambda *_: True)
    for one, other in zip(step(fused), wanted, strict=True):
        close(one, other.double(), 1e-5)
    for one, other in zip(fused.buffers(), plain.buffers(), strict=True):
        close(one.double(), other.double(), 1e-5)


def test_slices_as_operands():
    """x, dy and residual as slices of maps of wider buffers, and dy without memory of its own."""
    x, w = normal(2, 8, 5, 5).float(), normal(6, 4, 3, 3).float()
    wide = normal(2, 10, 5, 5, seed=1).float().contiguous(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)[:, 3:7].detach().requires_grad_()
    residual = wide[:, 2:8].detach().requires_grad_()
    results = []
    for dtype in (torch.float32, torch.float64):
        y_of = conv_bn_act if dtype is torch.float32 else None
        a, b, r = (tensor.to(dtype) for tensor in (x, w, residual))
        if y_of is None:
            y = torchs_layers(a, b, None, None, (None, None), (1, 1), 1e-5, 0.1, "relu", r)
        else:
            y = y_of(a, b, None, None, None, None, padding=1, residual=r)
        for dy in (wide.to(dtype)[:, 1:7], torch.ones((), dtype=dtype).expand_as(y)):
            results.append((y, *torch.autograd.grad(y, (x, residual), dy, retain_graph=True)))
    for mine, truth in zip(results[:2], results[2:], strict=True):
        for a, b in zip(mine, truth, strict=True):
            close(a.detach(), b.detach().double(), 1e-4)


def test_wrong_arguments():
    x, w, ones = normal(1, 2, 3, 3).float(), normal(4, 2, 3, 3).float(), torch.ones(4)
    with pytest.raises(ValueError, match="more than one value"):
        conv_bn_act(x, w, ones, ones, None, None)
    with pytest.raises(ValueError, match="given together"):
        conv_bn_act(x, w, ones, ones, ones, None, padding=1)
    with pytest.raises(ValueError, match="gamma"):
        conv_bn_act(x, w, ones[:3], ones, None, None, padding=1)
    with pytest.raises(ValueError, match="residual"):
        conv_bn_act(x, w, ones, ones, None, None, padding=1, residual=x)
    with pytest.raises(ValueError, match="x is torch"):
        conv_bn_act(x, w.double(), ones, ones, None, None)
    with pytest.raises(ValueError, match="unknown activation"):
        conv_bn_act(x, w, ones, ones, None, None, padding=1, activation="gelu")
