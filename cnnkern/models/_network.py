"""What every architecture is: a module that takes images and gives scores, and says which images are too small."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnkern.models._blocks import GlobalAvgPool2d


class Outputs(NamedTuple):
    """What a model with auxiliary classifiers gives in training mode, each (N, classes)."""

    scores: Tensor
    auxiliary: tuple[Tensor, ...]
    """From the one next to the input to the one next to the output."""


class Network(nn.Module):
    """Scores (N, classes) of images (N, C, H, W).

    A subclass defines ``scores``. Images smaller than ``smallest`` in height or width are refused with ValueError.
    """

    name: str = ""
    smallest: int = 1

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """(N, classes) of (N, C, H, W); :class:`Outputs` in training with auxiliary classifiers."""
        check_size(images, self.smallest, self.name)
        return self.scores(images)

    def scores(self, images: Tensor) -> Tensor | Outputs:
        """As ``forward``, for images that are large enough."""
        raise NotImplementedError

    @staticmethod
    def current_key(key: str) -> str:
        """The name that a state_dict's entry has today, where a published checkpoint has an older one."""
        return key


class PooledNetwork(Network):
    """Features, the mean over the pixels of each of their maps, dropout and one linear layer.

    ``features`` is a module, (N, C, H, W) to (N, maps, P, Q).
    """

    def __init__(self, features: nn.Module, maps: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = features
        self.avgpool = GlobalAvgPool2d()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(maps, num_classes)

    def scores(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return self.fc(self.dropout(self.avgpool(self.features(images)).flatten(1)))


def check_size(images: Tensor, smallest: int, name: str) -> None:
    """Raises ValueError if the images are smaller than ``smallest`` pixels in height or width."""
    if min(images.shape[-2:]) < smallest:
        size = "x".join(map(str, images.shape[-2:]))
        raise ValueError(f"images of {size} pixels are too small for {name}: {smallest}x{smallest} at least")


torch.fx.wrap("check_size")
