"""The convolution layers of the lectures' networks: ``shapes/<network>.txt``, one line per unique layer.

A line is a problem string at batch 1 (fprop, f32; ``-shift`` where the layer has a bias), how many layers of the
network have that shape, and the first of them by its place in the order of execution.
``python -m cnnkern.bench.shapes`` writes the files anew from the models in networks.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnkern.bench import networks
from cnnkern.problem import ConvProblem, Epilogue

DIRECTORY = Path(__file__).parent / "shapes"

TITLES = {
    "alexnet": "AlexNet, one tower of 64-192-384-256-256 maps (Krizhevsky et al., NIPS 2012)",
    "vgg16": "VGG16 (Simonyan and Zisserman, arXiv 1409.1556)",
    "googlenet": "GoogLeNet with batch normalisation (Szegedy et al., arXiv 1409.4842)",
    "resnet50": "ResNet-50, stride in the 3x3 (He et al., arXiv 1512.03385)",
    "resnext50_32x4d": "ResNeXt-50 32x4d (Xie et al., arXiv 1611.05431)",
    "densenet121": "DenseNet-121 (Huang et al., arXiv 1608.06993)",
    "mobilenet_v1": "MobileNetV1 (Howard et al., arXiv 1704.04861)",
    "mobilenet_v2": "MobileNetV2 (Sandler et al., arXiv 1801.04381)",
    "shufflenet_v1": "ShuffleNet V1, three groups (Zhang et al., arXiv 1707.01083)",
    "squeezenet1_0": "SqueezeNet 1.0 (Iandola et al., arXiv 1602.07360)",
    "xception": "Xception (Chollet, arXiv 1610.02357)",
}


@dataclass(frozen=True)
class Layer:
    """``times`` layers of one network that pose the same problem; ``name`` is the first of them."""

    problem: ConvProblem
    times: int
    name: str


def problem_of(layer: nn.Conv2d, x: Tensor) -> ConvProblem:
    """The fprop problem that ``layer`` poses on ``x`` (N, C, H, W)."""
    (n, c, h, w), (r, s) = x.shape, layer.kernel_size
    return ConvProblem(
        n, c, h, w, layer.out_channels, r, s, layer.stride, layer.padding * 2, layer.dilation, layer.groups,
        epilogue=Epilogue(shift=layer.bias is not None),
    )  # fmt: skip


def trace(name: str) -> list[Layer]:
    """The unique convolution layers of a network in networks.py, in the order in which they first run."""
    with torch.device("meta"):
        model = networks.build(name).eval()
        image = torch.empty(1, *networks.input_size(name))
    problems: list[ConvProblem] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda layer, args: problems.append(problem_of(layer, args[0])))
    model(image)
    return [Layer(problem, times, f"conv{problems.index(problem) + 1}") for problem, times in Counter(problems).items()]


def format_layers(name: str, layers: list[Layer]) -> str:
    """The text of a shapes file."""
    size = "x".join(map(str, networks.input_size(name)))
    head = f"# {TITLES[name]}: {sum(layer.times for layer in layers)} convolutions, {len(layers)} unique; input {size}."
    width = max(len(str(layer.problem)) for layer in layers)
    lines = [f"{layer.problem!s:<{width}}  {layer.times:>3}  {layer.name}" for layer in layers]
    return "\n".join([head, f"# {'problem':<{width - 2}}  times  first", *lines, ""])


def parse_layers(text: str) -> list[Layer]:
    """The inverse of :func:`format_layers`. Raises ValueError on a line that is not a layer."""
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [Layer(ConvProblem.parse(problem), int(times), name) for problem, times, name in rows]


def names() -> list[str]:
    """The networks that have a shapes file."""
    return list(TITLES)


def read(name: str) -> list[Layer]:
    """The layers of ``shapes/<name>.txt``."""
    return parse_layers((DIRECTORY / f"{name}.txt").read_text())


def main() -> None:
    """Writes every shapes file."""
    for name in names():
        (DIRECTORY / f"{name}.txt").write_text(format_layers(name, trace(name)))


if __name__ == "__main__":
    main()
