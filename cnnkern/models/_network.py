"""What every architecture is: a module that takes images and gives scores, and says which images are too small."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Outputs(NamedTuple):
    """What a model with auxiliary classifiers gives in training mode, each (N, classes)."""

    scores: Tensor
    auxiliary: tuple[Tensor, ...]
    """From the one next to the input to the one next to the output."""


class Network(nn.Module):
    """Scores (N, classes) of images (N, C, H, W).

    A subclass defines ``scores``. Images smaller than ``smallest`` in height or width are refused with ValueError.
    """

    smallest: int = 1

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """(N, classes) of (N, C, H, W); :class:`Outputs` in training with auxiliary classifiers."""
        check_size(images, self.smallest, type(self).__name__)
        return self.scores(images)

    def scores(self, images: Tensor) -> Tensor | Outputs:
        """As ``forward``, for images that are large enough."""
        raise NotImplementedError

    @staticmethod
    def current_key(key: str) -> str:
        """The name that a state_dict's entry has today, where a published checkpoint has an older one."""
        return key


def check_size(images: Tensor, smallest: int, name: str) -> None:
    """Raises ValueError if the images are smaller than ``smallest`` pixels in height or width."""
    if min(images.shape[-2:]) < smallest:
        size = "x".join(map(str, images.shape[-2:]))
        raise ValueError(f"images of {size} pixels are too small for {name}: {smallest}x{smallest} at least")


torch.fx.wrap("check_size")
