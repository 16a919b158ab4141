"""Residual networks (He et al., arXiv 1512.03385), wide (arXiv 1605.07146), ResNeXt (1611.05431) and SE (1709.01507).

And the plain networks of 18 and 34 layers that the first of these papers compares its networks with.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from cnnkern.composed import activate
from cnnkern.models._blocks import (
    GlobalAvgPool2d,
    Layers,
    MaxPool2d,
    SqueezeExcitation,
    add_residual,
    conv_bn,
    drop_path_rates,
    initialise,
)
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d, conv_bn_act

MAPS = (64, 128, 256, 512)  # of the four stages; each but the first halves the resolution


class Table(NamedTuple):
    """A network: blocks of the four stages, and what a bottleneck's 3x3 convolution is."""

    bottleneck: bool
    blocks: tuple[int, int, int, int]
    groups: int = 1
    width: int = 64
    """Maps of each group in the first stage."""
    squeeze: int = 0
    """By how much squeeze and excitation narrows, 0 without."""
    shortcut: bool = True


TABLES = {
    "plain18": Table(False, (2, 2, 2, 2), shortcut=False),
    "plain34": Table(False, (3, 4, 6, 3), shortcut=False),
    "resnet18": Table(False, (2, 2, 2, 2)),
    "resnet34": Table(False, (3, 4, 6, 3)),
    "resnet50": Table(True, (3, 4, 6, 3)),
    "resnet101": Table(True, (3, 4, 23, 3)),
    "resnet152": Table(True, (3, 8, 36, 3)),
    "wide_resnet50_2": Table(True, (3, 4, 6, 3), width=128),
    "wide_resnet101_2": Table(True, (3, 4, 23, 3), width=128),
    "resnext50_32x4d": Table(True, (3, 4, 6, 3), groups=32, width=4),
    "resnext101_32x4d": Table(True, (3, 4, 23, 3), groups=32, width=4),
    "resnext101_32x8d": Table(True, (3, 4, 23, 3), groups=32, width=8),
    "resnext101_64x4d": Table(True, (3, 4, 23, 3), groups=64, width=4),
    "seresnet50": Table(True, (3, 4, 6, 3), squeeze=16),
}


