"""SqueezeNet 1.0 and 1.1 (Iandola et al., arXiv 1602.07360): fire modules, downsampling late, few parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d, Layers, MaxPool2d, conv_relu, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d, conv_bn_act

# Maps and filter size of the stem; then fire modules: squeeze, expand (each of 1x1 and 3x3). None is a max-pool.
Table = tuple[tuple[int, int], list[tuple[int, int] | None]]
TABLES: dict[str, Table] = {
    "squeezenet1_0": (
        (96, 7),
        [None, (16, 64), (16, 64), (32, 128), None, (32, 128), (48, 192), (48, 192), (64, 256), None, (64, 256)],
    ),
    "squeezenet1_1": (
        (64, 3),
        [None, (16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256)],
    ),
}


PAPER = "Iandola et al., arXiv 1602.07360"


class Fire(nn.Module):
    """1x1 to few maps, then 1x1 and 3x3 side by side."""

    def __init__(self, c_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = Conv2d(c_in, squeeze, 1)
        self.expand1x1 = Conv2d(squeeze, expand, 1)
        self.expand3x3 = Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(N, 2 * expand, H, W) of (N, C, H, W)."""
        squeezed = conv_bn_act(self.squeeze, None, input, "relu")
        return torch.cat([conv_bn_act(conv, None, squeezed, "relu") for conv in (self.expand1x1, self.expand3x3)], 1)


class SqueezeNet(Network):
    """A convolution, eight fire modules, and the mean over the pixels of a map for each class."""

    def __init__(self, table: Table, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        (maps, kernel), rows = table
        features: list[nn.Module] = conv_relu(in_channels, maps, kernel, 2, padding=0)
        for row in rows:
            if row is None:
                features.append(MaxPool2d(3, 2, ceil_mode=True))
            else:
                features.append(Fire(maps, *row))
                maps = 2 * row[1]
        self.features = Layers(*features)
        self.classifier = Layers(nn.Dropout(dropout), *conv_relu(maps, num_classes, 1), GlobalAvgPool2d())

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.features(images)).flatten(1)


@register("squeezenet1_0", year=2016, paper=PAPER, smallest=21, torchvision=True)
@register("squeezenet1_1", year=2016, paper=PAPER, smallest=17, torchvision=True)
def squeezenet(name: str, num_classes: int, in_channels: int, *, dropout: float = 0.5) -> SqueezeNet:
    """SqueezeNet 1.0, or 1.1 with 2.4 times fewer operations."""
    model = SqueezeNet(TABLES[name], num_classes, in_channels, dropout)
    initialise(model, model.classifier[1])
    return model
