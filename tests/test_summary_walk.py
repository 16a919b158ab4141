"""What cnnkern.summary makes of a model of any shape: rows, receptive fields, and what it leaves as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnkern
from cnnkern.bench import networks
from cnnkern.summary.examples import Branches


def built(name):
    with torch.device("meta"):
        return networks.build(name)


def layers(summary, *kinds):
    return [layer for layer in summary.layers if layer.kind in kinds]


def test_receptive_fields_are_the_published_ones():
    """Of Araujo, Norris and Sim 2019; the ResNets, here with the stride in the 3x3, by its recurrence."""
    published = {"alexnet": 195, "vgg16": 212, "mobilenet_v1": 315, "resnet18": 435, "resnet50": 427}
    for name, pixels in published.items():
        last = next(
            layer for layer in reversed(cnnkern.summary(built(name)).layers) if layer.size_out and layer.size_out[0] > 1
        )
        assert last.field.size == (pixels, pixels), name


def test_field_by_axis_and_dilation():
    model = nn.Sequential(nn.Conv2d(3, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, 3, 2, dilation=2))
    assert [layer.field.size for layer in cnnkern.summary(model, (3, 32, 32)).layers] == [(1, 7), (5, 11)]
    assert "1x7" in str(cnnkern.summary(model, (3, 32, 32)))


def test_field_where_branches_meet():
    branches = Branches({"3x3": nn.Conv2d(3, 4, 3, padding=1), "5x5": nn.Conv2d(3, 4, 5, padding=2)})
    found = cnnkern.summary(nn.Sequential(branches, nn.Conv2d(8, 8, 3)), (3, 32, 32))
    assert found.layers[-1].field.size == (7, 7)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda x: F.interpolate(x, scale_factor=2), id="upsampling"),
        pytest.param(lambda x: torch.cat([F.max_pool2d(x, 2), x[:, :, :16, :16]], 1), id="two strides"),
        pytest.param(lambda x: F.conv_transpose2d(x, torch.ones(3, 3, 2, 2), stride=2), id="transposed"),
    ],
)
def test_field_that_is_not_defined(model):
    class Model(nn.Module):
        def forward(self, x):
            return F.max_pool2d(model(x), 2)

    assert cnnkern.summary(Model(), (3, 32, 32)).layers[-1].field is None


def test_field_through_a_gate_is_that_of_the_maps():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)

        def forward(self, x):
            x = self.conv(x)
            gate = torch.sigmoid(self.gate(x.mean((2, 3))))
            return F.avg_pool2d(x * gate[:, :, None, None], 2)

    conv, squeeze, gate, pool = cnnkern.summary(Gated(), (3, 32, 32)).layers
    assert [layer.kind for layer in (conv, squeeze, gate, pool)] == ["conv", "pool", "fc", "pool"]
    assert (pool.field.size, gate.field) == ((4, 4), None)


class Functional(nn.Module):
    """LeNet-5 with functions where it can have them, and a weight that two layers share."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 1, 5, 5))
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc = nn.Linear(400, 10)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(F.conv2d(x, self.weight, padding=2)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1)
        return F.linear(x, self.fc.weight, self.fc.bias) + F.linear(x, self.fc.weight)


def test_functional_calls_and_shared_weights():
    found = cnnkern.summary(Functional(), (1, 28, 28))
    assert [layer.label for layer in found.layers] == ["conv1", "pool1", "conv2", "pool2", "flatten", "fc3", "fc4"]
    assert [layer.module for layer in found.layers] == ["", "", "conv2", "", "", "", ""]
    assert [layer.parameters for layer in layers(found, "conv", "fc")] == [150, 2_416, 4_010, 0]
    assert found.parameters == found.total().parameters


@pytest.mark.parametrize("module", [nn.BatchNorm2d(4), nn.PReLU(4), nn.GroupNorm(2, 4)])
def test_in_place_layers_are_rows_only_with_parameters(module):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), module, nn.ReLU())
    found = cnnkern.summary(model, (3, 8, 8))
    assert [layer.label for layer in found.layers] == ["conv1", type(module).__name__]
    assert found.total().values == 4 * 6 * 6
    every = cnnkern.summary(model, (3, 8, 8), all_layers=True)
    assert [layer.label for layer in every.layers] == ["conv1", type(module).__name__, "ReLU"]


