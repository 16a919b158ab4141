"""The operators under torch's machinery: opcheck, compilation, export, fake tensors, FLOP counting, modes."""

import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import cnnkern
from cnnkern import functional as CF
from cnnkern import ops

GEOMETRY = (2, 1, 1, 1, 0, 1, 1, 1, 2)  # of two groups
LAST = torch.channels_last


def operator_calls(requires_grad=False):
    """A call of every operator."""

    def t(*size):
        return torch.randn(size, requires_grad=requires_grad)

    x, w, k, dy = t(2, 4, 6, 6), t(6, 2, 3, 3), t(6), t(2, 6, 3, 6)
    indices = F.max_pool2d(x.detach(), 3, 2, 1, return_indices=True)[1]
    prologue = (t(4), t(4), "leaky_relu", 0.25)
    pool = ((3, 3), (2, 2), (1, 1))
    return {
        "fprop": (ops.FPROP, (x, w, None, None, None, GEOMETRY, "none", 0.0, *ops.NO_PROLOGUE, 0, None)),
        "fprop, plain": (ops.FPROP_PLAIN, (x, w, k, GEOMETRY, 0, None)),
        "fprop, epilogue": (ops.FPROP, (x, w, k, k, dy, GEOMETRY, "relu", 0.0, *ops.NO_PROLOGUE, 0, None)),
        "fprop, silu": (ops.FPROP, (x, w, None, k, None, GEOMETRY, "silu", 0.0, *ops.NO_PROLOGUE, 0, None)),
        "fprop, channels_last": (
            ops.FPROP,
            (x.detach().to(memory_format=LAST), w, None, k, None, GEOMETRY, "none", 0.0, *ops.NO_PROLOGUE, 0, None),
        ),
        "fprop, prologue": (ops.FPROP, (x, w, k, None, None, GEOMETRY, "relu", 0.0, *prologue, 0, None)),
        "dgrad": (ops.DGRAD, (dy, w, x.shape, GEOMETRY, False, 0, None)),
        "dgrad, channels_last": (ops.DGRAD, (dy, w, x.shape, GEOMETRY, True, 0, None)),
        "wgrad": (ops.WGRAD, (dy, x, w.shape, GEOMETRY, False, False, *ops.NO_PROLOGUE, 0, None)),
        "wgrad, bias, channels_last": (ops.WGRAD, (dy, x, w.shape, GEOMETRY, True, True, *ops.NO_PROLOGUE, 0, None)),
        "wgrad, prologue": (ops.WGRAD, (dy, x, w.shape, GEOMETRY, True, False, *prologue, 0, None)),
        "backward": (ops.BACKWARD, (dy, x, w, GEOMETRY, False, 0, None, None)),
        "backward, bias, channels_last": (ops.BACKWARD, (dy, x, w, GEOMETRY, True, 0, None, None)),
        "depthwise_separable": (
            ops.DEPTHWISE_SEPARABLE,
            (
                *(x, t(4, 1, 3, 3), t(4), None, "relu", 0.0),
                *(t(5, 4, 1, 1), None, t(5), "relu6", 0.0, (*GEOMETRY[:-1], 4), 0, None),
            ),
        ),
        "conv2d_shuffled": (ops.CONV2D_SHUFFLED, (x, w, None, k, None, GEOMETRY, "relu", 0.0, 3, 0)),
        "conv2d_shuffled, beside": (ops.CONV2D_SHUFFLED, (x, w, k, k, dy, GEOMETRY, "relu", 0.0, 2, 0)),
        "conv2d_max_pool2d": (ops.CONV2D_MAX_POOL2D, (x, w, k, None, GEOMETRY, "relu", 0.0, *pool, True, 0)),
        "channel_shuffle": (ops.CHANNEL_SHUFFLE, (x, 2)),
        "max_pool2d": (ops.MAX_POOL, (x, *pool, (1, 1), True)),
        "max_pool2d_backward": (ops.MAX_POOL_BACKWARD, (t(2, 4, 3, 3), indices, x.shape, *pool, (1, 1), False, False)),
        "avg_pool2d": (ops.AVG_POOL, (x, *pool, False, True)),
        "avg_pool2d_backward": (ops.AVG_POOL_BACKWARD, (t(2, 4, 3, 3), x.shape, *pool, False, True, True)),
        "global_avg_pool2d": (ops.GLOBAL_AVG_POOL, (x,)),
    }  # fmt: skip


@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("call", operator_calls())
def test_opcheck(call, requires_grad):
    operator, arguments = operator_calls(requires_grad)[call]
    torch.library.opcheck(operator, arguments)


def test_every_operator_is_checked():
    checked = {operator.name().removeprefix("cnnkern::") for operator, _ in operator_calls().values()}
    registered = {name.removeprefix("cnnkern::") for name in torch._C._dispatch_get_all_op_names() if "cnnkern" in name}
    assert checked == registered


