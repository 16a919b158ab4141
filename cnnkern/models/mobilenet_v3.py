"""MobileNetV3 (Howard et al., arXiv 1905.02244): searched inverted residuals with squeeze and excitation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from cnnkern.models._blocks import (
    GlobalAvgPool2d,
    Layers,
    SqueezeExcitation,
    add_residual,
    conv_bn,
    drop_path_rates,
    initialise,
    rounded,
)
from cnnkern.models._network import Network
from cnnkern.models._registry import register

STEM = 16
LAST = {"mobilenet_v3_large": 1280, "mobilenet_v3_small": 1024}  # of the hidden layer before the scores
NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
# Filter size, expanded maps, maps, squeeze and excitation, activation, stride.
Row = tuple[int, int, int, bool, Callable[[], nn.Module], int]
RE, HS = nn.ReLU, nn.Hardswish
TABLES: dict[str, list[Row]] = {
    "mobilenet_v3_large": [
        (3, 16, 16, False, RE, 1),
        (3, 64, 24, False, RE, 2),
        (3, 72, 24, False, RE, 1),
        (5, 72, 40, True, RE, 2),
        (5, 120, 40, True, RE, 1),
        (5, 120, 40, True, RE, 1),
        (3, 240, 80, False, HS, 2),
        (3, 200, 80, False, HS, 1),
        (3, 184, 80, False, HS, 1),
        (3, 184, 80, False, HS, 1),
        (3, 480, 112, True, HS, 1),
        (3, 672, 112, True, HS, 1),
        (5, 672, 160, True, HS, 2),
        (5, 960, 160, True, HS, 1),
        (5, 960, 160, True, HS, 1),
    ],
    "mobilenet_v3_small": [
        (3, 16, 16, True, RE, 2),
        (3, 72, 24, False, RE, 2),
        (3, 88, 24, False, RE, 1),
        (5, 96, 40, True, HS, 2),
        (5, 240, 40, True, HS, 1),
        (5, 240, 40, True, HS, 1),
        (5, 120, 48, True, HS, 1),
        (5, 144, 48, True, HS, 1),
        (5, 288, 96, True, HS, 2),
        (5, 576, 96, True, HS, 1),
        (5, 576, 96, True, HS, 1),
    ],
}


class InvertedResidual(nn.Module):
    """1x1 to ``width`` maps, depthwise, squeeze and excitation, linear 1x1; with a shortcut where the size stays.

    ``norm`` makes the batch normalisation of so many maps; ``squeeze`` is a module or None.
    """

    def __init__(
        self,
        c_in: int,
        width: int,
        c_out: int,
        kernel: int,
        stride: int,
        act: Callable[[], nn.Module],
        squeeze: nn.Module | None,
        drop_path: float,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        expand = [conv_bn(c_in, width, 1, act=act, norm=norm)] if width != c_in else []
        depthwise = conv_bn(width, width, kernel, stride, act, groups=width, norm=norm)
        gate = [squeeze] if squeeze is not None else []
        self.block = Layers(*expand, depthwise, *gate, conv_bn(width, c_out, 1, act=None, norm=norm))
        self.shortcut = stride == 1 and c_in == c_out
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        if not self.shortcut:
            return self.block(input)
        return add_residual(self.block, input, input, drop_path=self.drop_path if self.training else 0.0)


class MobileNetV3(Network):
    """A 3x3 stem, the table, a 1x1 convolution, global average pooling and two linear layers."""

    def __init__(
        self, name: str, num_classes: int, in_channels: int, width: float, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, len(TABLES[name]))
        c_in = rounded(STEM * width)
        layers: list[nn.Module] = [conv_bn(in_channels, c_in, 3, 2, HS, norm=NORM)]
        for (kernel, expanded, maps, squeezes, act, stride), rate in zip(TABLES[name], rates, strict=True):
            inner, c_out = rounded(expanded * width), rounded(maps * width)
            squeeze = SqueezeExcitation(inner, rounded(inner // 4), gate=nn.Hardsigmoid) if squeezes else None
            layers.append(InvertedResidual(c_in, inner, c_out, kernel, stride, act, squeeze, rate, NORM))
            c_in = c_out
        self.features = nn.Sequential(*layers, conv_bn(c_in, 6 * c_in, 1, act=HS, norm=NORM))
        self.avgpool = GlobalAvgPool2d()
        hidden = rounded(LAST[name] * width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * c_in, hidden), nn.Hardswish(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
        )

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@register(*TABLES, year=2019, paper="Howard et al., arXiv 1905.02244", smallest=1, torchvision=True)
def mobilenet_v3(
    name: str,
    num_classes: int,
    in_channels: int,
    *,
    width: float = 1.0,
    dropout: float = 0.2,
    drop_path: float = 0.0,
) -> MobileNetV3:
    """MobileNetV3, large or small; ``width`` multiplies all maps."""
    model = MobileNetV3(name, num_classes, in_channels, width, dropout, drop_path)
    initialise(model, model.classifier[-1])
    return model
