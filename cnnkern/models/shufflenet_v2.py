"""ShuffleNetV2 (Ma, Zhang, Zheng and Sun, arXiv 1807.11164): channel split, no grouped 1x1, equal widths."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d, Layers, MaxPool2d, conv_bn, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register

STEM = 24
UNITS = (4, 8, 4)  # of the three stages; each halves the resolution
TABLES = {  # maps of the three stages and of the last 1x1 convolution
    "shufflenet_v2_x0_5": (48, 96, 192, 1024),
    "shufflenet_v2_x1_0": (116, 232, 464, 1024),
    "shufflenet_v2_x1_5": (176, 352, 704, 1024),
    "shufflenet_v2_x2_0": (244, 488, 976, 2048),
}


class Unit(nn.Module):
    """One half of the maps as it is, the other through 1x1, depthwise 3x3 and 1x1; then both shuffled.

    With stride 2, both are of the whole input, the first through a depthwise 3x3 and 1x1.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        c_in = c_in if stride > 1 else half
        depthwise = conv_bn(c_in, c_in, 3, stride, act=None, groups=c_in)
        self.branch1 = Layers(*depthwise, *conv_bn(c_in, half, 1)) if stride > 1 else None
        middle = conv_bn(half, half, 3, stride, act=None, groups=half)
        self.branch2 = Layers(*conv_bn(c_in, half, 1), *middle, *conv_bn(half, half, 1))

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        if self.branch1 is None:
            left, right = input.chunk(2, 1)
        else:
            left, right = self.branch1(input), input
        return self.branch2(right, beside=left, shuffle=2)


class ShuffleNetV2(Network):
    """A 3x3 stem and a pool, three stages of units, a 1x1 convolution, global average pooling and one linear layer."""

    def __init__(self, table: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        *stages, last = table
        self.conv1 = conv_bn(in_channels, STEM, 3, 2)
        self.maxpool = MaxPool2d(3, 2, 1)
        c_in = STEM
        for number, (c_out, count) in enumerate(zip(stages, UNITS, strict=True), 2):
            units = [Unit(c_in, c_out, 2), *(Unit(c_out, c_out, 1) for _ in range(count - 1))]
            self.add_module(f"stage{number}", nn.Sequential(*units))
            c_in = c_out
        self.conv5 = conv_bn(c_in, last, 1)
        self.avgpool = GlobalAvgPool2d()
        self.fc = nn.Linear(last, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        x = self.maxpool(self.conv1(images))
        for stage in range(2, 5):
            x = self.get_submodule(f"stage{stage}")(x)
        return self.fc(self.avgpool(self.conv5(x)).flatten(1))


@register(*TABLES, year=2018, paper="Ma et al., arXiv 1807.11164", smallest=1, torchvision=True)
def shufflenet_v2(name: str, num_classes: int, in_channels: int) -> ShuffleNetV2:
    """ShuffleNetV2 of 0.5, 1, 1.5 or 2 times the maps."""
    model = ShuffleNetV2(TABLES[name], num_classes, in_channels)
    initialise(model, model.fc)
    return model
