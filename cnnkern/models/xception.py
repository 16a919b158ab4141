"""Xception (Chollet, arXiv 1610.02357): depthwise separable convolutions in place of Inception modules."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from cnnkern.models._blocks import (
    GlobalAvgPool2d,
    Layers,
    MaxPool2d,
    Separable,
    add_residual,
    conv_bn,
    drop_path_rates,
    initialise,
)
from cnnkern.models._network import Network
from cnnkern.models._registry import register

# Maps before each separable convolution of a block and after its last, and the stride of the pool that ends it.
TABLE = [
    ((64, 128, 128), 2),
    ((128, 256, 256), 2),
    ((256, 728, 728), 2),
    *[((728, 728, 728, 728), 1)] * 8,
    ((728, 728, 1024), 2),
]
TAIL = (1024, 1536, 2048)


class Block(nn.Module):
    """Separable convolutions, each behind a ReLU, and a pool if there is a stride; plus a shortcut."""

    def __init__(self, maps: tuple[int, ...], stride: int, relu_first: bool, drop_path: float) -> None:
        super().__init__()
        relus = ["relu" if relu_first or number else "none" for number in range(len(maps) - 1)]
        layers = [Separable(*pair, 3, input_act=act) for pair, act in zip(pairwise(maps), relus, strict=True)]
        self.body = Layers(*layers, *([MaxPool2d(3, 2, 1)] if stride > 1 else []))
        self.shortcut = conv_bn(maps[0], maps[-1], 1, stride, act=None) if stride > 1 else nn.Identity()
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        drop_path = self.drop_path if self.training else 0.0
        return add_residual(self.body, input, self.shortcut(input), drop_path=drop_path)


class Xception(Network):
    """Two 3x3 convolutions, the table, two separable convolutions, global average pooling and one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, len(TABLE))
        self.stem = nn.Sequential(conv_bn(in_channels, 32, 3, 2, padding=0), conv_bn(32, 64, 3, padding=0))
        blocks = [Block(*row, relu_first=number > 0, drop_path=rates[number]) for number, row in enumerate(TABLE)]
        self.blocks = nn.Sequential(*blocks)
        self.tail = nn.Sequential(*(Separable(*pair, 3, act="relu") for pair in pairwise(TAIL)))
        self.avgpool = GlobalAvgPool2d()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(TAIL[-1], num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        x = self.tail(self.blocks(self.stem(images)))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


@register("xception", year=2016, paper="Chollet, arXiv 1610.02357", input_size=(3, 299, 299), smallest=7)
def xception(
    name: str, num_classes: int, in_channels: int, *, dropout: float = 0.5, drop_path: float = 0.0
) -> Xception:
    """Xception."""
    model = Xception(num_classes, in_channels, dropout, drop_path)
    initialise(model, model.fc)
    return model
