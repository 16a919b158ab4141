"""FractalNet (Larsson, Maire and Shakhnarovich, arXiv 1605.07648): deep without residuals, by a fractal expansion.

f_1(z) = conv(z) and f_c+1(z) = join(f_c(f_c(z)), conv(z)), where a join is the mean. So a block of C columns is
2^(C-1) rows deep; column c has a convolution in every 2^(C-c)-th row. Drop-path leaves out inputs of joins in training:
local drop-path each on its own but not all of a join, global drop-path all columns but one of the whole network.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d, MaxPool2d, initialise, named_conv_bn
from cnnkern.models._network import Network
from cnnkern.models._registry import register


class Table(NamedTuple):
    """A network: columns, maps of its blocks, and dropout of each block; each block ends in a 2x2 pool."""

    columns: int
    maps: tuple[int, ...]
    dropout: tuple[float, ...]
    imagenet: bool
    """A stem of 7x7 and a pool."""


TABLES = {
    "fractalnet20": Table(3, (64, 128, 256, 512, 512), (0.0, 0.1, 0.2, 0.3, 0.4), imagenet=False),
    "fractalnet34": Table(4, (128, 256, 512, 1024), (0.0, 0.1, 0.2, 0.3), imagenet=True),
}


class FractalBlock(nn.Module):
    """f_C: C columns of 3x3 convolutions, joined wherever several end in a row."""

    def __init__(self, c_in: int, maps: int, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.rows = 2 ** (columns - 1)
        self.convs = nn.ModuleDict()
        for row in range(self.rows):
            for column in self.ending(row):
                first = row + 1 == self.length(column)
                self.convs[f"{row}_{column}"] = named_conv_bn(c_in if first else maps, maps, 3, eps=1e-5)

    def length(self, column: int) -> int:
        """How many rows a convolution of the column spans; of the last column's, one."""
        return 2 ** (self.columns - 1 - column)

    def ending(self, row: int) -> list[int]:
        """The columns that have a convolution in the row."""
        return [column for column in range(self.columns) if (row + 1) % self.length(column) == 0]

    def forward(self, input: Tensor, only: int | None = None, drop_path: float = 0.0) -> Tensor:
        """(N, maps, H, W) of (N, C, H, W); of the column ``only``, or of those that local drop-path leaves."""
        values = [input] * self.columns
        for row in range(self.rows):
            ending = self.ending(row)
            kept = _kept(ending, only, drop_path)
            outputs = [self.convs[f"{row}_{column}"](values[column]) for column in kept]
            if outputs:
                joined = outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)
                for column in ending:
                    values[column] = joined
        return values[-1]


def _kept(ending: list[int], only: int | None, drop_path: float) -> list[int]:
    """Which of a join's inputs are computed."""
    if only is not None:
        return [only] if only in ending else []
    if drop_path == 0 or len(ending) == 1:
        return ending
    kept = [
        column
        for column, draw in zip(ending, torch.rand(len(ending), device="cpu").tolist(), strict=True)
        if draw >= drop_path
    ]
    return kept or [ending[int(torch.randint(len(ending), (), device="cpu"))]]


class FractalNet(Network):
    """A stem for ImageNet, blocks each with dropout and a 2x2 pool after it, and one linear layer.

    In training each batch has global drop-path with probability ``global_drop_path``, else local drop-path.
    """

    def __init__(
        self, table: Table, num_classes: int, in_channels: int, drop_path: float, global_drop_path: float
    ) -> None:
        super().__init__()
        self.drop_path, self.global_drop_path = drop_path, global_drop_path
        self.columns = table.columns
        self.stem = nn.Sequential()
        if table.imagenet:
            self.stem = nn.Sequential(named_conv_bn(in_channels, 64, 7, 2, eps=1e-5), MaxPool2d(3, 2, 1))
            in_channels = 64
        self.blocks, self.ends = nn.ModuleList(), nn.ModuleList()
        for maps, dropout in zip(table.maps, table.dropout, strict=True):
            self.blocks.append(FractalBlock(in_channels, maps, table.columns))
            self.ends.append(nn.Sequential(MaxPool2d(2), nn.Dropout(dropout)))
            in_channels = maps
        if table.imagenet:
            self.ends[-1] = nn.Identity()
        self.avgpool = GlobalAvgPool2d()
        self.fc = nn.Linear(in_channels, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        only, drop_path = None, 0.0
        if self.training and float(torch.rand((), device="cpu")) < self.global_drop_path:
            only = int(torch.randint(self.columns, (), device="cpu"))
        elif self.training:
            drop_path = self.drop_path
        x = self.stem(images)
        for block, end in zip(self.blocks, self.ends, strict=True):
            x = end(block(x, only, drop_path))
        return self.fc(self.avgpool(x).flatten(1))


PAPER = "Larsson et al., arXiv 1605.07648"


@register("fractalnet20", year=2016, paper=PAPER, input_size=(3, 32, 32), smallest=32, num_classes=10)
@register("fractalnet34", year=2016, paper=PAPER, smallest=29)
def fractalnet(
    name: str, num_classes: int, in_channels: int, *, drop_path: float = 0.15, global_drop_path: float = 0.5
) -> FractalNet:
    """FractalNet of 20 layers for CIFAR-10 or of 34 for ImageNet.

    ``drop_path`` is the probability of leaving out an input of a join; ``global_drop_path`` that of a batch that takes
    one column through the whole network.
    """
    model = FractalNet(TABLES[name], num_classes, in_channels, drop_path, global_drop_path)
    initialise(model, model.fc)
    return model
