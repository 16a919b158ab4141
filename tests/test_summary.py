"""The lectures' tables and small facts, as cnnkern.summary computes them, and the commands that print them."""

from functools import cache, partial

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import cnnkern
from cnnkern import models
from cnnkern.bench import networks
from cnnkern.cli import main
from cnnkern.summary import examples, notes
from cnnkern.summary.walk import Total


@cache
def summary_of(name, input=None, **options):
    with torch.device("meta"):
        return cnnkern.summary(networks.build(name), input, **options)


def layers(summary, *kinds):
    return [layer for layer in summary.layers if layer.kind in kinds]


# --- the lectures' tables

# Layer, C in, H in, filters, kernel, stride, pad, C out, H out, memory KB, params k, Mflop. The lecture prints 145
# Mflop for conv4, where 256*13*13 outputs of 384*3*3 products are 150.
ALEXNET = """
conv1    3    227  64  11 4 2  64   56  784 23    73
pool1    64   56   .   3  2 0  64   27  182 0     0
conv2    64   27   192 5  1 2  192  27  547 307   224
pool2    192  27   .   3  2 0  192  13  127 0     0
conv3    192  13   384 3  1 1  384  13  254 664   112
conv4    384  13   256 3  1 1  256  13  169 885   150
conv5    256  13   256 3  1 1  256  13  169 590   100
pool5    256  13   .   3  2 0  256  6   36  0     0
flatten  256  6    .   .  . .  9216 .   36  0     0
fc6      9216 .    .   .  . .  4096 .   16  37753 38
fc7      4096 .    .   .  . .  4096 .   16  16781 17
fc8      4096 .    .   .  . .  1000 .   4   4097  4
"""
GOOGLENET_STEM = """
conv1    3    224  64  7  2 3  64   112 3136 9    118
pool1    64   112  .   3  2 1  64   56  784  0    2
conv2    64   56   64  1  1 0  64   56  784  4    13
conv3    64   56   192 3  1 1  192  56  2352 111  347
pool3    192  56   .   3  2 1  192  28  588  0    1
"""


def in_lecture_form(layer):
    def first(numbers):
        return numbers[0] if numbers else "."

    window = layer.window
    filters = layer.c_out if layer.kind == "conv" else "."
    slid = [first(numbers) for numbers in (window.kernel, window.stride, window.padding)] if window else ["."] * 3
    sizes = [layer.c_in, first(layer.size_in), filters, *slid, layer.c_out, first(layer.size_out)]
    costs = [round(layer.values * 4 / 1024), round(layer.parameters / 1e3), round(layer.flops / 1e6)]
    return [str(cell) for cell in [layer.label, *sizes, *costs]]


def table_of(text):
    return [line.split() for line in text.strip().splitlines()]


class Stem(nn.Sequential):
    """GoogLeNet's as published: biases, no batch normalisation."""

    def __init__(self):
        pool = partial(nn.MaxPool2d, 3, 2, 1)
        conv = partial(nn.Conv2d, bias=True)
        super().__init__(
            conv(3, 64, 7, 2, 3), nn.ReLU(), pool(), conv(64, 64, 1), nn.ReLU(), conv(64, 192, 3, 1, 1), pool()
        )


@pytest.mark.parametrize(
    ("model", "input", "table"),
    [
        pytest.param(networks.alexnet, (3, 227, 227), ALEXNET, id="alexnet"),
        pytest.param(Stem, (3, 224, 224), GOOGLENET_STEM, id="googlenet's stem"),
    ],
)
def test_table(model, input, table):
    found = cnnkern.summary(model(), input)
    assert [in_lecture_form(layer) for layer in found.layers] == table_of(table)


def test_alexnet_to_the_last_digit():
    conv1, pool1, *_, fc6, _, _ = summary_of("alexnet", (3, 227, 227)).layers
    assert (conv1.parameters, conv1.flops) == (23_296, 72_855_552)
    assert (pool1.values * 4 / 1024, pool1.flops) == (182.25, 419_904)
    assert (fc6.parameters, fc6.flops) == (37_752_832, 37_748_736)


def test_alexnet_totals_and_trends():
    found = summary_of("alexnet", (3, 227, 227))
    total, conv, fc = found.total("conv", "fc"), found.total("conv"), found.total("fc")
    sums = total.megabytes, total.parameters / 1e6, total.flops / 1e9
    assert [f"{value:.2g}" for value in sums] == ["1.9", "61", "0.72"]  # at 224 pixels 0.71
    assert conv.values > 50 * fc.values
    assert fc.parameters > 20 * conv.parameters
    assert conv.flops > 10 * fc.flops


VGG16_WEIGHTS = [1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648, 2_359_296, 2_359_296]
VGG16_WEIGHTS += [2_359_296] * 3 + [102_760_448, 16_777_216, 4_096_000]
# Thousands of values, to two digits as the lecture has them: 3.2M is 3211264.
VGG16_VALUES = [3211, 3211, 803, 1606, 1606, 401, 803, 803, 803, 201, 401, 401, 401, 100, 100, 100, 100, 25, 4, 4, 1]


