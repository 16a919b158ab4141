"""AlexNet (Krizhevsky, Sutskever and Hinton 2012) in three forms, and ZFNet (Zeiler and Fergus, arXiv 1311.2901)."""

from __future__ import annotations

from torch import Tensor, nn

from cnnkern.models._blocks import Layers, MaxPool2d, conv_relu, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import Error, register

# Maps, filter size, stride, padding, groups; "pool" is 3x3 of stride 2, "norm" local response normalisation.
Row = tuple[int, int, int, int, int] | str

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
    # The maps of 2012, all on one processor.
    "alexnet_one_tower": [
        (96, 11, 4, 0, 1),
        "pool",
        "norm",
        (256, 5, 1, 2, 1),
        "pool",
        "norm",
        (384, 3, 1, 1, 1),
        (384, 3, 1, 1, 1),
        (256, 3, 1, 1, 1),
        "pool",
    ],
    # As trained in 2012: each of two processors has half of the maps, and conv2, 4 and 5 see only those.
    "alexnet_two_gpu": [
        (96, 11, 4, 0, 1),
        "pool",
        "norm",
        (256, 5, 1, 2, 2),
        "pool",
        "norm",
        (384, 3, 1, 1, 1),
        (384, 3, 1, 1, 2),
        (256, 3, 1, 1, 2),
        "pool",
    ],
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


def layers(c_in: int, row: Row) -> list[nn.Module]:
    """The modules of one row of a table."""
    if isinstance(row, tuple):
        return conv_relu(c_in, *row)
    if row == "norm":  # of 5 maps: torch divides alpha by their number, the paper does not
        return [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)]
    return [MaxPool2d(3, 2, padding=1 if row == "padded pool" else 0)]


class AlexNet(Network):
    """Convolutions by a table, then three fully connected layers with dropout, the first over 6x6 pixels."""

    def __init__(self, table: list[Row], num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        features: list[nn.Module] = []
        for row in table:
            features += layers(in_channels, row)
            in_channels = row[0] if isinstance(row, tuple) else in_channels
        self.features = Layers(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(in_channels * 36, 4096),
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
    errors={"alexnet_two_gpu": Error(None, 18.2, "one network; 15.4 with seven")},
)
@register(
    "zfnet",
    year=2013,
    paper="Zeiler and Fergus, arXiv 1311.2901",
    smallest=53,
    errors={"zfnet": Error(None, 11.7, "ILSVRC 2013")},
)
def alexnet(name: str, num_classes: int, in_channels: int, *, dropout: float = 0.5) -> AlexNet:
    """AlexNet as the table has it, in one tower or as on two GPUs; ZFNet."""
    model = AlexNet(TABLES[name], num_classes, in_channels, dropout)
    initialise(model, model.classifier[-1])
    return model
