"""convert() and revert(): what is changed, what is not, and what the report says."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import cnnkern


class Subclass(nn.Conv2d):
    pass


def model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 3, stride=2, groups=2, bias=False)),
    )


def convolutions(module):
    return [child for child in module.modules() if isinstance(child, nn.Conv2d)]


def image(dtype=torch.float32):
    return torch.randn(2, 3, 8, 8, dtype=dtype)


@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_stay(training):
    torchs = model().double().train(training)
    ours = copy.deepcopy(torchs)
    report = cnnkern.convert(ours)
    x = image(torch.float64)
    outputs = [m(x) for m in (ours, torchs)]
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad(y.square().sum(), m.parameters()) for m, y in zip((ours, torchs), outputs, strict=True)
    ]
    torch.testing.assert_close(*gradients)
    assert [layer.name for layer in report.converted] == ["0", "3.0", "3.1"]
    assert not report.skipped
    assert {type(conv) for conv in convolutions(ours)} == {cnnkern.Conv2d}


def test_objects_stay():
    m = model().eval()
    m[0].bias.requires_grad_(False)
    before = {name: (id(module), module.training) for name, module in m.named_modules()}
    parameters = {name: (id(parameter), parameter.requires_grad) for name, parameter in m.named_parameters()}
    buffers = {name: id(buffer) for name, buffer in m.named_buffers()}
    cnnkern.convert(m)
    assert {name: (id(module), module.training) for name, module in m.named_modules()} == before
    assert {name: (id(parameter), parameter.requires_grad) for name, parameter in m.named_parameters()} == parameters
    assert {name: id(buffer) for name, buffer in m.named_buffers()} == buffers


def test_an_optimizer_made_before_still_trains():
    m = model()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    m(image()).square().sum().backward()
    optimizer.step()  # its momentum buffers have the old layout
    cnnkern.convert(m)
    before = m[0].weight.detach().clone()
    m(image()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(m[0].weight, before)


def test_tied_weights_stay_tied():
    m = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    m[1].weight = m[0].weight
    cnnkern.convert(m)
    assert m[1].weight is m[0].weight
    cnnkern.revert(m)
    assert m[1].weight is m[0].weight
    assert m[0].weight.is_contiguous()


def test_a_module_used_twice_is_one_layer():
    conv = nn.Conv2d(3, 3, 3)
    assert len(cnnkern.convert(nn.Sequential(conv, nn.ReLU(), conv)).layers) == 1


def test_hooks_stay():
    m, seen = model(), []
    m[0].register_forward_pre_hook(lambda module, args: seen.append("before"))
    m[0].register_forward_hook(lambda module, args, output: seen.append("after"))
    m[0].register_full_backward_hook(lambda module, dx, dy: seen.append("backward"))
    cnnkern.convert(m)
    m(image().requires_grad_()).sum().backward()
    assert seen == ["before", "after", "backward"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_norms_that_are_hooks_are_converted_and_right(norm):
    conv = norm(nn.Conv2d(3, 4, 3)).double().eval()
    x, names = image(torch.float64), list(conv.state_dict())
    expected = conv(x)
    assert cnnkern.convert(conv).converted
    torch.testing.assert_close(conv(x), expected)
    assert list(conv.state_dict()) == names


def with_own_forward():
    conv = nn.Conv2d(3, 4, 3)
    conv.forward = lambda x: x
    return conv


SKIPPED = {
    "subclass": (lambda: Subclass(3, 4, 3), "Subclass may compute something else"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "parametrized"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "lazy"),
    "own forward": (with_own_forward, "its forward was replaced"),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), "transposed"),
    "1-D": (lambda: nn.Conv1d(3, 4, 3), "1-D"),
    "3-D": (lambda: nn.Conv3d(3, 4, 3), "3-D"),
    "before": (lambda: cnnkern.Conv2d(3, 4, 3), "before"),
}


def weight_strides(module):
    lazy = nn.parameter.UninitializedParameter
    return [weight.stride() for weight in module.parameters() if not isinstance(weight, lazy)]


@pytest.mark.parametrize(("make", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_what_is_skipped_is_left_alone_and_says_why(make, reason):
    module = make()
    kind, strides = type(module), weight_strides(module)
    report = cnnkern.convert(nn.Sequential(module, nn.Conv2d(4, 4, 1)))
    assert type(module) is kind
    assert weight_strides(module) == strides
    assert reason in report.layers[0].reason
    assert reason in str(report)
    assert [layer.name for layer in report.converted] == ["1"]


def test_where_selects():
    m = model()
    report = cnnkern.convert(m, where=lambda name, module: module.kernel_size == (3, 3) and name.startswith("3."))
    assert [layer.name for layer in report.converted] == ["3.1"]
    assert all("where" in layer.reason for layer in report.skipped)


def test_a_convolution_is_a_model():
    conv = nn.Conv2d(3, 4, 3)
    assert "(the model)" in str(cnnkern.convert(conv))
    assert type(conv) is cnnkern.Conv2d
    assert type(cnnkern.revert(conv)) is nn.Conv2d


def test_weights_move_to_channels_last():
    m = model()
    m[3].to(memory_format=torch.channels_last)
    report = cnnkern.convert(m)
    assert report.moved == 1
    assert "1 of them moved to channels_last" in str(report)
    strides = [conv.weight.stride() for conv in convolutions(m)]
    assert strides == [(27, 1, 9, 3), (8, 1, 8, 8), (36, 1, 12, 4)]
    assert m(image()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("travel", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_revert_restores(travel):
    m = model()
    m[3][1].to(memory_format=torch.channels_last)
    attributes = [set(vars(conv)) for conv in convolutions(m)]
    strides = [conv.weight.stride() for conv in convolutions(m)]
    state = copy.deepcopy(m.state_dict())
    cnnkern.convert(m)
    m = cnnkern.revert(travel(m))
    assert {type(conv) for conv in convolutions(m)} == {nn.Conv2d}
    assert [set(vars(conv)) for conv in convolutions(m)] == attributes
    assert [conv.weight.stride() for conv in convolutions(m)] == strides
    assert all(torch.equal(tensor, state[name]) for name, tensor in m.state_dict().items())


def test_state_dicts_go_both_ways():
    converted, plain = model(), model()
    cnnkern.convert(converted)
    converted.load_state_dict(plain.state_dict())
    assert torch.equal(converted[0].weight, plain[0].weight)
    plain.load_state_dict(converted.state_dict())


@pytest.mark.parametrize("example", [None, image(), (image(),)], ids=["random", "tensor", "tuple"])
def test_verify_measures_every_layer(example):
    m = model()
    report = cnnkern.convert(m, verify=True, example=example)
    assert len(report.converted) == 3
    for layer in report.layers:
        assert 0 < layer.error.ours <= layer.error.tolerance < 1e-5
        assert f"error {layer.error.ours:.1e}" in str(report)


def test_verify_leaves_no_trace():
    m = model()
    m[1].eval()  # one part in another mode than the rest
    modes = [module.training for module in m.modules()]
    state = copy.deepcopy(m.state_dict())
    cnnkern.convert(m, verify=True, example=image())
    assert [module.training for module in m.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in m.state_dict().items())
    assert not any(module._forward_pre_hooks for module in m.modules())
    assert all(parameter.grad is None for parameter in m.parameters())


@pytest.mark.parametrize("example", [None, image()], ids=["random", "example"])
@pytest.mark.parametrize("fault", [1e-3, float("nan")])
def test_verify_puts_a_wrong_layer_back(monkeypatch, fault, example):
    def wrong_if_pointwise(x, weight, *rest):
        return nn.functional.conv2d(x, weight, *rest) + (fault if weight.shape[-1] == 1 else 0)

    monkeypatch.setattr(cnnkern.nn, "conv2d", wrong_if_pointwise)
    m = model()
    report = cnnkern.convert(m, verify=True, example=example)
    assert [(layer.name, layer.reason) for layer in report.skipped] == [("3.0", "wrong result")]
    assert type(m[3][0]) is nn.Conv2d
    assert m[3][0].weight.stride() == (8, 1, 1, 1)
    assert report.moved == 2
