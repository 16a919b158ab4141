"""NASNet-A mobile (Zoph, Vasudevan, Shlens and Le, arXiv 1707.07012): searched cells of separable convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkern.models._blocks import AvgPool2d, GlobalAvgPool2d, MaxPool2d, Separable, initialise, named_conv_bn
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d, conv_bn_act

EPS = 1e-3
STEM = 32
MAPS = 44  # of each of the six parts of a normal cell's output in the first stage; twice as many in each later stage
# Maps of the parts of each cell, and whether it is a reduction: two for the stem, then three stages of normal cells.
PLAN = [
    (MAPS // 4, True),
    (MAPS // 2, True),
    *[(MAPS, False)] * 4,
    (2 * MAPS, True),
    *[(2 * MAPS, False)] * 4,
    (4 * MAPS, True),
    *[(4 * MAPS, False)] * 4,
]

# A cell adds pairs: operation and what it reads, twice. "right" is the previous cell's output, "left" the one's before
# it, a number an earlier sum of this cell. Operations that read left or right have the cell's stride.
Pair = tuple[str, str | int, str, str | int]
NORMAL: list[Pair] = [
    ("sep5", "right", "sep3", "left"),
    ("sep5", "left", "sep3", "left"),
    ("avg", "right", "same", "left"),
    ("avg", "left", "avg", "left"),
    ("sep3", "right", "same", "right"),
]
REDUCTION: list[Pair] = [
    ("sep5", "right", "sep7", "left"),
    ("max", "right", "sep7", "left"),
    ("avg", "right", "sep5", "left"),
    ("avg", 0, "same", 1),
    ("sep3", 0, "max", "right"),
]
# What a cell gives side by side.
OUTPUTS: dict[bool, list[str | int]] = {False: ["left", 0, 1, 2, 3, 4], True: [1, 2, 3, 4]}


def operation(name: str, c_in: int, maps: int, stride: int) -> nn.Module:
    """One of a cell's operations; a separable convolution is applied twice, the stride in the first."""
    if name == "same":
        return nn.Identity()
    if name == "max":
        return MaxPool2d(3, stride, 1)
    if name == "avg":
        return AvgPool2d(3, stride, 1, count_include_pad=False)
    kernel = int(name.removeprefix("sep"))
    first = Separable(c_in, maps, kernel, stride, input_act="relu", eps=EPS)
    return nn.Sequential(first, Separable(maps, maps, kernel, input_act="relu", eps=EPS))


class Squeeze(nn.Module):
    """ReLU, 1x1 convolution, batch normalisation."""

    def __init__(self, c_in: int, maps: int) -> None:
        super().__init__()
        self.conv = Conv2d(c_in, maps, 1, bias=False)
        self.bn = nn.BatchNorm2d(maps, EPS)

    def forward(self, input: Tensor) -> Tensor:
        """(N, maps, H, W) of (N, C, H, W)."""
        return conv_bn_act(self.conv, self.bn, input, input_activation="relu")


class FactorizedReduction(nn.Module):
    """ReLU, then half of the maps from the even pixels and half from the odd ones, batch normalisation."""

    def __init__(self, c_in: int, maps: int) -> None:
        super().__init__()
        self.even = Conv2d(c_in, maps // 2, 1, 2, bias=False)
        self.odd = Conv2d(c_in, maps - maps // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(maps, EPS)

    def forward(self, input: Tensor) -> Tensor:
        """(N, maps, H / 2, W / 2) of (N, C, H, W), halves rounded up."""
        x = torch.relu(input)
        shifted = F.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.bn(torch.cat([self.even(x), self.odd(shifted)], 1))


class Cell(nn.Module):
    """Five sums of two operations each, of the outputs of the two cells before it.

    ``left`` and ``right`` are the maps of those outputs; ``halved`` says whether left has twice the resolution of
    right. Both are squeezed to ``maps`` first; where left is None, there is one input only, and left is that as it is.
    """

    def __init__(self, left: int | None, right: int, maps: int, reduction: bool, halved: bool) -> None:
        super().__init__()
        self.pairs = REDUCTION if reduction else NORMAL
        self.outputs = OUTPUTS[reduction]
        self.squeeze_right = Squeeze(right, maps)
        self.squeeze_left = nn.Identity() if left is None else (FactorizedReduction if halved else Squeeze)(left, maps)
        c_left = right if left is None else maps
        operations = []
        for pair in self.pairs:
            for name, read in (pair[:2], pair[2:]):
                stride = 2 if reduction and isinstance(read, str) else 1
                operations.append(operation(name, c_left if read == "left" else maps, maps, stride))
        self.operations = nn.ModuleList(operations)
        self.maps = maps * len(self.outputs)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(N, maps, P, Q) of the two outputs before."""
        values: dict[str | int, Tensor] = {"left": self.squeeze_left(left), "right": self.squeeze_right(right)}
        operations = iter(self.operations)
        for number, (_, first, _, second) in enumerate(self.pairs):
            values[number] = next(operations)(values[first]) + next(operations)(values[second])
        return torch.cat([values[name] for name in self.outputs], 1)


class NASNet(Network):
    """A 3x3 convolution, the cells, ReLU, global average pooling, dropout and one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        self.stem = named_conv_bn(in_channels, STEM, 3, 2, 0, activation="none", eps=EPS)
        cells: list[nn.Module] = []
        left, right, halved = None, STEM, False
        for maps, reduction in PLAN:
            cell = Cell(left, right, maps, reduction, halved)
            left, right, halved = right, cell.maps, reduction
            cells.append(cell)
        self.cells = nn.ModuleList(cells)
        self.avgpool = GlobalAvgPool2d()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(right, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        left = right = self.stem(images)
        for cell in self.cells:
            left, right = right, cell(left, right)
        return self.fc(self.dropout(self.avgpool(torch.relu(right)).flatten(1)))


@register("nasnet_mobile", year=2017, paper="Zoph et al., arXiv 1707.07012", smallest=3)
def nasnet(name: str, num_classes: int, in_channels: int, *, dropout: float = 0.5) -> NASNet:
    """NASNet-A with 4 cells per stage and 1056 maps at the end."""
    model = NASNet(num_classes, in_channels, dropout)
    initialise(model, model.fc)
    return model
