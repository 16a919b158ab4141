"""Testing on many crops of an image: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cnnkern.training.augmentation import centre_crop
from cnnkern.training.averages import mean_of_probabilities
from cnnkern.training.losses import logits_of


def ten_crops(images: Tensor, size: int) -> list[Tensor]:
    """The four corners and the middle, (N, C, size, size) each, and their mirror images (Krizhevsky et al. 2012)."""
    corners = [images[:, :, rows, columns] for rows in _ends(size) for columns in _ends(size)]
    five = [*corners, centre_crop(images, size)]
    return five + [crop.flip(3) for crop in five]


def scores(model: nn.Module, images: Tensor, size: int, scales: Sequence[float] = ()) -> Tensor:
    """Scores (N, classes) of images (N, C, H, W) at least ``size`` high and wide.

    Without scales, the logits of one crop from the middle. With scales, the log of the mean probability over ten crops
    of the images resized to each, as multiples of ``size``: ResNet's test has five (He et al. 2015, section 3.4).
    """
    if not scales:
        return logits_of(model(centre_crop(images, size)))
    answers = []
    for scale in scales:
        side = round(scale * size)
        resized = F.interpolate(images, size=side, mode="bilinear", antialias=True)
        answers += [logits_of(model(crop)) for crop in ten_crops(resized, size)]
    return mean_of_probabilities(answers)


def _ends(size: int) -> tuple[slice, slice]:
    return slice(None, size), slice(-size, None)
