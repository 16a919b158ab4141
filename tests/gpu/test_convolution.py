"""Every Triton convolution kernel on a real GPU, in every config: `make gpu` runs this, on a machine that has one.

What Triton's interpreter has shown on small problems is repeated here on the compiled kernels, with what only a GPU can
show: graph capture, side streams, tensors of more than 2^31 elements.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import cnnkern
from cnnkern import dispatch, testing
from cnnkern.backends.triton import listed
from cnnkern.problem import ConvProblem

GRID = [*testing.grid(["fprop"], ["f32"]), *testing.random_problems(30, dtype="f32", direction="fprop")]
LAYER = "n4c64h28w28-k64r3s3-p1"


def on_gpu(problem, given):
    moved = {name: value.cuda() for name, value in vars(given).items() if value is not None}
    return replace(given, **moved)


def check(problem, name, fill):
    given = testing.operands(problem, fill)
    truth = testing.oracle(problem, given)
    result = testing.run(problem, on_gpu(problem, given), name).cpu()
    if fill == "integers":
        assert torch.equal(result, truth.to(result.dtype)), (problem, name)
    else:
        allowed = testing.tolerance(problem, testing.error(testing.vendor(problem, given), truth))
        assert testing.error(result, truth) <= allowed, (problem, name)


def computable(name):
    kernel, dtype = listed()[name][0], name.split("_nhwc_")[0].rsplit("_", 1)[1]
    own = [replace(problem, direction=kernel.direction, dtype=dtype) for problem in GRID]
    return [problem for problem in own if not kernel.why_not(problem)]


@pytest.mark.parametrize("name", listed())
def test_exact_on_integers(name):
    for problem in computable(name):
        check(problem, name, "integers")


@pytest.mark.parametrize("name", [name for name, (kernel, config) in listed().items() if config == kernel.configs[0]])
def test_close_to_float64(name):
    for problem in computable(name):
        check(problem, name, "normal")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_graph_replays_the_same_bits(dtype):
    layer = cnnkern.Conv2d(64, 64, 3, padding=1, device="cuda", dtype=dtype)
    x = torch.randn(4, 64, 28, 28, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    with torch.no_grad(), cnnkern.use(fallback="raise"):
        eager = layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for _ in range(2):
            y.zero_()
            graph.replay()
            assert torch.equal(y, eager)


def test_a_side_stream_is_used():
    layer, stream = cnnkern.Conv2d(64, 64, 3, device="cuda"), torch.cuda.Stream()
    x = torch.randn(8, 64, 56, 56, device="cuda").to(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double())
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # on another stream y would be read before it is written
        y = layer(x) * 1
    stream.synchronize()
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-3)


def test_gradients_on_the_packages_kernels_alone():
    ours, torchs = cnnkern.Conv2d(16, 24, 3, 2, 1, device="cuda"), torch.nn.Conv2d(16, 24, 3, 2, 1, device="cuda")
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 16, 15, 15, device="cuda", requires_grad=True)
    with cnnkern.use(fallback="raise"):
        found = torch.autograd.grad(ours(x).square().sum(), (x, *ours.parameters()))
    torchs, wide = torchs.double(), x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(torchs(wide).square().sum(), (wide, *torchs.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-3, atol=2e-3 * other.abs().max().item())


@pytest.mark.parametrize("problem", ["n33c64h1024w1024-k16r3s3-p1", "n33c64h1024w1024-k64r3s3-p1-g64"])
def test_more_than_2_31_elements(problem):
    p = ConvProblem.parse(f"fprop-bf16-{problem}")
    x = torch.randint(-2, 3, p.x_size, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    w = torch.randint(-2, 3, p.w_size, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    y = torch.ops.cnnkern.conv2d_fprop(
        x, w, None, None, None, p.geometry, "none", 0.0, None, None, None, None, 0, dispatch.choose(p, device="cuda")
    )
    for image in (0, 32):
        assert torch.equal(y[image], F.conv2d(x[image].float(), w.float(), padding=1, groups=p.groups).bfloat16())
