"""RegNetY-400MF (Radosavovic et al., arXiv 2003.13678): bottlenecks with squeeze and excitation, a designed space."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from cnnkern.models._blocks import (
    GlobalAvgPool2d,
    Layers,
    SqueezeExcitation,
    add_residual,
    conv_bn,
    drop_path_rates,
    initialise,
    zero_last_scale,
)
from cnnkern.models._network import Network
from cnnkern.models._registry import register

STEM = 32
GROUP_WIDTH = 8
# Maps and blocks of each stage; each halves the resolution.
TABLE = [(48, 1), (104, 3), (208, 6), (440, 6)]


class Block(nn.Module):
    """relu(f(x) + shortcut(x)): 1x1, grouped 3x3, squeeze and excitation to a quarter of the input's maps, 1x1."""

    def __init__(self, c_in: int, maps: int, stride: int, drop_path: float) -> None:
        super().__init__()
        resized = stride > 1 or c_in != maps
        self.proj = conv_bn(c_in, maps, 1, stride, act=None) if resized else None
        layers = OrderedDict(
            a=conv_bn(c_in, maps, 1),
            b=conv_bn(maps, maps, 3, stride, groups=maps // GROUP_WIDTH),
            se=SqueezeExcitation(maps, round(c_in / 4)),
            c=conv_bn(maps, maps, 1, act=None),
        )
        self.f = Layers(layers)
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        shortcut = input if self.proj is None else self.proj(input)
        return add_residual(self.f, input, shortcut, "relu", self.drop_path if self.training else 0.0)


class RegNet(Network):
    """A 3x3 stem, the table, global average pooling and one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, drop_path: float) -> None:
        super().__init__()
        self.stem = conv_bn(in_channels, STEM, 3, 2)
        rates = drop_path_rates(drop_path, sum(count for _, count in TABLE))
        c_in = STEM
        self.trunk_output = nn.Sequential()
        for stage, (maps, count) in enumerate(TABLE, 1):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range(count):
                blocks[f"block{stage}-{number}"] = Block(c_in, maps, 2 if number == 0 else 1, rates.pop(0))
                c_in = maps
            self.trunk_output.add_module(f"block{stage}", nn.Sequential(blocks))
        self.avgpool = GlobalAvgPool2d()
        self.fc = nn.Linear(c_in, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.fc(self.avgpool(self.trunk_output(self.stem(images))).flatten(1))


@register("regnet_y_400mf", year=2020, paper="Radosavovic et al., arXiv 2003.13678", smallest=1, torchvision=True)
def regnet(
    name: str, num_classes: int, in_channels: int, *, drop_path: float = 0.0, zero_init_residual: bool = True
) -> RegNet:
    """RegNetY of 400 million multiply-adds."""
    model = RegNet(num_classes, in_channels, drop_path)
    initialise(model, model.fc)
    if zero_init_residual:
        for block in model.modules():
            if isinstance(block, Block):
                zero_last_scale(block.f)
    return model
