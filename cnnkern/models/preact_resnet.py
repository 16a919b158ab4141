"""Pre-activation residual networks (He et al., arXiv 1603.05027) and Wide ResNet-28-10 (arXiv 1605.07146).

Batch normalisation and ReLU come before each convolution, so that nothing but sums lies between a block's input and
the next one's. In eval mode those of the block's input are what the first convolution does to what it reads, the others
are the epilogue of the convolution before them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d, MaxPool2d, add_residual, drop_path_rates, initialise
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d, conv_bn_act


class Table(NamedTuple):
    """A network: blocks and maps of its stages, each of which but the first halves the resolution."""

    bottleneck: bool
    blocks: tuple[int, ...]
    maps: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64
    """Maps of the first convolution: 7x7 with a pool after it if ``imagenet``, else 3x3."""
    imagenet: bool = True
    dropout: float = 0.0
    """Between the convolutions of a block."""


TABLES = {
    "preact_resnet18": Table(False, (2, 2, 2, 2)),
    "preact_resnet34": Table(False, (3, 4, 6, 3)),
    "preact_resnet50": Table(True, (3, 4, 6, 3)),
    "preact_resnet101": Table(True, (3, 4, 23, 3)),
    "preact_resnet152": Table(True, (3, 8, 36, 3)),
    "preact_resnet200": Table(True, (3, 24, 36, 3)),
    "preact_resnet110": Table(False, (18, 18, 18), (16, 32, 64), 16, imagenet=False),
    "preact_resnet164": Table(True, (18, 18, 18), (16, 32, 64), 16, imagenet=False),
    "wide_resnet28_10": Table(False, (4, 4, 4), (160, 320, 640), 16, imagenet=False, dropout=0.3),
}


class PreActivationBlock(nn.Module):
    """branch(x) + shortcut(x), the branch two 3x3 convolutions, or 1x1, 3x3 (which has the stride) and 1x1.

    Where the size changes the shortcut is a 1x1 convolution of the normalised and activated input.
    """

    def __init__(self, c_in: int, maps: int, stride: int, table: Table, drop_path: float) -> None:
        super().__init__()
        rows = [(1, maps, 1), (3, maps, stride), (1, 4 * maps, 1)] if table.bottleneck else None
        c_out = c_in
        norms, convs = [], []
        for kernel, c_next, step in rows or [(3, maps, stride), (3, maps, 1)]:
            norms.append(nn.BatchNorm2d(c_out))
            convs.append(Conv2d(c_out, c_next, kernel, step, kernel // 2, bias=False))
            c_out = c_next
        self.norms = nn.ModuleList(norms)
        self.convs = nn.ModuleList(convs)
        self.dropout = nn.Dropout(table.dropout)
        resized = stride > 1 or c_in != c_out
        self.downsample = Conv2d(c_in, c_out, 1, stride, bias=False) if resized else None
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        drop_path = self.drop_path if self.training else 0.0
        if self.downsample is None:
            return add_residual(self.branch, input, input, drop_path=drop_path)
        activated = torch.relu(self.norms[0](input))
        return add_residual(self.convolved, activated, self.downsample(activated), drop_path=drop_path)

    def branch(self, input: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        """activation(f(input) + residual)."""
        return self.convolved(input, residual, activation, self.norms[0])

    @property
    def filters(self) -> list[nn.Conv2d]:
        """The convolutions of the branch, in order."""
        return [conv for conv in self.convs if isinstance(conv, nn.Conv2d)]

    def convolved(
        self, input: Tensor, residual: Tensor | None, activation: str, input_bn: nn.Module | None = None
    ) -> Tensor:
        """As ``branch``, where ``input`` is normalised and activated, or to be by ``input_bn``."""
        first, *middle, last = self.filters
        x = conv_bn_act(
            first,
            self.norms[1],
            input,
            "relu",
            input_bn=input_bn,
            input_activation="none" if input_bn is None else "relu",
        )
        for conv, norm in zip(middle, self.norms[2:], strict=True):
            x = conv_bn_act(conv, norm, x, "relu")
        return conv_bn_act(last, None, self.dropout(x), activation, residual)


class PreActivationResNet(Network):
    """A stem, stages of blocks, batch normalisation and ReLU, global average pooling and one linear layer."""

    def __init__(self, table: Table, num_classes: int, in_channels: int, drop_path: float) -> None:
        super().__init__()
        kernel, stride = (7, 2) if table.imagenet else (3, 1)
        self.conv = Conv2d(in_channels, table.stem, kernel, stride, kernel // 2, bias=False)
        self.pool = MaxPool2d(3, 2, 1) if table.imagenet else nn.Identity()
        rates = drop_path_rates(drop_path, sum(table.blocks))
        c_in = table.stem
        blocks: list[nn.Module] = []
        for stage, (maps, count) in enumerate(zip(table.maps, table.blocks, strict=True)):
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(PreActivationBlock(c_in, maps, stride, table, rates.pop(0)))
                c_in = 4 * maps if table.bottleneck else maps
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(c_in)
        self.avgpool = GlobalAvgPool2d()
        self.fc = nn.Linear(c_in, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        x = torch.relu(self.bn(self.blocks(self.pool(self.conv(images)))))
        return self.fc(self.avgpool(x).flatten(1))


IMAGENET = [name for name, table in TABLES.items() if table.imagenet]
CIFAR = [name for name in TABLES if name not in IMAGENET and not name.startswith("wide")]
HE = "He et al., arXiv 1603.05027"


@register(*IMAGENET, year=2016, paper=HE, smallest=1)
@register(*CIFAR, year=2016, paper=HE, input_size=(3, 32, 32), smallest=1, num_classes=10)
@register(
    "wide_resnet28_10",
    year=2016,
    paper="Zagoruyko and Komodakis, arXiv 1605.07146",
    input_size=(3, 32, 32),
    smallest=1,
    num_classes=10,
)
def preact_resnet(
    name: str, num_classes: int, in_channels: int, *, drop_path: float = 0.0, zero_init_residual: bool = True
) -> PreActivationResNet:
    """A pre-activation residual network; with ``zero_init_residual`` the last convolution of each block starts at 0."""
    model = PreActivationResNet(TABLES[name], num_classes, in_channels, drop_path)
    initialise(model, model.fc)
    if zero_init_residual:
        for block in model.modules():
            if isinstance(block, PreActivationBlock):
                nn.init.zeros_(block.filters[-1].weight)
    return model
