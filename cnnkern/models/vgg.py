"""VGG (Simonyan and Zisserman, arXiv 1409.1556): 3x3 filters only, twice the maps after each 2x2 pool."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkern.models._blocks import Layers, MaxPool2d, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d

MAPS = (64, 128, 256, 512, 512)  # of the five stages
CONVS = {  # of each stage; configurations A, B, D and E
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(Network):
    """Five stages, then three fully connected layers with dropout, the first over 7x7 pixels."""

    def __init__(
        self, convs: tuple[int, ...], batch_norm: bool, num_classes: int, in_channels: int, dropout: float
    ) -> None:
        super().__init__()
        features: list[nn.Module] = []
        for maps, count in zip(MAPS, convs, strict=True):
            for _ in range(count):
                norm = [nn.BatchNorm2d(maps)] if batch_norm else []
                features += [Conv2d(in_channels, maps, 3, padding=1), *norm, nn.ReLU(inplace=True)]
                in_channels = maps
            features.append(MaxPool2d(2))
        self.features = Layers(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(in_channels * 49, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@register(
    *CONVS,
    *(f"{name}_bn" for name in CONVS),
    year=2014,
    paper="Simonyan and Zisserman, arXiv 1409.1556",
    smallest=32,
    torchvision=True,
)
def vgg(name: str, num_classes: int, in_channels: int, *, dropout: float = 0.5) -> VGG:
    """VGG of 11, 13, 16 or 19 layers with weights, with or without batch normalisation."""
    plain = name.removesuffix("_bn")
    model = VGG(CONVS[plain], name != plain, num_classes, in_channels, dropout)
    initialise(model, model.classifier[-1])
    return model
