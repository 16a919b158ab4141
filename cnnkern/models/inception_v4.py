"""Inception v4 (Szegedy, Ioffe, Vanhoucke and Alemi, arXiv 1602.07261): modules of a uniform design."""

from __future__ import annotations

from cnnkern.models._blocks import initialise
from cnnkern.models._inception import stack
from cnnkern.models._network import PooledNetwork
from cnnkern.models._registry import register

STEM = [
    ["3x3/2v 32, 3x3v 32, 3x3 64"],
    ["max/2v", "3x3/2v 96"],
    ["1x1 64, 3x3v 96", "1x1 64, 1x7 64, 7x1 64, 3x3v 96"],
    ["3x3/2v 192", "max/2v"],
]
A = ["1x1 96", "1x1 64, 3x3 96", "1x1 64, 3x3 96, 3x3 96", "avg, 1x1 96"]
REDUCTION_A = ["3x3/2v 384", "1x1 192, 3x3 224, 3x3/2v 256", "max/2v"]
B = ["1x1 384", "1x1 192, 1x7 224, 7x1 256", "1x1 192, 7x1 192, 1x7 224, 7x1 224, 1x7 256", "avg, 1x1 128"]
REDUCTION_B = ["1x1 192, 3x3/2v 192", "1x1 256, 1x7 256, 7x1 320, 3x3/2v 320", "max/2v"]
C = ["1x1 256", "1x1 384, [1x3 256 | 3x1 256]", "1x1 384, 3x1 448, 1x3 512, [1x3 256 | 3x1 256]", "avg, 1x1 256"]
TABLE = [*STEM, *[A] * 4, REDUCTION_A, *[B] * 7, REDUCTION_B, *[C] * 3]


@register("inception_v4", year=2016, paper="Szegedy et al., arXiv 1602.07261", input_size=(3, 299, 299), smallest=75)
def inception_v4(name: str, num_classes: int, in_channels: int, *, dropout: float = 0.2) -> PooledNetwork:
    """Inception v4."""
    features, maps = stack(in_channels, TABLE)
    model = PooledNetwork(features, maps, num_classes, dropout)
    initialise(model, model.fc)
    return model
