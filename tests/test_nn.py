"""The modules behave as torch.nn's, or as the composition of torch.nn's that they stand for."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import cnnkern
from cnnkern import batch_norm
from cnnkern.backends import cuda, triton

LAYOUTS = [torch.contiguous_format, torch.channels_last]

# One per way in which nn.Conv2d treats its arguments.
GEOMETRIES = {
    "plain": {},
    "no bias": {"bias": False},
    "stride and padding": {"stride": (2, 1), "padding": (1, 2)},
    "dilation": {"dilation": 2, "padding": 2},
    "same, odd": {"padding": "same"},
    "same, even": {"kernel_size": (2, 4), "padding": "same", "dilation": (1, 3)},  # pads right and bottom more
    "valid": {"padding": "valid"},
    "grouped": {"groups": 2},
    "depthwise": {"out_channels": 4, "groups": 4, "padding": 1},
    "pointwise": {"kernel_size": 1},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate", "stride": 2},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "circular, same, even": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "reflect, same": {"padding": "same", "padding_mode": "reflect"},
}


def arguments(**changes):
    return {"in_channels": 4, "out_channels": 6, "kernel_size": 3, **changes}


def integers(*size, low=-3, high=4, dtype=torch.float32):
    """Small integers, on which every order of summation gives the same result."""
    return torch.randint(low, high, size).to(dtype)


def fill_with_integers(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(integers(*parameter.shape))
    return module


def pair(**changes):
    """A cnnkern.Conv2d and an nn.Conv2d with the same state."""
    ours = fill_with_integers(cnnkern.Conv2d(**arguments(**changes)))
    torchs = nn.Conv2d(**arguments(**changes))
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def gradients(module, x, dy):
    x = x.detach().requires_grad_()
    y = module(x)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], dy(y) if callable(dy) else dy)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_conv2d_is_torchs(geometry, layout):
    ours, torchs = pair(**geometry)
    x = integers(2, 4, 9, 8).to(memory_format=layout)
    dy = integers(*torchs(x).shape)
    for got, expected in zip(gradients(ours, x, dy), gradients(torchs, x, dy), strict=True):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_conv2d_takes_an_unbatched_image(padding_mode):
    ours, torchs = pair(padding=1, padding_mode=padding_mode)
    x = integers(4, 6, 5)
    assert torch.equal(ours(x), torchs(x))


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (2, 3, 8, 8)),  # 3 maps where 4 are expected
        ({}, (8, 8)),
        ({"kernel_size": 9}, (1, 4, 8, 8)),
        ({"padding": 9, "padding_mode": "reflect"}, (1, 4, 8, 8)),
    ],
)
def test_conv2d_refuses_what_torch_refuses(changes, size):
    ours, torchs = pair(**changes)
    with pytest.raises(RuntimeError) as expected:
        torchs(torch.zeros(size))
    with pytest.raises(type(expected.value)):
        ours(torch.zeros(size))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_conv2d_takes_parametrizations(norm):
    ours, torchs = norm(pair()[0]), norm(nn.Conv2d(**arguments()))
    torchs.load_state_dict(ours.state_dict())
    x = integers(2, 4, 8, 8)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def test_conv2d_takes_swapped_parameters():
    ours, torchs = pair()
    x, state = integers(2, 4, 8, 8), {name: integers(*p.shape) for name, p in ours.named_parameters()}
    assert torch.equal(torch.func.functional_call(ours, state, x), torch.func.functional_call(torchs, state, x))


def test_conv2d_may_be_specialised_as_torchs():
    class Masked(cnnkern.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, weight * 0, bias)

    assert torch.equal(Masked(4, 6, 3, bias=False)(integers(2, 4, 8, 8)), torch.zeros(2, 6, 6, 6))


def test_state_dict_goes_both_ways():
    ours, torchs = cnnkern.Conv2d(**arguments()), nn.Conv2d(**arguments())
    assert list(ours.state_dict()) == list(torchs.state_dict())
    ours.load_state_dict(torchs.state_dict())
    assert torch.equal(ours.weight, torchs.weight)
    torchs.load_state_dict(cnnkern.Conv2d(**arguments()).state_dict())


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("make", [lambda: pair()[0], lambda: cnnkern.ConvBNReLU2d(4, 6, 3)], ids=["conv", "block"])
def test_copies_compute_the_same(make, duplicate):
    module, x = make(), integers(2, 4, 8, 8)
    module.eval()
    twin = duplicate(module)
    assert type(twin) is type(module)
    assert torch.equal(twin(x), module(x))


def test_meta_device():
    module = cnnkern.Conv2d(**arguments(stride=2), device="meta")
    assert module(torch.empty(2, 4, 9, 9, device="meta")).shape == (2, 6, 4, 4)
    module.to_empty(device="cpu").load_state_dict(nn.Conv2d(**arguments()).state_dict())
    assert module(torch.zeros(2, 4, 9, 9)).shape == (2, 6, 4, 4)


def test_lazy_conv2d_becomes_conv2d():
    module = cnnkern.LazyConv2d(6, 3, padding=1)
    x = integers(2, 4, 8, 8)
    first = module(x)
    assert type(module) is cnnkern.Conv2d
    assert module.weight.shape == (6, 4, 3, 3)
    assert torch.equal(module(x), first)


def test_repr_tells_whose_it_is():
    ours, torchs = pair(padding=1)
    assert repr(ours) == f"cnnkern.{torchs!r}"


@pytest.mark.parametrize("changes", [{}, {"padding": "same", "bias": False}, {"padding": 2, "padding_mode": "reflect"}])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_compiles_torchs_operator(changes):
    module = nn.Sequential(pair(**changes)[0], nn.ReLU(), cnnkern.nn.ChannelShuffle(2))
    scripted = torch.jit.script(module)
    assert "aten::conv2d" in str(scripted.inlined_graph)
    x = integers(2, 4, 8, 8)
    assert torch.equal(scripted(x), module(x))
    assert type(module[0]) is cnnkern.Conv2d


def test_symbolic_tracing_keeps_one_node_per_convolution():
    model = nn.Sequential(pair()[0], nn.ReLU())
    graph = torch.fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes].count(cnnkern.functional.conv2d) == 1
    x = integers(2, 4, 8, 8)
    assert torch.equal(graph(x), model(x))


class Unfused(nn.Module):
    """What ConvBNReLU2d stands for."""

    def __init__(self, block, activation):
        super().__init__()
        conv = block.conv
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            dtype=conv.weight.dtype,
        )
        self.bn = copy.deepcopy(block.bn)
        self.activation = activation
        self.load_state_dict(block.state_dict())
        self.train(block.training)

    def forward(self, x):
        return self.activation(self.bn(self.conv(x)))


ACTIVATIONS = {
    ("none", None): nn.Identity(),
    ("relu", None): F.relu,
    ("relu6", None): F.relu6,
    ("leaky_relu", 0.1): lambda x: F.leaky_relu(x, 0.1),
    ("elu", 0.5): lambda x: F.elu(x, 0.5),
    ("hardswish", None): F.hardswish,
    ("silu", None): F.silu,
    ("sigmoid", None): torch.sigmoid,
    ("tanh", None): torch.tanh,
}


def block_and_unfused(activation=("relu", None), **changes):
    """A float64 block with statistics, scale and shift that are not the initial ones, and its composition."""
    name, alpha = activation
    block = cnnkern.ConvBNReLU2d(**arguments(padding=1, **changes), activation=name, alpha=alpha, dtype=torch.float64)
    for tensor in (block.bn.weight, block.bn.bias, block.bn.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(block.bn.running_var, 0.5, 2)
    return block, Unfused(block, ACTIVATIONS[activation])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_block_is_its_composition(activation, bias, training):
    block, unfused = block_and_unfused(activation, bias=bias)
    block.train(training), unfused.train(training)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    dy = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(gradients(block, x, dy), gradients(unfused, x, dy))
    torch.testing.assert_close(block.state_dict(), unfused.state_dict())  # the running statistics moved alike


@pytest.mark.parametrize("wrong", [{"activation": "softmax"}, {"alpha": 0.1}])
def test_block_refuses_an_activation_that_there_is_not(wrong):
    with pytest.raises(ValueError, match="activation"):
        cnnkern.ConvBNReLU2d(4, 6, 3, **wrong)


def test_block_is_fused_in_eval(monkeypatch):
    block, _ = block_and_unfused()
    monkeypatch.setattr(block.bn, "forward", None)
    block.eval()(torch.randn(1, 4, 8, 8, dtype=torch.float64))


def test_block_follows_its_statistics():
    block, unfused = block_and_unfused()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    block.eval(), unfused.eval()
    block(x)
    for bn in (block.bn, unfused.bn):
        bn.running_mean.data.add_(1)  # .data: invisible to version counters
        bn.weight.data.mul_(2)
    torch.testing.assert_close(block(x), unfused(x))


@pytest.mark.parametrize("frozen", [{"affine": False}, {"track_running_stats": False}])
def test_block_takes_any_batch_norm(frozen):
    block, unfused = block_and_unfused()
    block.bn = nn.BatchNorm2d(6, dtype=torch.float64, **frozen)
    unfused.bn = copy.deepcopy(block.bn)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(block.eval()(x), unfused.eval()(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("bn", [True, False], ids=["bn", "no bn"])
@pytest.mark.parametrize("input_bn", [True, False], ids=["input_bn", "no input_bn"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "no residual"])
def test_conv_bn_act_is_its_composition(residual, input_bn, bn, training):
    block, _ = block_and_unfused()
    before = copy.deepcopy(block_and_unfused(out_channels=4)[0].bn)
    block.train(training), before.train(training)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    r = torch.randn(2, 6, 8, 8, dtype=torch.float64, requires_grad=True) if residual else None
    tensors = [x, *block.conv.parameters()]
    tensors += [r] if residual else []
    tensors += [*block.bn.parameters()] if bn else []
    tensors += [*before.parameters()] if input_bn else []

    fused = cnnkern.nn.conv_bn_act(
        block.conv,
        block.bn if bn else None,
        x,
        "relu",
        r,
        input_bn=before if input_bn else None,
        input_activation="tanh",
    )
    z = F.conv2d(torch.tanh(before(x) if input_bn else x), block.conv.weight, padding=1)
    z = block.bn(z) if bn else z
    composed = F.relu(z + r if residual else z)
    dy = torch.randn_like(fused)
    torch.testing.assert_close(fused, composed)
    torch.testing.assert_close(torch.autograd.grad(fused, tensors, dy), torch.autograd.grad(composed, tensors, dy))


@pytest.mark.parametrize("part", ["conv", "bn"])
def test_block_calls_the_hooks_of_its_parts(part):
    block, unfused = block_and_unfused()
    seen = []
    getattr(block, part).register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(block.eval()(x), unfused.eval()(x))
    assert len(seen) == 1


def test_block_in_bfloat16_folds_in_float32():
    block, unfused = block_and_unfused()
    x = torch.randn(2, 4, 8, 8).bfloat16()
    expected = unfused.bfloat16().double().eval()(x.double())
    torch.testing.assert_close(block.bfloat16().eval()(x).double(), expected, rtol=2**-7, atol=2**-6)


def test_block_survives_convert_sync_batchnorm():
    block, unfused = block_and_unfused()
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert type(synchronized.bn) is nn.SyncBatchNorm
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(synchronized.eval()(x), unfused.eval()(x))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("geometry", ["plain", "stride and padding", "dilation", "no bias", "same, even"])
def test_depthwise_separable_is_its_composition(geometry, layout):
    changes = GEOMETRIES[geometry]
    block = fill_with_integers(cnnkern.DepthwiseSeparableConv2d(**arguments(**changes)))
    depthwise = nn.Conv2d(**arguments(**{**changes, "out_channels": 4, "groups": 4}))
    pointwise = nn.Conv2d(4, 6, 1, bias=depthwise.bias is not None)
    composition = nn.Sequential(depthwise, pointwise)
    composition.load_state_dict(dict(zip(composition.state_dict(), block.state_dict().values(), strict=True)))
    x = integers(2, 4, 9, 8).to(memory_format=layout)
    dy = integers(*composition(x).shape)
    with torch.no_grad():
        assert torch.equal(block(x), composition(x))
    for got, expected in zip(gradients(block, x, dy), gradients(composition, x, dy), strict=True):
        assert torch.equal(got, expected)


def test_depthwise_separable_calls_the_hooks_of_its_parts():
    block, seen = cnnkern.DepthwiseSeparableConv2d(4, 6, 3), []
    block.depthwise.register_forward_hook(lambda module, args, output: seen.append(output))
    block(torch.zeros(1, 4, 8, 8))
    assert len(seen) == 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_channel_shuffle_is_torchs(layout):
    x = torch.randn(2, 12, 5, 4).to(memory_format=layout)
    dy = torch.randn(2, 12, 5, 4)
    ours, torchs = cnnkern.ChannelShuffle(3), nn.ChannelShuffle(3)
    for got, expected in zip(gradients(ours, x, dy), gradients(torchs, x, dy), strict=True):
        assert torch.equal(got, expected)
    assert ours(x).stride() == x.stride()
    assert repr(ours) == repr(torchs)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_layer_in_training_is_its_backends(backend, monkeypatch):
    for source in (cuda, triton):
        monkeypatch.setattr(source, "why_missing", lambda device, source=source: f"{source.__name__} is missing")
    with cnnkern.use(backend):
        assert batch_norm.why_missing(torch.device("cuda")) == f"cnnkern.backends.{backend} is missing"
    with cnnkern.use("vendor"):
        assert batch_norm.why_missing(torch.device("cuda")) == "the backend is vendor"
