"""ShuffleNet (Zhang, Zhou, Lin and Sun, arXiv 1707.01083): grouped 1x1, channel shuffle, depthwise 3x3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnkern.models._blocks import AvgPool2d, Layers, MaxPool2d, add_residual, conv_bn, drop_path_rates, initialise
from cnnkern.models._network import PooledNetwork
from cnnkern.models._registry import register
from cnnkern.nn import ChannelShuffle

STEM = 24
UNITS = (4, 8, 4)  # of the three stages; each halves the resolution and has twice the maps of the one before
MAPS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # of the first stage, by the groups of the 1x1 convolutions


class Unit(nn.Module):
    """relu(branch(x) + x), or with stride 2 the branch beside the pooled input.

    The branch is a grouped 1x1 to a quarter of the maps, channel shuffle, a depthwise 3x3 and a grouped 1x1.
    """

    def __init__(self, c_in: int, c_out: int, groups: int, stride: int, drop_path: float) -> None:
        super().__init__()
        width = c_out // 4
        first_groups = 1 if c_in == STEM else groups  # the stem's maps are too few to group
        self.branch = Layers(
            conv_bn(c_in, width, 1, groups=first_groups),
            ChannelShuffle(groups),
            conv_bn(width, width, 3, stride, act=None, groups=width),
            conv_bn(width, c_out - c_in if stride > 1 else c_out, 1, act=None, groups=groups),
        )
        self.pool = AvgPool2d(3, 2, 1) if stride > 1 else None
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        if self.pool is None:
            return add_residual(self.branch, input, input, "relu", self.drop_path if self.training else 0.0)
        return torch.relu(torch.cat([self.pool(input), self.branch(input)], 1))


def features(in_channels: int, groups: int, width: float, drop_path: float) -> tuple[nn.Sequential, int]:
    """A 3x3 stem and a pool, and three stages of units; and the maps that the last gives."""
    layers: list[nn.Module] = [conv_bn(in_channels, STEM, 3, 2), MaxPool2d(3, 2, 1)]
    rates = drop_path_rates(drop_path, sum(UNITS))
    c_in = STEM
    for stage, count in enumerate(UNITS):
        c_out = int(MAPS[groups] * width) << stage
        for number in range(count):
            layers.append(Unit(c_in, c_out, groups, 2 if number == 0 else 1, rates.pop(0)))
            c_in = c_out
    return nn.Sequential(*layers), c_in


@register("shufflenet_v1", year=2017, paper="Zhang et al., arXiv 1707.01083", smallest=1)
def shufflenet_v1(
    name: str, num_classes: int, in_channels: int, *, groups: int = 3, width: float = 1.0, drop_path: float = 0.0
) -> PooledNetwork:
    """ShuffleNet; ``groups`` is 1, 2, 3, 4 or 8, ``width`` multiplies the maps of all stages."""
    if groups not in MAPS:
        raise ValueError(f"groups={groups}: it is one of {', '.join(map(str, MAPS))}")
    model = PooledNetwork(*features(in_channels, groups, width, drop_path), num_classes)
    initialise(model, model.fc)
    return model
