"""AlexNet (Krizhevsky, Sutskever and Hinton 2012) in three forms, and ZFNet (Zeiler and Fergus, arXiv 1311.2901)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkern.models._blocks import Layers, MaxPool2d, conv_relu, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register

# Maps, filter size, stride, padding, groups; "pool" is 3x3 of stride 2, "norm" local response normalisation, "split
# norm" the same within each half of the maps.
Row = tuple[int, int, int, int, int] | str


def of_2012(norm: str, groups: int) -> list[Row]:
    """As trained in 2012, all on one processor, or half of the maps on each of two: conv1 and conv3 see all."""
    first, second = (96, 11, 4, 0, 1), (256, 5, 1, 2, groups)
    rest = [(384, 3, 1, 1, 1), (384, 3, 1, 1, groups), (256, 3, 1, 1, groups)]
    return [first, "pool", norm, second, "pool", norm, *rest, "pool"]


TABLES: dict[str, list[Row]] = {
    # One tower, 1404.5997: the table of the lectures.
    "alexnet": [
        (64, 11, 4, 2, 1),
        "pool",
        (192, 5, 1, 2, 1),
        "pool",
        (384, 3, 1, 1, 1),
        (256, 3, 1, 1, 1),
        (256, 3, 1, 1, 1),
        "pool",
    ],
    "alexnet_one_tower": of_2012("norm", groups=1),
    "alexnet_two_gpu": of_2012("split norm", groups=2),
    "zfnet": [
        (96, 7, 2, 1, 1),
        "padded pool",
        "norm",
        (256, 5, 2, 0, 1),
        "padded pool",
        "norm",
        (512, 3, 1, 1, 1),
        (1024, 3, 1, 1, 1),
        (512, 3, 1, 1, 1),
        "pool",
    ],
}


class GroupedLocalResponseNorm(nn.LocalResponseNorm):
    """nn.LocalResponseNorm within each of ``groups`` runs of maps, as where each GPU normalises its own."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, groups: int = 2) -> None:
        super().__init__(size, alpha, beta, k)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) of (N, C, H, W)."""
        parts = input.chunk(self.groups, dim=1)
        return torch.cat([F.local_response_norm(part, self.size, self.alpha, self.beta, self.k) for part in parts], 1)


LRN = (5, 5e-4, 0.75, 2.0)  # maps, alpha, beta, k; torch divides alpha by the maps, the paper does not
NAMED: dict[str, Callable[[], nn.Module]] = {
    "pool": lambda: MaxPool2d(3, 2),
    "padded pool": lambda: MaxPool2d(3, 2, 1),
    "norm": lambda: nn.LocalResponseNorm(*LRN),
    "split norm": lambda: GroupedLocalResponseNorm(*LRN),
}


def features(table: list[Row], c_in: int) -> tuple[Layers, int]:
    """The layers of a table, and the maps that the last convolution gives."""
    layers: list[nn.Module] = []
    for row in table:
        if isinstance(row, tuple):
            layers += conv_relu(c_in, *row)
            c_in = row[0]
        else:
            layers.append(NAMED[row]())
    return Layers(*layers), c_in


class AlexNet(Network):
    """Convolutions by a table, then three fully connected layers with dropout, the first over 6x6 pixels."""

    def __init__(self, table: list[Row], num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.features, maps = features(table, in_channels)
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(maps * 36, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


@register("alexnet", year=2012, paper="Krizhevsky, arXiv 1404.5997", smallest=63, torchvision=True)
@register(
    "alexnet_one_tower",
    "alexnet_two_gpu",
    year=2012,
    paper="Krizhevsky et al., NIPS 2012",
    input_size=(3, 227, 227),
    smallest=67,
)
@register("zfnet", year=2013, paper="Zeiler and Fergus, arXiv 1311.2901", smallest=53)
def alexnet(name: str, num_classes: int, in_channels: int, *, dropout: float = 0.5) -> AlexNet:
    """AlexNet as the table has it, in one tower or as on two GPUs; ZFNet."""
    model = AlexNet(TABLES[name], num_classes, in_channels, dropout)
    initialise(model, model.classifier[-1])
    return model
