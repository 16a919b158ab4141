"""GoogLeNet (Szegedy et al., arXiv 1409.4842), with batch normalisation, and the same of naive Inception modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d, MaxPool2d, initialise, named_conv_bn
from cnnkern.models._network import Network, Outputs
from cnnkern.models._registry import register

# 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection; an integer is a max-pool of that size, of stride 2.
Row = tuple[int, int, int, int, int, int]
BODY: dict[str, Row | int] = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": 3,
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "maxpool4": 2,
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY = {"inception4a": "aux1", "inception4d": "aux2"}  # what each auxiliary classifier reads

# Mean and deviation of ImageNet's channels, and those to which the weights of some checkpoints expect them.
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


class Inception(nn.Module):
    """Four branches side by side, 1x1 convolutions before the 3x3 ones and after the pool.

    As in the definition whose weights are in use, the third branch has 3x3 filters where the paper has 5x5.
    """

    def __init__(self, c_in: int, row: Row) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = row
        self.branch1 = named_conv_bn(c_in, one, 1)
        self.branch2 = nn.Sequential(named_conv_bn(c_in, reduce3, 1), named_conv_bn(reduce3, three, 3))
        self.branch3 = nn.Sequential(named_conv_bn(c_in, reduce5, 1), named_conv_bn(reduce5, five, 3))
        self.branch4 = nn.Sequential(MaxPool2d(3, 1, 1), named_conv_bn(c_in, pool, 1))
        self.maps = one + three + five + pool

    def forward(self, input: Tensor) -> Tensor:
        """(N, maps, H, W) of (N, C, H, W)."""
        return torch.cat([branch(input) for branch in self.children()], 1)


class NaiveInception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and a pool side by side, all of the whole input."""

    def __init__(self, c_in: int, row: Row) -> None:
        super().__init__()
        one, _, three, _, five, _ = row
        self.branch1 = named_conv_bn(c_in, one, 1)
        self.branch2 = named_conv_bn(c_in, three, 3)
        self.branch3 = named_conv_bn(c_in, five, 5)
        self.branch4 = MaxPool2d(3, 1, 1)
        self.maps = one + three + five + c_in

    def forward(self, input: Tensor) -> Tensor:
        """(N, maps, H, W) of (N, C, H, W)."""
        return torch.cat([branch(input) for branch in self.children()], 1)


class Auxiliary(nn.Module):
    """AvgPool-1x1Conv-FC-FC."""

    def __init__(self, c_in: int, num_classes: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.conv = named_conv_bn(c_in, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        hidden = torch.relu(self.fc1(self.conv(self.avgpool(input)).flatten(1)))
        return self.fc2(self.dropout(hidden))


class GoogLeNet(Network):
    """A stem, nine Inception modules, global average pooling and one linear layer."""

    def __init__(
        self,
        inception: Callable[[int, Row], Inception | NaiveInception],
        num_classes: int,
        in_channels: int,
        aux: bool,
        dropout: float,
        transform_input: bool,
    ) -> None:
        super().__init__()
        pool = partial(MaxPool2d, stride=2, ceil_mode=True)
        self.transform_input = transform_input
        self.conv1 = named_conv_bn(in_channels, 64, 7, 2)
        self.maxpool1 = pool(3)
        self.conv2 = named_conv_bn(64, 64, 1)
        self.conv3 = named_conv_bn(64, 192, 3)
        self.maxpool2 = pool(3)
        maps = 192
        given: dict[str, int] = {}
        for name, row in BODY.items():
            if isinstance(row, int):
                self.add_module(name, pool(row))
            else:
                module = inception(maps, row)
                self.add_module(name, module)
                maps = module.maps
                given[name] = maps
        for name, classifier in AUXILIARY.items() if aux else ():
            self.add_module(classifier, Auxiliary(given[name], num_classes))
        self.avgpool = GlobalAvgPool2d()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(maps, num_classes)

    def scores(self, images: Tensor) -> Tensor | Outputs:
        """(N, classes) of (N, C, H, W); in training with the two auxiliary ones."""
        x = between_minus_one_and_one(images) if self.transform_input else images
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        auxiliary = []
        for name in BODY:
            x = self.get_submodule(name)(x)
            if self.training and hasattr(self, AUXILIARY.get(name, "")):
                auxiliary.append(self.get_submodule(AUXILIARY[name])(x))
        scores = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return Outputs(scores, tuple(auxiliary)) if auxiliary else scores


def between_minus_one_and_one(images: Tensor) -> Tensor:
    """Images normalised by ImageNet's mean and deviation (N, 3, H, W), as if normalised by 0.5 and 0.5."""
    mean, deviation = IMAGENET.to(images)[:, :, None, None]
    return images * (deviation / 0.5) + (mean - 0.5) / 0.5


PAPER = "Szegedy et al., arXiv 1409.4842"


@register("googlenet", year=2014, paper=PAPER, smallest=15, torchvision=True)
def googlenet(
    name: str,
    num_classes: int,
    in_channels: int,
    *,
    aux: bool = True,
    dropout: float = 0.2,
    transform_input: bool = False,
) -> GoogLeNet:
    """GoogLeNet of dimension-reduced modules.

    ``transform_input``: images come normalised by ImageNet's mean and deviation, and torchvision's published weights
    expect values from -1 to 1.
    """
    model = GoogLeNet(Inception, num_classes, in_channels, aux, dropout, transform_input)
    initialise(model, *classifiers(model))
    return model


@register("googlenet_naive", year=2014, paper=PAPER, smallest=15)
def googlenet_naive(
    name: str, num_classes: int, in_channels: int, *, aux: bool = True, dropout: float = 0.2
) -> GoogLeNet:
    """GoogLeNet of naive modules: maps pile up, because the pool's branch keeps all of them."""
    model = GoogLeNet(NaiveInception, num_classes, in_channels, aux, dropout, transform_input=False)
    initialise(model, *classifiers(model))
    return model


def classifiers(model: GoogLeNet) -> list[nn.Module]:
    """The layers that give scores."""
    return [model.fc, *(module.fc2 for module in model.modules() if isinstance(module, Auxiliary))]
