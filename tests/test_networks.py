"""The benchmark's networks are the published ones: parameter counts and multiply-adds at the published input size."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cnnkern.bench import networks

# Parameters, and multiply-adds in G (224 x 224, Xception 299 x 299).
PUBLISHED = {
    "alexnet": (61_100_840, 0.714),
    "vgg16": (138_357_544, 15.470),
    "googlenet": (6_624_904, 1.498),
    "resnet18": (11_689_512, 1.814),
    "resnet50": (25_557_032, 4.089),
    "resnext50_32x4d": (25_028_904, 4.230),
    "densenet121": (7_978_856, 2.834),
    "mobilenet_v1": (4_231_976, 0.569),
    "mobilenet_v2": (3_504_872, 0.301),
    "shufflenet_v1": (1_865_728, 0.137),
    "squeezenet1_0": (1_248_424, 0.819),
    "xception": (22_855_952, 8.357),
}


def test_every_network_is_listed():
    assert set(networks.names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_size(name):
    with torch.device("meta"):
        model = networks.build(name).eval()
        with FlopCounterMode(display=False) as counter:
            scores = model(torch.empty(2, *networks.input_size(name)))
    parameters, multiply_adds = PUBLISHED[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert round(counter.get_total_flops() / 2 / 2e9, 3) == multiply_adds
    assert scores.shape == (2, networks.CLASSES)
