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
from triton import OutOfResources

import cnnkern
from cnnkern import dispatch, ops, testing
from cnnkern.backends import BACKENDS, OWN_BACKENDS, KernelName
from cnnkern.flags import TF32
from cnnkern.problem import ConvProblem

# For the kernels that take whole vectors of maps, or filters of one size.
ALIGNED = (
    "n2c64h12w9-k72r1s1",
    "n1c64h12w12-k128r3s3-p1",
    "n2c3h17w30-k64r3s3-p1",
    "n2c3h18w33-k32r3s3-u2-p1",
    "n1c3h31w40-k64r7s7-u2-p3",
    "n1c3h39w48-k32r11s11-u4-p2",
    "n1c64h9w9-k64r3s3-p1-g16",
    "n1c64h9w9-k64r3s3-p1-g8",
    "n1c64h9w9-k64r3s3-p1-g4",
    "n1c64h9w9-k64r3s3-u2-p1-g2",
    "n2c32h9w9-k32r3s3-p1-g32",
    "n2c32h9w9-k32r3s3-u2-p1-g32",
    "n2c32h9w9-k32r5s5-p2-g32",
    "n2c32h9w9-k32r7s7-p3-g32",
    "n2c32h9w9-k32r7s7-u2-p3-g32",
)
GRID = [
    *testing.grid(["fprop"], ["f32"]),
    *testing.random_problems(30, dtype="f32", direction="fprop"),
    *(ConvProblem.parse(f"fprop-f32-{shape}") for shape in ALIGNED),
]
NAMES = [
    name
    for backend in BACKENDS
    if backend.name in OWN_BACKENDS["cuda"] and not backend.why_missing()
    for name in backend.kernels()
]


def on_gpu(given):
    """The operands with their strides, and with what their storage holds between them."""

    def moved(tensor):
        storage = tensor.untyped_storage().cuda()
        return tensor.new_empty(0, device="cuda").set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    return replace(given, **{name: moved(value) for name, value in vars(given).items() if value is not None})


@functools.cache
def reasons(problem, flags):
    return {kernel: why_not for kernel, why_not, _ in dispatch.candidates(problem, flags, device="cuda")}


def computable(name, flags=0):
    """The problems of the grid that the kernel computes.

    Triton compiles a kernel anew for most of them, up to a second each time: half are for its smallest tile in float32,
    of which they fill several, and fewer for the others.
    """
    backend, _, direction, dtype, *_ = KernelName.parse(name)
    own = [replace(problem, direction=direction, dtype=dtype) for problem in GRID]
    found = [problem for problem in own if not reasons(problem, flags)[name]]
    step = {"cuda": 1, "triton": 12 if name not in SMALLEST else {"f32": 2, "bf16": 4, "f16": 12}[dtype]}[backend]
    return found[::step]


@functools.lru_cache
def posed(problem, fill):
    """The problem's operands on the GPU, the oracle's result and the error of torch's own."""
    given = testing.operands(problem, fill)
    truth = testing.oracle(problem, given)
    return on_gpu(given), truth, testing.error(testing.vendor(problem, given), truth)


# The last tile of each list.
SMALLEST = {KernelName.parse(name)._replace(tile=""): name for name in NAMES}.values()


@pytest.mark.parametrize("name", NAMES)
def test_exact_on_integers(name):
    """TF32 is allowed: it holds small integers."""
    able = computable(name, TF32)
    capability = 10 * torch.cuda.get_device_capability()[0]
    assert able or int(re.sub(r"\D", "", KernelName.parse(name).isa)) > capability, "it computes nothing"
    for problem in able:
        given, truth, _ = posed(problem, "integers")
        try:
            result = testing.run(problem, given, name, TF32).cpu()
        except OutOfResources:  # tuning leaves it out
            assert name not in SMALLEST, "the smallest tile fits every GPU"
            return
        assert torch.equal(result, truth.to(result.dtype)), problem


@pytest.mark.parametrize("name", SMALLEST)
def test_close_to_float64(name):
    for problem in computable(name)[::4]:
        given, truth, torchs = posed(problem, "normal")
        result = testing.run(problem, given, name).cpu()
        assert testing.error(result, truth) <= testing.tolerance(problem, torchs), problem


