"""Every architecture: its published size, its smallest images, training on these kernels, torchvision's keys."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import cnnkern
from cnnkern import models
from cnnkern.bench import networks
from cnnkern.cli import main
from cnnkern.models._blocks import Layers, drop_path_rates, stochastic_depth
from cnnkern.models.lenet import Maxout
from cnnkern.training import checks

ROOT = Path(__file__).parents[1]

# Parameters, and multiply-adds in G at the published input size where there is a figure for them.
PUBLISHED = {
    "alexnet": (61_100_840, 0.714),
    "vgg16": (138_357_544, 15.470),
    "vgg19": (143_667_240, 19.632),
    "googlenet": (13_004_888, 1.498),
    "inception_v3": (27_161_264, 5.713),
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "wide_resnet50_2": (68_883_240, 11.398),
    "resnext50_32x4d": (25_028_904, 4.230),
    "densenet121": (7_978_856, 2.834),
    "squeezenet1_0": (1_248_424, 0.819),
    "squeezenet1_1": (1_235_496, 0.349),
    "mobilenet_v1": (4_231_976, 0.569),
    "mobilenet_v2": (3_504_872, 0.301),
    "shufflenet_v2_x1_0": (2_278_604, 0.145),
    "xception": (22_855_952, 8.357),
    "seresnet50": (28_088_024, None),
    "inception_v4": (42_679_816, None),
    "inception_resnet_v2": (55_843_464, None),
    "nasnet_mobile": (5_289_978, None),
    "wide_resnet28_10": (36_479_194, None),
    "repvgg_a0": (9_108_968, None),
    "lenet5": (61_706, None),
    "resnet20": (269_722, None),
}

# One of each form of layer and block, the least costly; the others are trained and compared in `make test-full`.
COVERING = [
    "alexnet_two_gpu",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "fractalnet20",
    "googlenet",
    "googlenet_naive",
    "inception_resnet_v1",
    "inception_v2",
    "inception_v3",
    "inception_v4",
    "lenet5",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "nasnet_mobile",
    "nin_cifar",
    "plain18",
    "plain20",
    "preact_resnet18",
    "preact_resnet50",
    "regnet_y_400mf",
    "repvgg_a0",
    "resnet18",
    "resnet20",
    "resnext50_32x4d",
    "seresnet50",
    "shufflenet_v1",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11_bn",
    "xception",
]
ALL = [pytest.param(name, marks=() if name in COVERING else pytest.mark.full) for name in models.list()]

# Without what is drawn anew in each batch, and without classifiers that need large images.
QUIET = {"drop_path": 0.0, "global_drop_path": 0.0, "aux": False}


def quiet(name, num_classes=10, **options):
    """A model that computes the same in each call."""
    chosen = {option: value for option, value in QUIET.items() if option in models.entry(name).options}
    model = models.create(name, num_classes, **{**chosen, **options})
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def images(name, count, least=32, dtype=torch.float32):
    entry = models.entry(name)
    size = max(entry.smallest, least)
    return torch.randn(count, entry.input_size[0], size, size, dtype=dtype)


def shaken(model):
    """The model with every normalisation's statistics and every parameter that starts as a constant drawn at random."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point() and tensor.numel() > 1 and tensor.std() == 0:
            nn.init.normal_(tensor, mean=0.5, std=0.25)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_cost_is_the_published_one(name):
    cost = models.cost(name)
    parameters, multiply_adds = PUBLISHED[name]
    assert cost.parameters == parameters
    assert multiply_adds is None or round(cost.multiply_adds / 1e9, 3) == multiply_adds


def test_the_table_of_models_is_in_the_documentation():
    listed = (ROOT / "MODELS.md").read_text().split("<!-- models: begin -->")[1].split("<!-- models: end -->")[0]
    assert listed.strip() == models.table()


