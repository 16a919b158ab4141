"""RepVGG-A0 (Ding et al., arXiv 2101.03697): three branches per layer in training, one 3x3 convolution afterwards."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkern.models._blocks import conv_bn, initialise
from cnnkern.models._network import PooledNetwork
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d, conv_bn_act, fold_batch_norm

# Maps and blocks of each stage; each halves the resolution.
TABLE = [(48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)]


class Block(nn.Module):
    """relu(3x3 + 1x1 + x), batch normalisation at the end of each of the three; x only where the size stays.

    In the deployed form, relu(3x3) with the filters that give the same.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv3x3 = conv_bn(c_in, c_out, 3, stride, act=None)
        self.conv1x1 = conv_bn(c_in, c_out, 1, stride, act=None)
        self.identity = nn.BatchNorm2d(c_in) if stride == 1 and c_in == c_out else None
        self.deployed: Conv2d | None = None

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        if self.deployed is not None:
            return conv_bn_act(self.deployed, None, input, "relu")
        others = self.conv1x1(input) if self.identity is None else self.conv1x1(input, self.identity(input))
        return self.conv3x3(input, others, "relu")

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Puts one 3x3 convolution with a bias in the place of the branches; it is right for fixed statistics."""
        conv, bn = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", self.conv3x3)
        pointwise, pointwise_bn = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", self.conv1x1)
        branches = [(conv.weight, bn), (F.pad(pointwise.weight, (1, 1, 1, 1)), pointwise_bn)]
        if self.identity is not None:
            centre = torch.zeros_like(conv.weight)
            centre[:, :, 1, 1].fill_diagonal_(1)
            branches.append((centre, self.identity))
        folded = [(filters, *fold_batch_norm(norm)) for filters, norm in branches]
        deployed = Conv2d(conv.in_channels, conv.out_channels, 3, (conv.stride[0], conv.stride[1]), 1)
        deployed.weight = nn.Parameter(
            torch.stack([filters * scale[:, None, None, None] for filters, scale, _ in folded]).sum(0)
        )
        deployed.bias = nn.Parameter(torch.stack([shift for _, _, shift in folded]).sum(0))
        self.deployed = deployed
        del self.conv3x3, self.conv1x1, self.identity
        self.train(self.training)


class RepVGG(PooledNetwork):
    """The table, global average pooling and one linear layer."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        blocks: list[nn.Module] = []
        for maps, count in TABLE:
            for number in range(count):
                blocks.append(Block(in_channels, maps, 2 if number == 0 else 1))
                in_channels = maps
        super().__init__(nn.Sequential(*blocks), in_channels, num_classes)

    def reparameterize(self) -> RepVGG:
        """To the deployed form, in place: a plain stack of 3x3 convolutions that gives the same in eval mode."""
        for block in self.features.children():
            if isinstance(block, Block):
                block.reparameterize()
        return self


@register("repvgg_a0", year=2021, paper="Ding et al., arXiv 2101.03697", smallest=1)
def repvgg(name: str, num_classes: int, in_channels: int, *, deploy: bool = False) -> RepVGG:
    """RepVGG-A0 in the form that is trained, or with ``deploy`` in the one that ``reparameterize`` makes of it."""
    model = RepVGG(num_classes, in_channels)
    if deploy:
        model.reparameterize()
    initialise(model, model.fc)
    return model
