"""Network in Network (Lin, Chen and Yan, arXiv 1312.4400)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from cnnkern.models._blocks import AvgPool2d, GlobalAvgPool2d, Layers, MaxPool2d, conv_relu, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register

# An mlpconv: filter size, stride, padding of its convolution, the maps of it and of the two 1x1 convolutions after it,
# and the 3x3 pool of stride 2 after them. The last mlpconv has the classes for its third.
TABLES = {
    "nin": [
        (11, 4, 0, (96, 96, 96), "max"),
        (5, 1, 2, (256, 256, 256), "max"),
        (3, 1, 1, (384, 384, 384), "max"),
        (3, 1, 1, (1024, 1024), ""),
    ],
    "nin_cifar": [
        (5, 1, 2, (192, 160, 96), "max"),
        (5, 1, 2, (192, 192, 192), "avg"),
        (3, 1, 1, (192, 192), ""),
    ],
}


POOLS: dict[str, Callable[..., nn.Module]] = {"max": MaxPool2d, "avg": AvgPool2d}


class NiN(Network):
    """Mlpconvs with pools and dropout between them, and the mean over the pixels of a map for each class."""

    def __init__(self, name: str, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        features: list[nn.Module] = []
        for kernel, stride, padding, maps, pool in TABLES[name]:
            if features:
                features.append(nn.Dropout(dropout))
            features += conv_relu(in_channels, maps[0], kernel, stride, padding)
            for c_in, c_out in pairwise(maps):
                features += conv_relu(c_in, c_out, 1)
            features += [POOLS[pool](3, 2, ceil_mode=True)] if pool else []
            in_channels = maps[-1]
        self.features = Layers(*features)
        self.classifier = Layers(*conv_relu(in_channels, num_classes, 1))
        self.avgpool = GlobalAvgPool2d()

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.avgpool(self.classifier(self.features(images))).flatten(1)


@register("nin", year=2013, paper="Lin et al., arXiv 1312.4400", smallest=39)
@register(
    "nin_cifar",
    year=2013,
    paper="Lin et al., arXiv 1312.4400",
    input_size=(3, 32, 32),
    smallest=4,
    num_classes=10,
)
def nin(name: str, num_classes: int, in_channels: int, *, dropout: float = 0.5) -> NiN:
    """Network in Network for ImageNet (four mlpconvs) or CIFAR-10 (three)."""
    model = NiN(name, num_classes, in_channels, dropout)
    initialise(model, model.classifier[0])
    return model
