"""The networks for CIFAR's 32x32 pixels of He et al. (arXiv 1512.03385, section 4.2), residual and plain."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d, drop_path_rates, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.models.resnet import HE, Block, initialise_residual
from cnnkern.nn import Conv2d, conv_bn_act

MAPS = (16, 32, 64)  # of the three stages; each but the first halves the resolution
BLOCKS = {"plain20": 3, "plain56": 9, "resnet20": 3, "resnet56": 9, "resnet110": 18}  # of each stage


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, and maps of zeros for those that there are not: a shortcut without parameters."""

    def __init__(self, more_maps: int, stride: int) -> None:
        super().__init__()
        self.more_maps = more_maps
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        """(N, C + more_maps, P, Q) of (N, C, H, W)."""
        return F.pad(input[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more_maps))


class CifarBlock(Block):
    """Two 3x3 convolutions."""

    def __init__(self, c_in: int, maps: int, stride: int, shortcut: bool, drop_path: float) -> None:
        super().__init__()
        self.conv1 = Conv2d(c_in, maps, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.conv2 = Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.downsample = PaddedShortcut(maps - c_in, stride) if shortcut and stride > 1 else None
        self.shortcut = shortcut
        self.drop_path = drop_path

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """As :class:`Block`."""
        return self.bn2

    def branch(self, input: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        """activation(f(input) + residual)."""
        x = conv_bn_act(self.conv1, self.bn1, input, "relu")
        return conv_bn_act(self.conv2, self.bn2, x, activation, residual)


class CifarResNet(Network):
    """A 3x3 convolution, three stages of blocks, global average pooling and one linear layer."""

    def __init__(self, blocks: int, shortcut: bool, num_classes: int, in_channels: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, MAPS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(MAPS[0])
        rates = drop_path_rates(drop_path, blocks * len(MAPS))
        c_in = MAPS[0]
        stages: list[nn.Module] = []
        for maps in MAPS:
            for number in range(blocks):
                stride = 2 if maps > c_in and number == 0 else 1
                stages.append(CifarBlock(c_in, maps, stride, shortcut, rates.pop(0)))
                c_in = maps
        self.blocks = nn.Sequential(*stages)
        self.avgpool = GlobalAvgPool2d()
        self.fc = nn.Linear(c_in, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        x = self.blocks(conv_bn_act(self.conv1, self.bn1, images, "relu"))
        return self.fc(self.avgpool(x).flatten(1))


@register("plain20", "plain56", year=2015, paper=HE, input_size=(3, 32, 32), smallest=1, num_classes=10)
def plain_cifar(name: str, num_classes: int, in_channels: int) -> CifarResNet:
    """The network of 20 or 56 layers without shortcuts."""
    model = CifarResNet(BLOCKS[name], False, num_classes, in_channels, drop_path=0.0)
    initialise(model, model.fc)
    return model


@register("resnet20", "resnet56", "resnet110", year=2015, paper=HE, input_size=(3, 32, 32), smallest=1, num_classes=10)
def resnet_cifar(
    name: str, num_classes: int, in_channels: int, *, drop_path: float = 0.0, zero_init_residual: bool = True
) -> CifarResNet:
    """The residual network of 20, 56 or 110 layers."""
    model = CifarResNet(BLOCKS[name], True, num_classes, in_channels, drop_path)
    initialise_residual(model, model.fc, zero_init_residual)
    return model
