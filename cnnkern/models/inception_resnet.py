"""Inception-ResNet v1 and v2 (Szegedy, Ioffe, Vanhoucke and Alemi, arXiv 1602.07261): residual Inception modules."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnkern.composed import activate
from cnnkern.models._blocks import drop_path_rates, initialise, stochastic_depth
from cnnkern.models._inception import concat, stack
from cnnkern.models._network import PooledNetwork
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d


class Blocks(NamedTuple):
    """Residual blocks in a row: their number, branches, the scale of the branches' sum; ReLU after it or not."""

    repeats: int
    branches: list[str]
    scale: float
    relu: bool = True


# Blocks, or the branches of a module without a shortcut.
TABLES: dict[str, list[Blocks | list[str]]] = {
    "inception_resnet_v1": [
        ["3x3/2v 32, 3x3v 32, 3x3 64, max/2v, 1x1 80, 3x3v 192, 3x3/2v 256"],
        Blocks(5, ["1x1 32", "1x1 32, 3x3 32", "1x1 32, 3x3 32, 3x3 32"], 0.17),
        ["3x3/2v 384", "1x1 192, 3x3 192, 3x3/2v 256", "max/2v"],
        Blocks(10, ["1x1 128", "1x1 128, 1x7 128, 7x1 128"], 0.10),
        ["1x1 256, 3x3/2v 384", "1x1 256, 3x3/2v 256", "1x1 256, 3x3 256, 3x3/2v 256", "max/2v"],
        Blocks(5, ["1x1 192", "1x1 192, 1x3 192, 3x1 192"], 0.20),
    ],
    "inception_resnet_v2": [
        ["3x3/2v 32, 3x3v 32, 3x3 64, max/2v, 1x1 80, 3x3v 192, max/2v"],
        ["1x1 96", "1x1 48, 5x5 64", "1x1 64, 3x3 96, 3x3 96", "avg, 1x1 64"],
        Blocks(10, ["1x1 32", "1x1 32, 3x3 32", "1x1 32, 3x3 48, 3x3 64"], 0.17),
        ["3x3/2v 384", "1x1 256, 3x3 256, 3x3/2v 384", "max/2v"],
        Blocks(20, ["1x1 192", "1x1 128, 1x7 160, 7x1 192"], 0.10),
        ["1x1 256, 3x3/2v 384", "1x1 256, 3x3/2v 288", "1x1 256, 3x3 288, 3x3/2v 320", "max/2v"],
        Blocks(9, ["1x1 192", "1x1 192, 1x3 224, 3x1 256"], 0.20),
        Blocks(1, ["1x1 192", "1x1 192, 1x3 224, 3x1 256"], 1.0, relu=False),
        ["1x1 1536"],
    ],
}


class ResidualInception(nn.Module):
    """act(x + scale * conv1x1(branches(x)))."""

    def __init__(self, maps: int, branches: list[str], scale: float, relu: bool, drop_path: float) -> None:
        super().__init__()
        self.branches, inner = concat(maps, branches)
        self.conv = Conv2d(inner, maps, 1)
        self.scale = scale
        self.activation = "relu" if relu else "none"
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W), as the input."""
        y = self.conv(self.branches(input))
        if self.training and self.drop_path:
            y = stochastic_depth(y, self.drop_path)
        return activate(torch.add(input, y, alpha=self.scale), self.activation, 0.0)


def features(name: str, in_channels: int, drop_path: float) -> tuple[nn.Sequential, int]:
    """The rows of a table one after another, and the maps that the last gives."""
    rates = drop_path_rates(drop_path, sum(row.repeats for row in TABLES[name] if isinstance(row, Blocks)))
    layers: list[nn.Module] = []
    maps = in_channels
    for row in TABLES[name]:
        if isinstance(row, Blocks):
            layers += [ResidualInception(maps, *row[1:], rates.pop(0)) for _ in range(row.repeats)]
        else:
            module, maps = stack(maps, [row])
            layers.append(module)
    return nn.Sequential(*layers), maps


@register(*TABLES, year=2016, paper="Szegedy et al., arXiv 1602.07261", input_size=(3, 299, 299), smallest=75)
def inception_resnet(
    name: str, num_classes: int, in_channels: int, *, dropout: float = 0.2, drop_path: float = 0.0
) -> PooledNetwork:
    """Inception-ResNet v1, of the cost of Inception v3, or v2, of the cost of v4."""
    model = PooledNetwork(*features(name, in_channels, drop_path), num_classes, dropout)
    initialise(model, model.fc)
    return model