def test_gradients_of_the_registered_operators_are_those_of_the_functions():
    """register_autograd's formulas, which compiled graphs run, against autograd.Function's."""
    x, w, k, residual = (
        torch.randn(size, dtype=torch.float64, requires_grad=True)
        for size in ((2, 4, 5, 5), (6, 2, 3, 3), (6,), (2, 6, 5, 5))
    )
    same = (1, 1, 1, 1, 1, 1, 1, 1, 2)
    for activation in ("none", "relu", "silu", "hardswish", "tanh"):
        registered = ops.FPROP(x, w, k, k, residual, same, activation, 0.0, *ops.NO_PROLOGUE, 0, None)
        functional = CF.fused_conv2d(x, w, None, 1, 1, 1, 2, scale=k, shift=k, residual=residual, activation=activation)
        gradients = [torch.autograd.grad(y.pow(2).sum(), (x, w, k, residual)) for y in (registered, functional)]
        torch.testing.assert_close(*gradients)


def layouts(size):
    """Tensors of one shape whose memory is arranged in every way that calls are made with."""
    n, c, h, w = size
    yield torch.randn(size)
    yield torch.randn(size).to(memory_format=LAST)
    for order in ((1, 0, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0), (0, 2, 1, 3)):  # dense, in another order
        yield torch.randn([size[i] for i in order]).permute([order.index(i) for i in range(4)])
    yield torch.randn(n, 2 * c, h, w)[:, ::2]
    yield torch.randn(n, c + 3, h, w).to(memory_format=LAST)[:, 1 : c + 1]
    yield torch.randn(n, c, 1, 1).expand(size)


@pytest.mark.parametrize(("maps", "pixels", "taps"), [(4, 5, 3), (1, 5, 3), (4, 1, 1), (1, 1, 1), (3, 4, 1)])
def test_fake_strides_are_the_real_ones(maps, pixels, taps):
    x_size, w_size = (2, maps, pixels, pixels), (6, maps, taps, taps)
    functions = (
        lambda x, w: CF.conv2d(x, w, padding=taps // 2),
        lambda x, w: CF.fused_conv2d(x, w, padding=taps // 2, activation="relu"),
        lambda x, w: CF.depthwise_separable_conv2d(x, w[:1].expand_as(w)[: x.shape[1], :1], w[:, :, :1, :1]),
        lambda x, w: CF.conv2d_max_pool2d(x, w, padding=taps // 2, pool_size=1, pool_stride=1),
        lambda x, w: CF.channel_shuffle(x, 1),
        lambda x, w: CF.max_pool2d(x, 1),
        lambda x, w: CF.avg_pool2d(x, 1),
        lambda x, w: CF.global_avg_pool2d(x),
    )
    for (x, w), function in itertools.product(itertools.product(layouts(x_size), layouts(w_size)), functions):
        real = function(x, w)
        with FakeTensorMode() as mode:
            fake = function(mode.from_tensor(x), mode.from_tensor(w))
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype), (
            x.stride(),
            w.stride(),
        )


def test_fake_gradients_have_the_real_strides():
    for x, w in itertools.product(layouts((2, 4, 5, 5)), layouts((6, 4, 3, 3))):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        real = torch.autograd.grad(CF.conv2d(x, w).sum(), (x, w))
        with FakeTensorMode() as mode:
            fakes = (mode.from_tensor(x), mode.from_tensor(w))
            fake = torch.autograd.grad(CF.conv2d(*fakes).sum(), fakes)
        assert [gradient.stride() for gradient in fake] == [gradient.stride() for gradient in real]


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
class TestCompile:
    def test_dynamic_batch_compiles_twice_at_most(self):
        layer = cnnkern.Conv2d(4, 6, 3, padding=1)
        backend = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        for n in (2, 3, 5, 8, 13):
            x = torch.randn(n, 4, 6, 6, requires_grad=True)
            ours, theirs = compiled(x), layer(x)
            torch.testing.assert_close(ours, theirs)
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x))
        assert backend.frame_count == 2  # the first size, then any size

    def test_declared_dynamic_compiles_once(self):
        backend = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(cnnkern.Conv2d(4, 6, 3), fullgraph=True, dynamic=True, backend=backend)
        for size in ((2, 4, 6, 7), (3, 4, 9, 5), (5, 4, 12, 10)):  # equal sizes are taken to be one symbol at first
            assert compiled(torch.randn(size)).shape == (size[0], 6, size[2] - 2, size[3] - 2)
        assert backend.frame_count == 1

    def test_every_function_is_captured_whole(self):
        w, k = torch.randn(6, 4, 3, 3, requires_grad=True), torch.rand(6, requires_grad=True)
        dw, pw = torch.randn(6, 1, 3, 3), torch.randn(8, 6, 1, 1, requires_grad=True)

        def network(x):
            y = CF.fused_conv2d(x, w, None, 1, "same", scale=k, activation="silu")
            y = CF.max_pool2d(CF.depthwise_separable_conv2d(y, dw, pw, padding=1), 2)
            y = CF.channel_shuffle(CF.avg_pool2d(y, 2, 1), 4)
            return CF.global_avg_pool2d(y).pow(2)

        x = torch.randn(2, 4, 8, 8)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), network(x))
        gradients = [torch.autograd.grad(run(x).sum(), (w, k, pw)) for run in (compiled, network)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)  # sums of both signs, in another order

    def test_inductor(self):
        layer = cnnkern.Conv2d(4, 6, 3, padding=1).to(memory_format=LAST)
        x = torch.randn(2, 4, 6, 6).to(memory_format=LAST)
        model = torch.nn.Sequential(layer, torch.nn.ReLU())
        y = torch.compile(model, fullgraph=True, backend="inductor")(x)
        torch.testing.assert_close(y, model(x))
        assert y.stride() == model(x).stride()

    def test_autocasting_and_settings_inside_and_outside(self):
        x, w = torch.randn(2, 4, 6, 6), torch.randn(6, 4, 3, 3)

        def inside(x):
            with torch.autocast("cpu"), cnnkern.use(strict=True):
                return CF.conv2d(x, w)

        assert torch.compile(inside, fullgraph=True, backend="aot_eager")(x).dtype is torch.bfloat16
        graphs = []
        compiled = torch.compile(
            lambda x: CF.conv2d(x, w), fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward
        )
        compiled(x)
        with cnnkern.use(strict=True):
            compiled(x)
        with cnnkern.use(backend="vendor"):
            compiled(x)
        flags = [node.args[-2] for g in graphs for node in g.graph.nodes if node.target == ops.FPROP]
        assert flags == [0, 1]
        assert len(graphs) == 3

    def test_transforms_of_torch_func(self):
        x, w = torch.randn(3, 2, 4, 6, 6), torch.randn(6, 4, 3, 3)

        def per_sample(x):
            return torch.vmap(torch.func.grad(lambda w, x: CF.conv2d(x, w).pow(2).sum()), (None, 0))(w, x)

        compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), per_sample(x), rtol=1e-4, atol=1e-4)

    def test_integers_and_fallbacks(self):
        x, w = torch.ones(1, 2, 4, 4, dtype=torch.int32), torch.ones(3, 2, 3, 3, dtype=torch.int32)
        compiled = torch.compile(CF.conv2d, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, w), CF.conv2d(x, w))