def count(name, **options):
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = models.create(name, **options).eval()
        model(torch.empty(1, *models.entry(name).input_size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("name", "options", "parameters", "multiply_adds"),
    [
        ("googlenet", {"aux": False}, 6_624_904, 1.498),
        ("resnet50", {"stride_in": "1x1"}, 25_557_032, 3.858),  # 3.8 in the paper
        ("repvgg_a0", {"deploy": True}, 8_309_384, 1.361),
        ("shufflenet_v1", {"groups": 8}, None, 0.138),
        ("mobilenet_v1", {"width": 0.5}, 1_331_592, 0.149),
    ],
)
def test_options_change_the_cost(name, options, parameters, multiply_adds):
    counted, operations = count(name, **options)
    assert parameters in (None, counted)
    assert round(operations, 3) == multiply_adds


@pytest.mark.parametrize("name", ALL)
def test_the_smallest_images(name):
    """They give scores, and smaller ones an error that names them, which they would have given in any case."""
    smallest = models.entry(name).smallest
    with torch.device("meta"), torch.no_grad():
        model = models.create(name, num_classes=7, in_channels=2).eval()
        assert model(torch.empty(3, 2, smallest, smallest)).shape == (3, 7)
        for size in ((smallest - 1, smallest + 3), (smallest + 3, smallest - 1)):
            with pytest.raises(ValueError, match=f"{smallest}x{smallest} at least"):
                model(torch.empty(1, 2, *size))
        if smallest > 1:
            model.smallest = 0
            with pytest.raises(RuntimeError):
                model(torch.empty(1, 2, smallest - 1, smallest - 1))


# Where first gradients are so large that float32 rounds such small steps away.
IN_FLOAT64 = {"inception_v4"}
STEP = 0.0003  # by how much a step lowers the loss if the gradient is right and the loss is linear in the weights


@pytest.mark.parametrize("name", ALL)
def test_training(name):
    """On the package's kernels only: the first loss is ln C, gradients are finite, small steps along them lower it."""
    torch.manual_seed(0)
    dtype = torch.float64 if name in IN_FLOAT64 else torch.float32
    model = quiet(name).to(dtype)
    x, labels = images(name, 20, dtype=dtype), torch.arange(20) % 10
    losses = []
    with cnnkern.use(fallback="raise"):
        for _ in range(4):
            loss = F.cross_entropy(model(x), labels)
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            assert all(gradient.isfinite().all() for gradient in gradients)
            step = STEP / sum(gradient.square().sum().item() for gradient in gradients)
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= step * gradient
    assert losses[0] == pytest.approx(math.log(10), rel=0.25)
    assert losses[-1] < losses[0] - STEP  # of three steps


@pytest.mark.parametrize("name", ALL)
def test_fused_is_its_composition(name):
    """In eval mode the model gives what torch's own convolutions give when each module is called on its own."""
    torch.manual_seed(0)
    model = shaken(quiet(name).double()).eval()
    x = images(name, 2, dtype=torch.float64)
    with torch.no_grad():
        fused = model(x)
        cnnkern.revert(model)
        for module in model.modules():
            module.register_forward_hook(lambda module, args, output: None)
        torch.testing.assert_close(fused, model(x), rtol=1e-9, atol=1e-9 * fused.abs().max().item())


# The first two have hundreds of millions of weights. In the last, batch normalisation of four values bends within the
# smallest step that float64 can take.
NOT_BY_NUMBERS = {"alexnet_two_gpu", "vgg11_bn", "inception_v4"}


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in COVERING if name not in NOT_BY_NUMBERS])
def test_gradients_of_each_layer_and_of_the_model(name):
    torch.manual_seed(0)
    checked = checks.gradients(quiet(name), images(name, 4, least=64))
    assert len(checked) > 1
    assert [check for check in checked if not check.passed] == []


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "mobilenet_v2", "inception_v2", "xception", "regnet_y_400mf"])
def test_no_normalisation_runs_by_itself_in_eval(name, monkeypatch):
    model = quiet(name).eval()
    monkeypatch.setattr(nn.BatchNorm2d, "forward", None)
    model(images(name, 1))


# torchvision


def entries(state_dict):
    """The keys and shapes of a state_dict as tests/data/torchvision_state.json has them: a line for each module."""
    shapes = {}
    for key, tensor in state_dict.items():
        path, _, leaf = key.rpartition(".")
        shapes.setdefault(path, []).append((leaf, tuple(tensor.shape)))
    return [f"{path} {_module(leaves)}" for path, leaves in shapes.items()]


def _module(leaves):
    names, sizes = zip(*leaves, strict=True)
    if names == ("weight", "bias", "running_mean", "running_var", "num_batches_tracked") and len({*sizes[:4]}) == 1:
        return f"bn {sizes[0][0]}"
    return " ".join(f"{name}:{'x'.join(map(str, size))}" for name, size in leaves)