class Block(nn.Module):
    """relu(branch(x) + shortcut(x)), where the branch is the subclass's; relu(branch(x)) in a plain network."""

    downsample: nn.Module | None
    shortcut: bool = True
    drop_path: float

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """What the branch ends with: its scale starts at 0, so that the variance does not grow with the depth."""
        raise NotImplementedError

    def branch(self, input: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        """activation(f(input) + residual)."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        if not self.shortcut:
            return self.branch(input, None, "relu")
        shortcut = input if self.downsample is None else self.downsample(input)
        return add_residual(self.branch, input, shortcut, "relu", self.drop_path if self.training else 0.0)


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    def __init__(self, c_in: int, maps: int, stride: int, table: Table, stride_in: str, drop_path: float) -> None:
        super().__init__()
        self.conv1 = Conv2d(c_in, maps, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.conv2 = Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.shortcut = table.shortcut
        self.downsample = downsample(c_in, maps, stride) if table.shortcut else None
        self.drop_path = drop_path

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """As :class:`Block`."""
        return self.bn2

    def branch(self, input: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        """activation(f(input) + residual)."""
        x = conv_bn_act(self.conv1, self.bn1, input, "relu")
        return conv_bn_act(self.conv2, self.bn2, x, activation, residual)


class Bottleneck(Block):
    """1x1 to few maps, 3x3, 1x1 to four times the maps of the stage; then squeeze and excitation, if there is any."""

    def __init__(self, c_in: int, maps: int, stride: int, table: Table, stride_in: str, drop_path: float) -> None:
        super().__init__()
        width = maps * table.width // 64 * table.groups
        c_out = 4 * maps
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = Conv2d(c_in, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, second, 1, groups=table.groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.se = SqueezeExcitation(c_out, c_out // table.squeeze) if table.squeeze else None
        self.downsample = downsample(c_in, c_out, stride)
        self.drop_path = drop_path

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """As :class:`Block`."""
        return self.bn3

    def branch(self, input: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        """activation(f(input) + residual)."""
        x = conv_bn_act(self.conv1, self.bn1, input, "relu")
        x = conv_bn_act(self.conv2, self.bn2, x, "relu")
        if self.se is None:
            return conv_bn_act(self.conv3, self.bn3, x, activation, residual)
        y = self.se(conv_bn_act(self.conv3, self.bn3, x))
        return activate(y if residual is None else y + residual, activation, 0.0)


def downsample(c_in: int, c_out: int, stride: int) -> Layers | None:
    """The shortcut of a block that changes the size: a 1x1 convolution and batch normalisation."""
    return conv_bn(c_in, c_out, 1, stride, act=None) if stride > 1 or c_in != c_out else None


class ResNet(Network):
    """A stem of 7x7 and a pool, four stages of blocks, global average pooling and one linear layer."""

    def __init__(self, table: Table, num_classes: int, in_channels: int, stride_in: str, drop_path: float) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = MaxPool2d(3, 2, 1)
        block = Bottleneck if table.bottleneck else BasicBlock
        rates = drop_path_rates(drop_path, sum(table.blocks))
        c_in = 64
        for stage, (maps, count) in enumerate(zip(MAPS, table.blocks, strict=True)):
            blocks = []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(c_in, maps, stride, table, stride_in, rates.pop(0)))
                c_in = 4 * maps if table.bottleneck else maps
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = GlobalAvgPool2d()
        self.fc = nn.Linear(c_in, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        x = self.maxpool(conv_bn_act(self.conv1, self.bn1, images, "relu"))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def initialise_residual(model: nn.Module, classifier: nn.Module, zero_init_residual: bool) -> None:
    """As ``initialise``; with ``zero_init_residual`` the last scale of each :class:`Block` is 0."""
    initialise(model, classifier)
    if zero_init_residual:
        for block in model.modules():
            if isinstance(block, Block) and block.shortcut:
                nn.init.zeros_(block.last_bn.weight)


HE = "He et al., arXiv 1512.03385"


@register("plain18", "plain34", year=2015, paper=HE, smallest=1)
def plain(name: str, num_classes: int, in_channels: int) -> ResNet:
    """The network of 18 or 34 layers without shortcuts."""
    model = ResNet(TABLES[name], num_classes, in_channels, "3x3", drop_path=0.0)
    initialise(model, model.fc)
    return model


@register("resnet18", "resnet34", year=2015, paper=HE, smallest=1, torchvision=True)
def resnet(
    name: str, num_classes: int, in_channels: int, *, drop_path: float = 0.0, zero_init_residual: bool = True
) -> ResNet:
    """A residual network of basic blocks."""
    model = ResNet(TABLES[name], num_classes, in_channels, "3x3", drop_path)
    initialise_residual(model, model.fc, zero_init_residual)
    return model


@register("resnet50", "resnet101", "resnet152", year=2015, paper=HE, smallest=1, torchvision=True)
@register(
    "wide_resnet50_2",
    "wide_resnet101_2",
    year=2016,
    paper="Zagoruyko and Komodakis, arXiv 1605.07146",
    smallest=1,
    torchvision=True,
)
@register(
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    year=2016,
    paper="Xie et al., arXiv 1611.05431",
    smallest=1,
    torchvision=True,
)
@register("resnext101_32x4d", year=2016, paper="Xie et al., arXiv 1611.05431", smallest=1)
@register("seresnet50", year=2017, paper="Hu et al., arXiv 1709.01507", smallest=1)
def bottleneck_resnet(
    name: str,
    num_classes: int,
    in_channels: int,
    *,
    stride_in: str = "3x3",
    drop_path: float = 0.0,
    zero_init_residual: bool = True,
) -> ResNet:
    """A residual network of bottlenecks, the stride in their first 1x1 convolution (as published) or in their 3x3."""
    if stride_in not in ("1x1", "3x3"):
        raise ValueError(f"stride_in={stride_in!r}: it is 1x1 or 3x3")
    model = ResNet(TABLES[name], num_classes, in_channels, stride_in, drop_path)
    initialise_residual(model, model.fc, zero_init_residual)
    return model