@pytest.mark.parametrize("backend", OWN_BACKENDS["cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("taps", [1, 3])
def test_a_graph_replays_the_same_bits(taps, dtype, backend):
    layer = cnnkern.Conv2d(64, 64, taps, padding=taps // 2, device="cuda", dtype=dtype)
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
    layer(x)  # what is compiled or loaded now takes no time later
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)  # a kernel on another stream would read it before
        y = layer(late)
    stream.synchronize()
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)  # TF32


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("backend", OWN_BACKENDS["cuda"])
def test_a_gpu_that_is_not_the_current_one(backend):
    layer, x = cnnkern.Conv2d(64, 64, 3), torch.randn(2, 64, 9, 9).to(memory_format=torch.channels_last)
    with cnnkern.use(backend, fallback="raise"), torch.no_grad():
        here, there = (layer.to(f"cuda:{i}")(x.to(f"cuda:{i}")) for i in (0, 1))
    assert there.device.index == 1
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(there.cpu(), here.cpu(), rtol=1e-2, atol=1e-2)  # they may differ, and so their kernels


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
        torch.testing.assert_close(one.double(), other, rtol=5e-3, atol=5e-3 * other.abs().max().item())  # TF32


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the latter in a CUDA graph
def test_a_compiled_layer(mode):
    layer = cnnkern.Conv2d(16, 24, 3, padding=1, device="cuda")
    x = torch.randn(4, 16, 15, 15, device="cuda", requires_grad=True)
    wanted = (x, *layer.parameters())
    with cnnkern.use(fallback="raise"):
        truth = torch.autograd.grad(layer(x).square().sum(), wanted)
        compiled = torch.compile(layer, fullgraph=True, mode=mode)
        for _ in range(3):  # the last of which replays
            found = torch.autograd.grad(compiled(x).square().sum(), wanted)
            for one, other in zip(found, truth, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


@pytest.mark.parametrize("backend", OWN_BACKENDS["cuda"])
@pytest.mark.parametrize(("maps", "groups"), [(32, 1), (32, 16), (16, 16), (16, 4)])
def test_a_batch_normalised_layer_in_training(maps, groups, backend):
    """Value, gradients and running statistics, by dense, grouped and depthwise kernels."""
    block = cnnkern.ConvBNReLU2d(16, maps, 3, 2, 1, groups=groups, device="cuda")
    x = torch.randn(4, 16, 15, 15, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    weight, wide = block.conv.weight.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    mean, var = torch.zeros(maps, device="cuda").double(), torch.ones(maps, device="cuda").double()
    truth = F.batch_norm(F.conv2d(wide, weight, None, 2, 1, 1, groups), mean, var, training=True).relu()
    with cnnkern.use(backend, fallback="raise"):
        y = block(x)
    assert y.grad_fn.name() == "_ConvBNActBackward"
    found = (
        y,
        *torch.autograd.grad(y.square().sum(), (x, block.conv.weight)),
        block.bn.running_mean,
        block.bn.running_var,
    )
    wanted = (truth, *torch.autograd.grad(truth.square().sum(), (wide, weight)), mean, var)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=5e-3, atol=5e-3 * other.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("taps", "stride", "padding", "pool_padding"), [(7, 2, 3, 1), (11, 4, 2, 0), (3, 2, 1, 1)])
def test_a_stem_with_its_pooling(taps, stride, padding, pool_padding, dtype):
    """The same bits as from convolution and pooling one after the other."""
    x = torch.randint(-2, 3, (3, 3, 224, 224), device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randint(-1, 2, (64, 3, taps, taps), device="cuda", dtype=dtype)
    scale, shift = torch.rand(64, device="cuda"), torch.randn(64, device="cuda")
    how = {"scale": scale, "shift": shift, "activation": "relu"}
    with cnnkern.use("cuda", fallback="raise"):
        y = cnnkern.functional.conv2d_max_pool2d(
            x, w, None, stride, padding, pool_size=3, pool_stride=2, pool_padding=pool_padding, **how
        )
        z = cnnkern.functional.fused_conv2d(x, w, None, stride, padding, **how)
    assert torch.equal(y, F.max_pool2d(z, 3, 2, pool_padding))


@pytest.mark.parametrize("backend", OWN_BACKENDS["cuda"])
@pytest.mark.parametrize("problem", ["n33c64h1024w1024-k16r3s3-p1", "n33c64h1024w1024-k64r3s3-p1-g64"])
def test_more_than_2_31_elements(problem, backend):
    p = ConvProblem.parse(f"fprop-bf16-{problem}")
    x = torch.randint(-2, 3, p.x_size, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    w = torch.randint(-2, 3, p.w_size, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    kernel = dispatch.choose(p, 0, backend, "cuda")
    y = ops.FPROP(x, w, None, None, None, p.geometry, "none", 0.0, *ops.NO_PROLOGUE, 0, kernel)
    for image in (0, 32):
        assert torch.equal(y[image], F.conv2d(x[image].float(), w.float(), padding=1, groups=p.groups).bfloat16())