TORCHVISION = json.loads((ROOT / "tests/data/torchvision_state.json").read_text())


@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        assert entries(models.create(name).state_dict()) == TORCHVISION[name]


def test_every_model_that_torchvision_has_is_recorded():
    assert set(TORCHVISION) == {name for name in models.list() if models.entry(name).torchvision}


def test_load_torchvision_takes_the_older_keys_of_its_checkpoints():
    state = quiet("densenet121").state_dict()
    older = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for key, value in state.items()}
    assert older.keys() != state.keys()
    loaded = models.load_torchvision("densenet121", older, num_classes=10).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_load_torchvision_is_strict():
    state = quiet("squeezenet1_1").state_dict()
    state["more"] = state.pop("classifier.1.bias")
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier\.1\.bias"):
        models.load_torchvision("squeezenet1_1", state, num_classes=10)
    with pytest.raises(ValueError, match="torchvision has no xception"):
        models.load_torchvision("xception", {})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name == "vgg16" else ()) for name in networks.names()]
)
def test_scores_are_those_of_torch_nn(name):
    """bench/networks.py defines the same networks in torch.nn, in the same order."""
    torch.manual_seed(0)
    reference = shaken(networks.build(name)).eval()
    model = quiet(name, num_classes=1000).eval()
    pairs = zip(model.state_dict().values(), reference.state_dict().values(), strict=True)
    for ours, theirs in pairs:
        ours.copy_(theirs)
    x = images(name, 2, least=64)
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


# What single architectures promise


def test_two_gpus_are_one_tower_with_zeros():
    """A grouped convolution is a dense one whose filters are zero for the maps of the other half; norms aside."""
    split, whole = quiet("alexnet_two_gpu").eval(), quiet("alexnet_one_tower").eval()
    for index, norm in enumerate(split.features):
        if isinstance(norm, nn.LocalResponseNorm):
            whole.features[index] = norm
    state = split.state_dict()
    for key in ("features.4.weight", "features.10.weight", "features.12.weight"):  # conv2, conv4 and conv5
        first, second = state[key].chunk(2)
        half = first.shape[1]
        state[key] = torch.cat([F.pad(first, (0, 0, 0, 0, 0, half)), F.pad(second, (0, 0, 0, 0, half, 0))])
    whole.load_state_dict(state)
    x = images("alexnet_two_gpu", 1)
    with torch.no_grad():
        torch.testing.assert_close(split(x), whole(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "count"), [("googlenet", 2), ("googlenet_naive", 2), ("inception_v3", 1)])
def test_auxiliary_classifiers_are_of_training(name, count):
    entry = models.entry(name)
    with torch.device("meta"):
        model = models.create(name, num_classes=5)
        outputs = model(torch.empty(2, *entry.input_size))
        assert isinstance(outputs, models.Outputs)
        assert [scores.shape for scores in (outputs.scores, *outputs.auxiliary)] == [(2, 5)] * (1 + count)
        assert model.eval()(torch.empty(2, *entry.input_size)).shape == (2, 5)


def test_inception_v3_names_the_smallest_images_of_its_auxiliary_classifier():
    with torch.device("meta"), pytest.raises(ValueError, match="too small for the auxiliary classifier: 299x299"):
        models.create("inception_v3")(torch.empty(2, 3, 298, 298))


