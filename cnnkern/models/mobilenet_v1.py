"""MobileNet (Howard et al., arXiv 1704.04861): depthwise separable convolutions, with a width multiplier."""

from __future__ import annotations

from torch import nn

from cnnkern.models._blocks import conv_bn, initialise, rounded
from cnnkern.models._network import PooledNetwork
from cnnkern.models._registry import register

STEM = 32
# Maps and stride of each depthwise 3x3 and the 1x1 after it.
TABLE = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def features(in_channels: int, width: float) -> tuple[nn.Sequential, int]:
    """A 3x3 stem and the table, and the maps that the last convolution gives."""
    c_in = rounded(STEM * width)
    layers: list[nn.Module] = [conv_bn(in_channels, c_in, 3, 2)]
    for maps, stride in TABLE:
        c_out = rounded(maps * width)
        layers += [conv_bn(c_in, c_in, 3, stride, groups=c_in), conv_bn(c_in, c_out, 1)]
        c_in = c_out
    return nn.Sequential(*layers), c_in


@register("mobilenet_v1", year=2017, paper="Howard et al., arXiv 1704.04861", smallest=1)
def mobilenet_v1(name: str, num_classes: int, in_channels: int, *, width: float = 1.0) -> PooledNetwork:
    """MobileNet; ``width`` multiplies all maps."""
    model = PooledNetwork(*features(in_channels, width), num_classes)
    initialise(model, model.fc)
    return model
