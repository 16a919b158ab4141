"""EfficientNet-B0 (Tan and Le, arXiv 1905.11946): searched inverted residuals with squeeze and excitation, SiLU."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d, SqueezeExcitation, conv_bn, drop_path_rates, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.models.mobilenet_v3 import InvertedResidual

STEM, HEAD = 32, 1280
# Expansion, filter size, maps, blocks, stride of the first block.
TABLE = [
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
]


class EfficientNet(Network):
    """A 3x3 stem, the table, a 1x1 convolution, global average pooling, dropout and one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, sum(count for *_, count, _ in TABLE))
        features: list[nn.Module] = [conv_bn(in_channels, STEM, 3, 2, nn.SiLU)]
        c_in = STEM
        for expansion, kernel, c_out, count, stride in TABLE:
            stage = []
            for number in range(count):
                width, step = expansion * c_in, stride if number == 0 else 1
                squeeze = SqueezeExcitation(width, c_in // 4, "silu")
                rest = (kernel, step, nn.SiLU, squeeze, rates.pop(0))
                stage.append(InvertedResidual(c_in, width, c_out, *rest))
                c_in = c_out
            features.append(nn.Sequential(*stage))
        self.features = nn.Sequential(*features, conv_bn(c_in, HEAD, 1, act=nn.SiLU))
        self.avgpool = GlobalAvgPool2d()
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(HEAD, num_classes))

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@register("efficientnet_b0", year=2019, paper="Tan and Le, arXiv 1905.11946", smallest=1, torchvision=True)
def efficientnet(
    name: str, num_classes: int, in_channels: int, *, dropout: float = 0.2, drop_path: float = 0.2
) -> EfficientNet:
    """EfficientNet-B0."""
    model = EfficientNet(num_classes, in_channels, dropout, drop_path)
    initialise(model, model.classifier[-1])
    return model