def test_transform_input_changes_the_normalisation():
    plain = quiet("googlenet").eval()
    transformed = quiet("googlenet", transform_input=True).eval()
    transformed.load_state_dict(plain.state_dict())
    pixels = torch.rand(1, 3, 32, 32)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (pixels - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(transformed(normalised), plain((pixels - 0.5) / 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repvgg_gives_the_same_when_deployed(dtype):
    torch.manual_seed(0)
    model = shaken(models.create("repvgg_a0", 10).to(dtype)).eval()
    x = images("repvgg_a0", 2, dtype=dtype)
    with torch.no_grad():
        expected = model(x)
        deployed = model.reparameterize()(x)
    assert {type(module) for module in model.features.modules()} >= {cnnkern.Conv2d}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    error = (deployed - expected).abs().max() / expected.abs().max()
    assert error < 100 * torch.finfo(dtype).eps
    models.create("repvgg_a0", 10, deploy=True).load_state_dict(model.state_dict())


def test_stochastic_depth_keeps_the_mean_and_drops_whole_images():
    torch.manual_seed(0)
    kept = stochastic_depth(torch.ones(4000, 2, 1, 1), 0.25)
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(kept.unique(), torch.tensor([0, 4 / 3]))
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert drop_path_rates(0.5, 3) == [0, 0.25, 0.5]


RESIDUAL = [
    *("resnet*", "wide_resnet*", "resnext*", "seresnet*", "preact_resnet*", "inception_resnet*", "xception"),
    *("fractalnet*", "mobilenet_v[23]*", "shufflenet_v1", "efficientnet*", "convnext*", "regnet*"),
]


def test_stochastic_depth_is_of_training_and_of_any_residual_network():
    able = {name for name in models.list() if "drop_path" in models.entry(name).options}
    assert able == {name for pattern in RESIDUAL for name in models.list(pattern)}
    torch.manual_seed(0)
    model = shaken(models.create("resnet20", drop_path=0.9))
    x = images("resnet20", 4)
    assert not torch.equal(model(x), model(x))
    same = models.create("resnet20").eval()
    same.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), same(x))
    with pytest.raises(ValueError, match="drop_path=1"):
        models.create("resnet20", drop_path=1)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "maxout", "tanh", "sigmoid"])
def test_activations_of_lenet(activation):
    torch.manual_seed(0)
    model = models.create("lenet5", activation=activation)
    x = images("lenet5", 2)
    assert not torch.allclose(model(x), models.create("lenet5")(x))
    checked = checks.gradients(model, x)
    assert all(check.passed for check in checked)


def test_maxout_is_the_greatest_of_its_pieces():
    x = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    assert torch.equal(Maxout(2)(x), torch.tensor([[4.0, 3.0]]))
    assert Maxout(2)(x[:, :, None, None]).shape == (1, 2, 1, 1)


def test_residual_branches_start_as_the_identity():
    model = models.create("resnet20")
    block = model.blocks[0].eval()
    x = torch.rand(1, 16, 8, 8)
    assert torch.equal(block(x), x)
    assert models.create("resnet20", zero_init_residual=False).blocks[0].bn2.weight.min() == 1


def test_fractal_drop_path_keeps_an_input_of_each_join():
    torch.manual_seed(0)
    block = models.create("fractalnet20").blocks[0].eval()
    x = torch.randn(2, 3, 8, 8)
    whole = block(x)
    columns = [block(x, only=column) for column in range(3)]
    with_drops = [block(x, drop_path=0.9) for _ in range(10)]
    assert all(y.isfinite().all() and y.abs().sum() > 0 for y in (*columns, *with_drops))
    assert len({y.sum().item() for y in (whole, *columns)}) == 4
    shallow = block.convs["3_0"](x)
    assert torch.equal(columns[0], shallow)


# The registry


def test_unknown_names_and_options_are_told_what_there_is():
    with pytest.raises(ValueError, match="resnet50"):
        models.create("resnet5O")
    with pytest.raises(TypeError, match="resnet50 has no option stride: it takes stride_in, drop_path"):
        models.create("resnet50", stride=2)
    with pytest.raises(TypeError, match="nin has no option width: it takes dropout"):
        models.create("nin", width=2)
    with pytest.raises(ValueError, match="stride_in='5x5'"):
        models.create("resnet50", stride_in="5x5")
    with pytest.raises(ValueError, match="groups=5"):
        models.create("shufflenet_v1", groups=5)
    with pytest.raises(ValueError, match="activation='swish'"):
        models.create("lenet5", activation="swish")


def test_list_is_sorted_and_takes_a_pattern():
    assert models.list() == sorted(models.list())
    assert models.list("vgg??") == ["vgg11", "vgg13", "vgg16", "vgg19"]


def test_importing_the_package_does_not_import_the_models():
    code = "import cnnkern, sys; assert 'cnnkern.models' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_models_can_be_copied():
    model = quiet("shufflenet_v2_x0_5").eval()
    x = images("shufflenet_v2_x0_5", 1)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_layers_call_the_hooks_of_activations():
    layers = Layers(cnnkern.Conv2d(2, 3, 1), nn.ReLU()).eval()
    seen = []
    layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(layers(x), seen[0])


def test_the_command_prints_the_table():
    from click.testing import CliRunner

    assert CliRunner().invoke(main, ["models", "lenet*"]).output.strip() == models.table("lenet*")
