"""LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, Proceedings of the IEEE 86, 1998)."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkern.models._blocks import Layers, MaxPool2d, conv_relu, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register

CONVS = [(6, 5), (16, 5)]  # maps and filter size, each before a 2x2 pool
HIDDEN = [120, 84]


class LeNet(Network):
    """CONV-POOL-CONV-POOL-FC-FC and the classifier, with ReLU and max-pools; 32x32 pixels give 5x5 before the first FC.

    Images of other sizes are pooled to those 5x5.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for maps, kernel in CONVS:
            layers += [*conv_relu(in_channels, maps, kernel, padding=0), MaxPool2d(2)]
            in_channels = maps
        self.features = Layers(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(5)
        hidden: list[nn.Module] = []
        features = in_channels * 25
        for width in HIDDEN:
            hidden += [nn.Linear(features, width), nn.ReLU(inplace=True)]
            features = width
        self.classifier = nn.Sequential(*hidden, nn.Linear(features, num_classes))

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@register(
    "lenet5", year=1998, paper="LeCun et al., Proc. IEEE 86(11)", input_size=(1, 32, 32), smallest=16, num_classes=10
)
def lenet5(name: str, num_classes: int, in_channels: int) -> LeNet:
    """LeNet-5 for 32x32 pixels in one channel."""
    model = LeNet(num_classes, in_channels)
    initialise(model, model.classifier[-1])
    return model
