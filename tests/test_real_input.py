"""Real images through real architectures: digits to train on, photographs to agree on."""

import copy
import re
import runpy
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

import cnnkern
from cnnkern.bench import canvas, networks
from cnnkern.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def run_example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_lenet5_learns_digits():
    example = run_example("train_lenet_digits")
    with cnnkern.use(fallback="raise"):
        assert example["train"]() >= 0.98


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_resnet20_learns_digits_in_five_minutes_of_two_cores(seed, tmp_path):
    start = time.process_time()
    command = ["train", "resnet20", "--recipe", "snapshots", "--seed", str(seed), "--out", str(tmp_path)]
    with cnnkern.use(fallback="raise"):
        result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert float(re.search(r"test loss .* accuracy ([\d.]+)%", result.output)[1]) >= 98.5
    assert time.process_time() - start < 2 * 300


def test_example_degradation(tmp_path):
    example = run_example("degradation")
    runs = example["histories"](epochs=2, networks=("plain20", "resnet20"))
    assert [len(history) for history in runs.values()] == [2, 2]
    example["plot"](runs, tmp_path / "degradation")
    drawn = ElementTree.parse(tmp_path / "degradation.svg").findall(".//{*}polyline")
    assert sum(line.get("stroke") != canvas.GRID for line in drawn) == 4
    assert (tmp_path / "degradation.png").exists()


def test_example_convert_resnet50(capsys):
    run_example("convert_resnet50")["main"]()
    assert "53 of 53 convolutions converted" in capsys.readouterr().out


@pytest.fixture(scope="module")
def photographs():
    """Both photographs as an (2, 3, 224, 224) batch, normalised as for ImageNet."""
    images = [torch.tensor(load_sample_image(name)).permute(2, 0, 1) / 255 for name in ("china.jpg", "flower.jpg")]
    cropped = torch.stack([(image[:, :, 106:533] - IMAGENET_MEAN) / IMAGENET_DEVIATION for image in images])
    return F.interpolate(cropped, size=224, mode="bilinear", antialias=True)


def settle_statistics(model, images):
    """Batch normalisation's running statistics as the images have them, for random weights have no others."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["alexnet", "resnet50"])
def test_converted_networks_see_what_torch_sees(name, layout, photographs):
    torch.manual_seed(0)
    torchs = networks.build(name)
    images = photographs.to(memory_format=layout)
    with torch.no_grad():
        settle_statistics(torchs, photographs)
        ours = copy.deepcopy(torchs.eval())
        assert not cnnkern.convert(ours).skipped
        with cnnkern.use(fallback="raise"):
            scores = ours(images)
        torch_scores = torchs(images)
        exact = torchs.double()(images.double())
    scale = exact.abs().max()
    error, torch_error = ((s.double() - exact).abs().max() / scale for s in (scores, torch_scores))
    assert error <= max(2 * torch_error, 16 * torch.finfo(torch.float32).eps)
    assert exact.std(dim=0).max() / scale > 1e-3  # the two photographs do differ in their scores
