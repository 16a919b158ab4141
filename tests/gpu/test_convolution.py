"""Every convolution kernel for GPUs on a real one, in every config: `make gpu` runs this, on a machine that has one.

What Triton's interpreter and the host build of the CUDA kernels have shown on small problems is repeated here on the
compiled kernels, with what only a GPU can show: graph capture, side streams, tensors of more than 2^31 elements.
"""

import functools
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import cnnkern
from cnnkern import dispatch, testing
from cnnkern.backends import BACKENDS, OWN_BACKENDS, KernelName
from cnnkern.flags import TF32
from cnnkern.problem import ConvProblem

GRID = [*testing.grid(["fprop"], ["f32"]), *testing.random_problems(30, dtype="f32", direction="fprop")]
NAMES = [
    name
    for backend in BACKENDS
    if backend.name in OWN_BACKENDS["cuda"] and not backend.why_missing()
    for name in backend.kernels()
]


def on_gpu(given):
    moved = {name: value.cuda() for name, value in vars(given).items() if value is not None}
    return replace(given, **moved)


@functools.cache
def reasons(problem, flags):
    return {kernel: why_not for kernel, why_not, _ in dispatch.candidates(problem, flags, device="cuda")}


def computable(name, flags=0):
    """The problems of the grid that the kernel computes."""
    _, _, direction, dtype, *_ = KernelName.parse(name)
    own = [replace(problem, direction=direction, dtype=dtype) for problem in GRID]
    return [problem for problem in own if not reasons(problem, flags)[name]]


@pytest.mark.parametrize("name", NAMES)
def test_exact_on_integers(name):
    """TF32 is allowed: it holds small integers."""
    able = computable(name, TF32)
    capability = 10 * torch.cuda.get_device_capability()[0]
    assert able or int(re.sub(r"\D", "", KernelName.parse(name).isa)) > capability, "it computes nothing"
    for problem in able:
        given = testing.operands(problem, "integers")
        result, truth = testing.run(problem, on_gpu(given), name, TF32).cpu(), testing.oracle(problem, given)
        assert torch.equal(result, truth.to(result.dtype)), problem


@pytest.mark.parametrize("name", list({KernelName.parse(name)._replace(tile=""): name for name in NAMES}.values()))
def test_close_to_float64(name):
    for problem in computable(name):
        given = testing.operands(problem)
        result, truth = testing.run(problem, on_gpu(given), name).cpu(), testing.oracle(problem, given)
        allowed = testing.tolerance(problem, testing.error(testing.vendor(problem, given), truth))
        assert testing.error(result, truth) <= allowed, problem


@pytest.mark.parametrize("backend", OWN_BACKENDS["cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_graph_replays_the_same_bits(dtype, backend):
    layer = cnnkern.Conv2d(64, 64, 3, padding=1, device="cuda", dtype=dtype)
    x = torch.randn(4, 64, 28, 28, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    with torch.no_grad(), cnnkern.use(backend, fallback="raise"):
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


@pytest.mark.parametrize("backend", OWN_BACKENDS["cuda"])
def test_gradients_on_the_packages_kernels_alone(backend):
    ours, torchs = cnnkern.Conv2d(16, 24, 3, 2, 1, device="cuda"), torch.nn.Conv2d(16, 24, 3, 2, 1, device="cuda")
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 16, 15, 15, device="cuda", requires_grad=True)
    with cnnkern.use(backend, fallback="raise"):
        found = torch.autograd.grad(ours(x).square().sum(), (x, *ours.parameters()))
    torchs, wide = torchs.double(), x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(torchs(wide).square().sum(), (wide, *torchs.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-3, atol=2e-3 * other.abs().max().item())


@pytest.mark.parametrize("backend", OWN_BACKENDS["cuda"])
@pytest.mark.parametrize("problem", ["n33c64h1024w1024-k16r3s3-p1", "n33c64h1024w1024-k64r3s3-p1-g64"])
def test_more_than_2_31_elements(problem, backend):
    p = ConvProblem.parse(f"fprop-bf16-{problem}")
    x = torch.randint(-2, 3, p.x_size, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    w = torch.randint(-2, 3, p.w_size, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    y = torch.ops.cnnkern.conv2d_fprop(
        x,
        w,
        None,
        None,
        None,
        p.geometry,
        "none",
        0.0,
        None,
        None,
        None,
        None,
        0,
        dispatch.choose(p, 0, backend, "cuda"),
    )
    for image in (0, 32):
        assert torch.equal(y[image], F.conv2d(x[image].float(), w.float(), padding=1, groups=p.groups).bfloat16())
