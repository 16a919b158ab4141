"""Xception (Chollet, arXiv 1610.02357): depthwise separable convolutions in place of Inception modules."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from cnnkern.models._blocks import (
    Layers,
    MaxPool2d,
    Separable,
    add_residual,
    conv_bn,
    drop_path_rates,
    initialise,
)
from cnnkern.models._network import PooledNetwork
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


def features(in_channels: int, drop_path: float) -> nn.Sequential:
    """Two 3x3 convolutions, the table, two separable convolutions."""
    rates = drop_path_rates(drop_path, len(TABLE))
    stem = [conv_bn(in_channels, 32, 3, 2, padding=0), conv_bn(32, 64, 3, padding=0)]
    blocks = [Block(*row, relu_first=number > 0, drop_path=rates[number]) for number, row in enumerate(TABLE)]
    tail = [Separable(*pair, 3, act="relu") for pair in pairwise(TAIL)]
    return nn.Sequential(*stem, *blocks, *tail)


@register("xception", year=2016, paper="Chollet, arXiv 1610.02357", input_size=(3, 299, 299), smallest=7)
def xception(
    name: str, num_classes: int, in_channels: int, *, dropout: float = 0.5, drop_path: float = 0.0
) -> PooledNetwork:
    """Xception."""
    model = PooledNetwork(features(in_channels, drop_path), TAIL[-1], num_classes, dropout)
    initialise(model, model.fc)
    return model