def test_a_module_of_several_operators_is_one_row():
    found = cnnkern.summary(nn.Sequential(nn.LocalResponseNorm(5), nn.ReLU()), (8, 8, 8), all_layers=True)
    assert [layer.label for layer in found.layers] == ["LocalResponseNorm", "ReLU"]


@pytest.mark.parametrize("name", ["mobilenet_v1", "squeezenet1_0"])
def test_converted_models_count_the_same(name):
    model = built(name)
    before = cnnkern.summary(model)
    cnnkern.convert(model)
    assert cnnkern.summary(model).layers == before.layers


def test_fused_blocks_are_told_layer_by_layer():
    blocks = nn.Sequential(cnnkern.ConvBNReLU2d(3, 8, 3), cnnkern.DepthwiseSeparableConv2d(8, 16, 3))
    found = cnnkern.summary(blocks, (3, 16, 16))
    assert [layer.module for layer in found.layers] == ["0.conv", "0.bn", "1.depthwise", "1.pointwise"]


def test_own_pools_are_pools():
    class Pools(nn.Module):
        def forward(self, x):
            x = cnnkern.functional.max_pool2d(x, 3, 2, 1)
            return cnnkern.functional.global_avg_pool2d(cnnkern.functional.avg_pool2d(x, 2))

    found = cnnkern.summary(Pools(), (8, 16, 16))
    assert [layer.window.kernel for layer in layers(found, "pool")] == [(3, 3), (2, 2), (4, 4)]


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(nn.AdaptiveAvgPool2d(1), id="AdaptiveAvgPool2d"),
        pytest.param(nn.AdaptiveMaxPool2d(1), id="AdaptiveMaxPool2d"),
        pytest.param(lambda x: x.mean((2, 3)), id="mean"),
        pytest.param(lambda x: x.amax((-1, -2), keepdim=True), id="amax"),
    ],
)
def test_global_pools(pool):
    class Pool(nn.Module):
        def forward(self, x):
            return pool(x).flatten(1)

    (layer,) = cnnkern.summary(Pool(), (8, 6, 5)).layers
    assert (layer.kind, layer.window.kernel, layer.field.size) == ("pool", (6, 5), (6, 5))
    assert (layer.values, layer.flops) == (8, 240)


def test_linear_layer_on_each_pixel():
    class PerPixel(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 16)

        def forward(self, x):
            return F.avg_pool2d(self.linear(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 2)

    _, linear, pool = cnnkern.summary(PerPixel(), (3, 8, 8), batch=2).layers
    assert (linear.kind, linear.values, linear.flops, linear.field.size) == ("fc", 16 * 36, 4 * 16 * 36, (3, 3))
    assert pool.field.size == (4, 4)


def test_adaptive_pool_of_uneven_windows():
    (pool,) = cnnkern.summary(nn.AdaptiveAvgPool2d(3), (2, 5, 6)).layers
    assert (pool.window, pool.field, pool.flops) == (None, None, 2 * (2 + 3 + 2) * 6)


def test_input_of_other_than_three_numbers():
    with pytest.raises(ValueError, match=r"input is \(C, H, W\), not \(2, 64\)"):
        cnnkern.summary(nn.Conv1d(2, 4, 5), (2, 64))


def test_counts_are_of_one_image_whatever_the_batch():
    one, eight = (cnnkern.summary(built("squeezenet1_0"), batch=batch) for batch in (1, 8))
    assert one.layers == eight.layers
    assert "a batch of 8" in str(eight)


def test_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout()).eval())
    state = copy.deepcopy(model.state_dict())
    cnnkern.summary(model, (3, 8, 8))
    assert [module.training for module in model.modules()] == [True, True, True, False, False]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_parameters_that_the_pass_does_not_read_are_told():
    class Auxiliary(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 4, 3))
            self.aux = nn.Linear(10, 10)

        def forward(self, x):
            return self[0](x)

    found = cnnkern.summary(Auxiliary(), (3, 8, 8))
    assert found.parameters == found.total().parameters + 110
    assert "110 of the parameters are not read in eval mode, in aux" in str(found)


def test_lazy_model():
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet"):
        cnnkern.summary(nn.Sequential(nn.LazyConv2d(4, 3)))
