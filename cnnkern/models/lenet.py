"""LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, Proceedings of the IEEE 86, 1998)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from cnnkern.models._blocks import Layers, MaxPool2d, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d

CONVS = [(6, 5), (16, 5)]  # maps and filter size, each before a 2x2 pool
HIDDEN = [120, 84]


class Maxout(nn.Module):
    """The greatest of each ``pieces`` maps or features in a row (Goodfellow et al., arXiv 1302.4389)."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, input: Tensor) -> Tensor:
        """(N, C / pieces, ...) of (N, C, ...)."""
        return input.unflatten(1, (-1, self.pieces)).amax(2)


PIECES = 2  # of maxout: so many times the maps and features before it
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),
    "elu": nn.ELU,
    "maxout": partial(Maxout, PIECES),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class LeNet(Network):
    """CONV-POOL-CONV-POOL-FC-FC and the classifier, with max-pools; 32x32 pixels give 5x5 before the first FC.

    Images of other sizes are pooled to those 5x5.
    """

    def __init__(self, num_classes: int, in_channels: int, activation: str) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]
        pieces = PIECES if activation == "maxout" else 1
        layers: list[nn.Module] = []
        for maps, kernel in CONVS:
            layers += [Conv2d(in_channels, pieces * maps, kernel), act(), MaxPool2d(2)]
            in_channels = maps
        self.features = Layers(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(5)
        hidden: list[nn.Module] = []
        features = in_channels * 25
        for width in HIDDEN:
            hidden += [nn.Linear(features, pieces * width), act()]
            features = width
        self.classifier = nn.Sequential(*hidden, nn.Linear(features, num_classes))

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@register(
    "lenet5", year=1998, paper="LeCun et al., Proc. IEEE 86(11)", input_size=(1, 32, 32), smallest=16, num_classes=10
)
def lenet5(name: str, num_classes: int, in_channels: int, *, activation: str = "relu") -> LeNet:
    """LeNet-5 for 32x32 pixels in one channel; ``activation`` is one of ACTIVATIONS, tanh in the paper."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: it is one of {', '.join(ACTIVATIONS)}")
    model = LeNet(num_classes, in_channels, activation)
    initialise(model, model.classifier[-1])
    return model
