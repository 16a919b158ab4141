"""DenseNet (Huang, Liu, van der Maaten and Weinberger, arXiv 1608.06993): each layer reads all before it."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnkern.models._blocks import AvgPool2d, GlobalAvgPool2d, MaxPool2d, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d, conv_bn_act


class Table(NamedTuple):
    """A network: layers of its four blocks, maps that each adds, and maps of the stem."""

    layers: tuple[int, int, int, int]
    growth: int = 32
    stem: int = 64


TABLES = {
    "densenet121": Table((6, 12, 24, 16)),
    "densenet161": Table((6, 12, 36, 24), growth=48, stem=96),
    "densenet169": Table((6, 12, 32, 32)),
    "densenet201": Table((6, 12, 48, 32)),
}
NARROWING = 4  # a layer's 1x1 convolution gives this many times the growth


class DenseLayer(nn.Module):
    """BN-ReLU-1x1-BN-ReLU-3x3: the growth's maps, from all maps before."""

    def __init__(self, c_in: int, growth: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = Conv2d(c_in, NARROWING * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(NARROWING * growth)
        self.conv2 = Conv2d(NARROWING * growth, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """(N, growth, H, W) of (N, C, H, W)."""
        x = conv_bn_act(self.conv1, self.norm2, input, "relu", input_bn=self.norm1, input_activation="relu")
        return self.dropout(self.conv2(x))


class DenseBlock(nn.Module):
    """Layers each of which reads the input and what all layers before it have added."""

    def __init__(self, c_in: int, layers: int, growth: int, dropout: float) -> None:
        super().__init__()
        for number in range(layers):
            self.add_module(f"denselayer{number + 1}", DenseLayer(c_in + number * growth, growth, dropout))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C + layers * growth, H, W) of (N, C, H, W)."""
        maps = input
        for layer in self.children():
            maps = torch.cat([maps, layer(maps)], 1)
        return maps


class Transition(nn.Module):
    """BN-ReLU-1x1 to half of the maps, and a 2x2 average pool."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(c_in)
        self.conv = Conv2d(c_in, c_in // 2, 1, bias=False)
        self.pool = AvgPool2d(2)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C / 2, H / 2, W / 2) of (N, C, H, W)."""
        return self.pool(conv_bn_act(self.conv, None, input, input_bn=self.norm, input_activation="relu"))


class Features(nn.Module):
    """The stem, the four blocks with transitions between them, and a last batch normalisation."""

    def __init__(self, table: Table, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv0 = Conv2d(in_channels, table.stem, 7, 2, 3, bias=False)
        self.norm0 = nn.BatchNorm2d(table.stem)
        self.pool0 = MaxPool2d(3, 2, 1)
        self.maps = table.stem
        for number, layers in enumerate(table.layers, 1):
            if number > 1:
                self.add_module(f"transition{number - 1}", Transition(self.maps))
                self.maps //= 2
            self.add_module(f"denseblock{number}", DenseBlock(self.maps, layers, table.growth, dropout))
            self.maps += layers * table.growth
        self.norm5 = nn.BatchNorm2d(self.maps)

    def forward(self, images: Tensor) -> Tensor:
        """(N, maps, P, Q) of (N, C, H, W)."""
        _, _, _, *blocks, last_norm = self.children()
        x = self.pool0(conv_bn_act(self.conv0, self.norm0, images, "relu"))
        for block in blocks:
            x = block(x)
        return torch.relu(last_norm(x))


class DenseNet(Network):
    """The features, global average pooling and one linear layer."""

    def __init__(self, table: Table, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.features = Features(table, in_channels, dropout)
        self.avgpool = GlobalAvgPool2d()
        self.classifier = nn.Linear(self.features.maps, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))

    @staticmethod
    def current_key(key: str) -> str:
        """Published checkpoints have ``norm.1`` where the layer has ``norm1``."""
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)


@register(*TABLES, year=2016, paper="Huang et al., arXiv 1608.06993", smallest=29, torchvision=True)
def densenet(name: str, num_classes: int, in_channels: int, *, dropout: float = 0.0) -> DenseNet:
    """DenseNet of 121, 161, 169 or 201 layers."""
    model = DenseNet(TABLES[name], num_classes, in_channels, dropout)
    initialise(model, model.classifier)
    return model
