"""Inception v2, also BN-Inception (Ioffe and Szegedy, arXiv 1502.03167): batch normalisation, two 3x3 for each 5x5."""

from __future__ import annotations

from cnnkern.models._blocks import initialise
from cnnkern.models._inception import stack
from cnnkern.models._network import PooledNetwork
from cnnkern.models._registry import register

TABLE = [
    ["7x7/2 64, max/2, 1x1 64, 3x3 192, max/2"],
    ["1x1 64", "1x1 64, 3x3 64", "1x1 64, 3x3 96, 3x3 96", "avg, 1x1 32"],  # 3a
    ["1x1 64", "1x1 64, 3x3 96", "1x1 64, 3x3 96, 3x3 96", "avg, 1x1 64"],
    ["1x1 128, 3x3/2 160", "1x1 64, 3x3 96, 3x3/2 96", "max/2"],
    ["1x1 224", "1x1 64, 3x3 96", "1x1 96, 3x3 128, 3x3 128", "avg, 1x1 128"],  # 4a
    ["1x1 192", "1x1 96, 3x3 128", "1x1 96, 3x3 128, 3x3 128", "avg, 1x1 128"],
    ["1x1 160", "1x1 128, 3x3 160", "1x1 128, 3x3 160, 3x3 160", "avg, 1x1 96"],
    ["1x1 96", "1x1 128, 3x3 192", "1x1 160, 3x3 192, 3x3 192", "avg, 1x1 96"],
    ["1x1 128, 3x3/2 192", "1x1 192, 3x3 256, 3x3/2 256", "max/2"],
    ["1x1 352", "1x1 192, 3x3 320", "1x1 160, 3x3 224, 3x3 224", "avg, 1x1 128"],  # 5a
    ["1x1 352", "1x1 192, 3x3 320", "1x1 192, 3x3 224, 3x3 224", "max, 1x1 128"],
]


@register("inception_v2", year=2015, paper="Ioffe and Szegedy, arXiv 1502.03167", smallest=1)
def inception_v2(name: str, num_classes: int, in_channels: int) -> PooledNetwork:
    """Inception v2; no dropout. With 7x7 as 7x1 and 1x7, and 3x3 as 3x1 and 1x3, it is inception_v3."""
    features, maps = stack(in_channels, TABLE)
    model = PooledNetwork(features, maps, num_classes)
    initialise(model, model.fc)
    return model
