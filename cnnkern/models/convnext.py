"""ConvNeXt-T (Liu et al., arXiv 2201.03545): depthwise 7x7 and two linear layers, layer normalisation, GELU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d, drop_path_rates, initialise, stochastic_depth
from cnnkern.models._network import Network
from cnnkern.models._registry import register
from cnnkern.nn import Conv2d

TABLE = [
    (96, 3),
    (192, 3),
    (384, 9),
    (768, 3),
]  # maps and blocks of each stage; each but the first halves the resolution
LAYER_SCALE = 1e-6


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the maps of each pixel: (N, C, H, W) in and out."""

    def forward(self, input: Tensor) -> Tensor:
        """As the input."""
        pixels = input.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """The dimensions in another order."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, input: Tensor) -> Tensor:
        """A view of the input."""
        return input.permute(self.order)


class Block(nn.Module):
    """x + scale * block(x), with a learnt scale per map."""

    def __init__(self, maps: int, drop_path: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv2d(maps, maps, 7, padding=3, groups=maps),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(maps, eps=1e-6),
            nn.Linear(maps, 4 * maps),
            nn.GELU(),
            nn.Linear(4 * maps, maps),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((maps, 1, 1), LAYER_SCALE))
        self.drop_path = drop_path

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W), as the input."""
        y = self.layer_scale * self.block(input)
        return input + (stochastic_depth(y, self.drop_path) if self.training and self.drop_path else y)


class ConvNeXt(Network):
    """A 4x4 stem of stride 4, stages with a 2x2 convolution of stride 2 between them, and one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, drop_path: float) -> None:
        super().__init__()
        rates = drop_path_rates(drop_path, sum(count for _, count in TABLE))
        c_in = TABLE[0][0]
        features: list[nn.Module] = [
            nn.Sequential(Conv2d(in_channels, c_in, 4, 4), LayerNorm2d(c_in, eps=1e-6)),
        ]
        for maps, count in TABLE:
            if maps > c_in:
                features.append(nn.Sequential(LayerNorm2d(c_in, eps=1e-6), Conv2d(c_in, maps, 2, 2)))
            features.append(nn.Sequential(*(Block(maps, rates.pop(0)) for _ in range(count))))
            c_in = maps
        self.features = nn.Sequential(*features)
        self.avgpool = GlobalAvgPool2d()
        self.classifier = nn.Sequential(LayerNorm2d(c_in, eps=1e-6), nn.Flatten(1), nn.Linear(c_in, num_classes))

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.classifier(self.avgpool(self.features(images)))


@register("convnext_tiny", year=2022, paper="Liu et al., arXiv 2201.03545", smallest=32, torchvision=True)
def convnext(name: str, num_classes: int, in_channels: int, *, drop_path: float = 0.1) -> ConvNeXt:
    """ConvNeXt-T."""
    model = ConvNeXt(num_classes, in_channels, drop_path)
    initialise(model, model.classifier[-1])
    return model
