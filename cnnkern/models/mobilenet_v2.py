"""MobileNetV2 (Sandler et al., arXiv 1801.04381): inverted residuals with linear bottlenecks."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkern.models._blocks import (
    GlobalAvgPool2d,
    Layers,
    add_residual,
    conv_bn,
    drop_path_rates,
    initialise,
    rounded,
)
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d

STEM, HEAD = 32, 1280
# Expansion, maps, blocks, stride of the first block.
TABLE = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


class InvertedResidual(nn.Module):
    """1x1 to many maps, depthwise 3x3, linear 1x1 to few; with a shortcut where the size stays."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        width = expansion * c_in
        expand = [conv_bn(c_in, width, 1, act=nn.ReLU6)] if expansion > 1 else []
        depthwise = conv_bn(width, width, 3, stride, nn.ReLU6, groups=width)
        self.conv = Layers(*expand, depthwise, Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
        self.shortcut = stride == 1 and c_in == c_out
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        if not self.shortcut:
            return self.conv(input)
        return add_residual(self.conv, input, input, drop_path=self.drop_path if self.training else 0.0)


class MobileNetV2(Network):
    """A 3x3 stem, the table, a 1x1 convolution, global average pooling, dropout and one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, width: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, sum(count for _, _, count, _ in TABLE))
        c_in = rounded(STEM * width)
        layers: list[nn.Module] = [conv_bn(in_channels, c_in, 3, 2, nn.ReLU6)]
        for expansion, maps, count, stride in TABLE:
            c_out = rounded(maps * width)
            for number in range(count):
                step = stride if number == 0 else 1
                layers.append(InvertedResidual(c_in, c_out, step, expansion, rates.pop(0)))
                c_in = c_out
        last = rounded(HEAD * max(1.0, width))
        self.features = nn.Sequential(*layers, conv_bn(c_in, last, 1, act=nn.ReLU6))
        self.avgpool = GlobalAvgPool2d()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@register("mobilenet_v2", year=2018, paper="Sandler et al., arXiv 1801.04381", smallest=1, torchvision=True)
def mobilenet_v2(
    name: str,
    num_classes: int,
    in_channels: int,
    *,
    width: float = 1.0,
    dropout: float = 0.2,
    drop_path: float = 0.0,
) -> MobileNetV2:
    """MobileNetV2; ``width`` multiplies all maps."""
    model = MobileNetV2(num_classes, in_channels, width, dropout, drop_path)
    initialise(model, model.classifier[-1])
    return model