def test_vgg16_without_biases():
    found = summary_of("vgg16", biases=False)
    assert [layer.parameters for layer in layers(found, "conv", "fc")] == VGG16_WEIGHTS
    assert [round(layer.values / 1e3) for layer in layers(found, "conv", "pool", "fc")] == VGG16_VALUES
    assert found.parameters == sum(VGG16_WEIGHTS) == 138_344_128
    assert "without biases" in str(found)


def test_vgg16_against_alexnet():
    large, small = summary_of("vgg16"), summary_of("alexnet")
    assert (round(large.parameters / 1e6), round(large.parameters / small.parameters, 1)) == (138, 2.3)


def test_vgg16_costs_the_same_in_each_stage():
    convs = [layer for layer in layers(summary_of("vgg16"), "conv") if layer.c_in == layer.c_out]
    costs = [layer.flops for layer in convs if layer.size_out[0] >= 28]
    stages = ((224, 64), (112, 128), (56, 256), (56, 256), (28, 512), (28, 512))
    assert costs == [36 * h * h * (c // 2) ** 2 for h, c in stages]
    assert len(set(costs)) == 1


def test_googlenet_head_and_stem_totals():
    stem = cnnkern.summary(Stem()).total()
    assert (f"{stem.megabytes:.1f}", round(stem.parameters / 1e3), round(stem.flops / 1e6)) == ("7.5", 124, 481)
    *_, pool, fc = summary_of("googlenet").layers
    assert (pool.c_in, pool.size_in, pool.window.kernel) == (1024, (7, 7), (7, 7))
    assert (round(fc.parameters / 1e3), round(fc.flops / 1e6)) == (1025, 1)


# Convolutions of the four stages, and Gflop as the lecture has them: the paper's, with the stride in the first 1x1.
RESNETS = {
    "resnet18": ((4, 4, 4, 4), 1.8),
    "resnet34": ((6, 8, 12, 6), 3.6),
    "resnet50": ((9, 12, 18, 9), 3.8),
    "resnet101": ((9, 12, 69, 9), 7.6),
    "resnet152": ((9, 24, 108, 9), 11.3),
}


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_as_published(name):
    convs, gflop = RESNETS[name]
    options = {"stride_in": "1x1"} if "stride_in" in models.entry(name).options else {}
    with torch.device("meta"):
        found = cnnkern.summary(models.create(name, **options))
    stages = [layer.module.split(".")[0] for layer in layers(found, "conv") if ".conv" in layer.module]
    assert tuple(stages.count(f"layer{stage}") for stage in (1, 2, 3, 4)) == convs
    assert found.total("conv", "fc").flops / 1e9 == pytest.approx(gflop, abs=0.07)  # 3.86 and 3.66 are cut to 3.8, 3.6


# --- the numbers that the lectures print and their layers do not give


@pytest.mark.parametrize(
    ("name", "input", "sentences"),
    [
        ("alexnet", (3, 227, 227), ["145 Mflop in conv4", "149.5 Mflop"]),
        (
            "vgg16",
            (3, 224, 224),
            ["96 MB", "15.2M values, 61 MB", "48.6 MB", "51.7 MB and 15.47 Gflop", "7485 Mflop", "9335 Mflop"],
        ),
        ("googlenet", (3, 224, 224), ["418 Mflop", "118 + 2 + 13 + 347 + 1 = 481 Mflop", "about 5M", "6.6M, 9x fewer"]),
        ("resnet50", (3, 224, 224), ["3.8 Gflop", "4.09 Gflop"]),
    ],
)
def test_notes_say_what_follows(name, input, sentences):
    told = " ".join(notes.notes_on(name, summary_of(name, input)))
    for sentence in sentences:
        assert sentence in told


@pytest.mark.parametrize(
    ("printed", "chosen"),
    [
        pytest.param((48.6, 13.6), lambda layer: layer.kind in ("conv", "fc"), id="against AlexNet"),
        pytest.param((42.9, 7.485), lambda layer: layer.kind == "conv" and layer.size_out[0] >= 56, id="down to 28x28"),
    ],
)
def test_vgg16_slips_leave_out_conv3_3(printed, chosen):
    found = summary_of("vgg16")
    conv3_3 = next(layer for layer in found.layers if layer.label == "conv7")
    left = Total.of(layer for layer in found.layers if chosen(layer) and layer is not conv3_3)
    assert (left.megabytes, left.flops / 1e9) == pytest.approx(printed, abs=0.06)


# --- worked examples


def test_inception_naive():
    (found,) = examples.inception(naive=True).forms
    terms = [round(layer.flops / 1e6, 1) for layer in layers(found, "conv")]
    assert terms == [25.7, 346.8, 481.7]
    assert round(found.total("conv").flops / 1e6) == 854


def test_inception_reduced_and_the_slip():
    example = examples.inception()
    (found,) = example.forms
    terms = sorted(round(layer.flops / 1e6, 1) for layer in layers(found, "conv"))
    assert terms == [12.8, 12.8, 12.8, 25.7, 86.7, 120.4]
    assert round(found.total("conv").flops / 1e6) == 271
    assert "358M ops" in str(example)
    assert "output 28x28x480" in str(example)


@pytest.mark.parametrize(("naive", "output"), [(True, 672), (False, 480)])
def test_inception_output(naive, output):
    assert f"output 28x28x{output}" in examples.inception(naive=naive).facts


def test_bottleneck():
    assert [form.parameters for form in examples.bottleneck().forms] == [819_200, 208_896]


@pytest.mark.parametrize(("maps", "filters", "kernel"), [(512, 512, 3), (32, 64, 3), (7, 11, 5)])
def test_separable(maps, filters, kernel):
    full, parts = examples.separable((maps, 14, 14), filters, kernel).forms
    assert full.total().flops == kernel**2 * maps * 14**2 * filters
    assert parts.total().flops == kernel**2 * maps * 14**2 + maps * filters * 14**2
    assert parts.total().flops / full.total().flops == pytest.approx(1 / filters + 1 / kernel**2)


@pytest.mark.parametrize(("count", "small", "large"), [(3, 27, 49), (2, 18, 25)])
def test_stack_sees_as_much_for_fewer_weights(count, small, large):
    forms = examples.stack((64, 56, 56), count).forms
    assert [form.parameters for form in forms] == [small * 64**2, large * 64**2]
    assert {form.layers[-1].field.size for form in forms} == {(2 * count + 1,) * 2}


def test_stage_costs_36hwc2():
    assert [form.total().flops for form in examples.stage((64, 224, 224)).forms] == [36 * 224 * 224 * 32**2] * 2


@pytest.mark.parametrize(
    ("layer", "input", "output", "parameters"),
    [
        pytest.param(nn.Conv2d(3, 96, 11, 4, bias=False), (3, 227, 227), (96, 55, 55), 34_848, id="AlexNet's conv1"),
        pytest.param(nn.MaxPool2d(3, 2), (96, 55, 55), (96, 27, 27), 0, id="AlexNet's pool1"),
        pytest.param(nn.Conv2d(64, 32, 1, bias=False), (64, 56, 56), (32, 56, 56), 2_048, id="1x1"),
    ],
)
def test_output_sizes(layer, input, output, parameters):
    (found,) = cnnkern.summary(layer, input).layers
    assert ((found.c_out, *found.size_out), found.parameters) == (output, parameters)


# --- what goes wrong, and the command line


@pytest.mark.parametrize("name", ["no_such_package:model", "cnnkern.bench.networks:no_such_model"])
def test_name_that_there_is_not(name):
    with pytest.raises(ValueError, match=f"there is no {name}"):
        cnnkern.summary(name)


def test_callable_that_gives_no_module():
    with pytest.raises(TypeError, match="but a list"):
        cnnkern.summary("cnnkern.bench.networks:names")


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def test_summary_command():
    result = run("summary", "cnnkern.bench.networks:alexnet", "--input", "3x227x227", "--batch", "2", "--no-biases")
    assert result.exit_code == 0, result.output
    assert "total    11 layers" in result.output
    assert "a batch of 2" in result.output


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_module_command(name):
    required = {"conv": ("--input", "3x227x227", "--filters", "96", "--kernel", "11", "--stride", "4")}
    result = run("module", name, *required.get(name, ()))
    assert result.exit_code == 0, result.output
    last = {
        "bottleneck": "819,200 against 128*32 + 32*5*5*256 = 208,896",
        "conv": "11*11*3*96 = 34,848",
        "inception": "358M ops",
        "separable": "1/512 + 1/3^2 = 0.1131",
        "stack": "27C^2 = 110,592 against 49C^2 = 200,704",
        "stage": "36*224*224*32^2 = 1,849,688,064",
    }
    assert last[name] in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cnnkern.bench.networks:alexnet", "--input", "3x20x20"), "too small"),
        (("cnnkern.bench.networks:alexnet", "--input", "4x224x224"), "to have 3 channels"),
        (("cnnkern.bench.networks:alexnet", "--input", "3xabc"), "not like 3x227x227"),
        (("no_such_package:model",), "No module named"),
    ],
)
def test_summary_command_tells_what_is_wrong(arguments, message):
    result = run("summary", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


def test_by_name_at_the_lectures_size():
    found = cnnkern.summary("alexnet")
    assert [in_lecture_form(layer) for layer in found.layers] == table_of(ALEXNET)
    assert any("145 Mflop in conv4" in note for note in found.notes)
    assert not cnnkern.summary("alexnet", (3, 224, 224)).notes
    assert len(cnnkern.summary("vgg16", biases=False).notes) == len(notes.NOTES["vgg16"])
