"""Published errors on the validation set of ImageNet's 1000 classes, in percent: top-1 and top-5."""

from __future__ import annotations

from typing import NamedTuple


class Error(NamedTuple):
    """An error, and how it was measured."""

    top1: float | None
    top5: float | None
    source: str


# torchvision 0.9's documentation: of its weights, by one crop of 224x224.
TORCHVISION = {
    "alexnet": (43.45, 20.91),
    "densenet121": (25.35, 7.83),
    "densenet161": (22.35, 6.20),
    "densenet169": (24.00, 7.00),
    "densenet201": (22.80, 6.43),
    "googlenet": (30.22, 10.47),
    "inception_v3": (22.55, 6.44),
    "mobilenet_v2": (28.12, 9.71),
    "mobilenet_v3_large": (25.96, 8.66),
    "mobilenet_v3_small": (32.33, 12.60),
    "resnet18": (30.24, 10.92),
    "resnet34": (26.70, 8.58),
    "resnet50": (23.85, 7.13),
    "resnet101": (22.63, 6.44),
    "resnet152": (21.69, 5.94),
    "resnext50_32x4d": (22.38, 6.30),
    "resnext101_32x8d": (20.69, 5.47),
    "shufflenet_v2_x1_0": (30.64, 11.68),
    "squeezenet1_0": (41.90, 19.58),
    "squeezenet1_1": (41.81, 19.38),
    "vgg11": (30.98, 11.37),
    "vgg11_bn": (29.62, 10.19),
    "vgg13": (30.07, 10.75),
    "vgg13_bn": (28.45, 9.63),
    "vgg16": (28.41, 9.62),
    "vgg16_bn": (26.63, 8.50),
    "vgg19": (27.62, 9.12),
    "vgg19_bn": (25.76, 8.15),
    "wide_resnet50_2": (21.49, 5.91),
    "wide_resnet101_2": (21.16, 5.72),
}
# The same by other authors' weights, as github.com/Cadene/pretrained-models.pytorch lists them.
OTHERS = {
    "inception_v2": (26.48, 8.44),
    "inception_v4": (19.8, 4.7),
    "inception_resnet_v2": (19.6, 4.7),
    "nasnet_mobile": (26.0, 8.4),
    "resnext101_32x4d": (21.2, 5.6),
    "seresnet50": (22.37, 6.36),
    "xception": (21.0, 5.5),
}
ILSVRC = {
    "googlenet": "; 6.7 with seven networks in ILSVRC 2014",
    "resnet152": "; 3.57 with six networks in ILSVRC 2015",
    "vgg16": "; 7.3 in ILSVRC 2014",
}

ERRORS = {
    **{name: Error(*error, f"torchvision, one crop{ILSVRC.get(name, '')}") for name, error in TORCHVISION.items()},
    **{name: Error(*error, "one crop") for name, error in OTHERS.items()},
    "alexnet_two_gpu": Error(None, 18.2, "one network; 15.4 with seven"),
    "preact_resnet152": Error(21.1, None, "one crop of 320; resnet152 21.3"),
    "preact_resnet200": Error(20.7, None, "one crop of 320; without pre-activation 21.8"),
    "zfnet": Error(None, 11.7, "ILSVRC 2013"),
}