@pytest.mark.parametrize("strict", [False, True])
def test_export_writes_atens_convolution(strict):
    layer = cnnkern.Conv2d(4, 6, 3, padding=1)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (torch.randn(2, 4, 6, 6),), dynamic_shapes=({0: batch},), strict=strict)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.conv2d.default"}
    x = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-4)


def test_a_trace_needs_no_cnnkern():
    layer, x = cnnkern.Conv2d(4, 6, 3), torch.randn(1, 4, 6, 6)
    traced = torch.jit.trace(layer, x)
    assert "cnnkern::" not in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_flops_are_torchs():
    def count(layer):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
        return counter.get_total_flops()

    assert count(cnnkern.Conv2d(4, 8, 3, padding=1)) == count(torch.nn.Conv2d(4, 8, 3, padding=1)) > 0


def test_flops_of_groups_and_of_the_fused_layer():
    x, dw, pw = torch.randn(2, 4, 8, 8), torch.randn(4, 1, 3, 3), torch.randn(6, 4, 1, 1)
    with FlopCounterMode(display=False) as counter:
        CF.conv2d(x, torch.randn(8, 2, 3, 3), groups=2)
    assert counter.get_total_flops() == 2 * (2 * 8 * 6 * 6) * (2 * 3 * 3)
    with FlopCounterMode(display=False) as counter:
        CF.depthwise_separable_conv2d(x, dw, pw)
    assert counter.get_total_flops() == 2 * (2 * 4 * 6 * 6) * 9 + 2 * (2 * 6 * 6 * 6) * 4


def test_tracing_captures_the_operators():
    x, w = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(lambda x, w: torch.autograd.grad(CF.conv2d(x, w).sum(), (x, w)), tracing_mode=mode)(x, w)
        targets = [node.target for node in graph.graph.nodes]
        assert {ops.FPROP, ops.BACKWARD} <= set(targets)


def test_the_profiler_names_the_operators():
    layer, x = cnnkern.Conv2d(4, 6, 3), torch.randn(1, 4, 6, 6)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"cnnkern::conv2d_fprop", "cnnkern::conv2d_wgrad"} <= names


def test_inference_mode_and_no_grad():
    layer, x = cnnkern.Conv2d(4, 6, 3), torch.randn(1, 4, 6, 6)
    with torch.inference_mode():
        assert layer(x).is_inference()
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_modes_see_the_call():
    seen = []

    class Functions(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Functions():
        CF.conv2d(torch.randn(1, 4, 6, 6), torch.randn(6, 4, 3, 3))
    assert any("conv2d_fprop" in name for name in seen)
