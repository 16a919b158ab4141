"""Inception modules as text: the modules of v2, v4 and the two Inception-ResNets are rows of branches.

A branch is its layers in order, ``"1x1 64, 3x3 96"``: filter size (vertical x horizontal) and maps of a convolution
with batch normalisation and ReLU. ``max`` and ``avg`` are 3x3 pools, and ``zavg`` is one that counts the padding's
zeros. ``/2`` after either is a stride of 2, ``v`` no padding (otherwise the size is kept but for the stride). A branch
may end in branches: ``"1x1 384, [1x3 256 | 3x1 256]"``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from cnnkern.models._blocks import AvgPool2d, Concat, MaxPool2d, named_conv_bn

_LAYER = re.compile(r"(?:(?P<r>\d)x(?P<s>\d)|(?P<pool>max|z?avg))(?:/(?P<stride>\d))?(?P<valid>v?)(?: (?P<maps>\d+))?")


def branch(c_in: int, text: str) -> tuple[nn.Sequential, int]:
    """The layers of one branch, and the maps that it gives."""
    text, _, ends = text.partition("[")
    layers: list[nn.Module] = []
    for step in filter(None, text.split(", ")):
        module, c_in = layer(c_in, step)
        layers.append(module)
    if ends:
        module, c_in = concat(c_in, ends.rstrip("]").split(" | "))
        layers.append(module)
    return nn.Sequential(*layers), c_in


def concat(c_in: int, branches: Sequence[str]) -> tuple[nn.Module, int]:
    """Branches side by side, and the maps that they give together."""
    built = [branch(c_in, text) for text in branches]
    return Concat([layers for layers, _ in built]), sum(maps for _, maps in built)


def stack(c_in: int, modules: Sequence[Sequence[str]]) -> tuple[nn.Sequential, int]:
    """Modules, each given by its branches, one after another, and the maps of the last."""
    layers: list[nn.Module] = []
    for branches in modules:
        module, c_in = concat(c_in, branches) if len(branches) > 1 else branch(c_in, branches[0])
        layers.append(module)
    return nn.Sequential(*layers), c_in


def layer(c_in: int, text: str) -> tuple[nn.Module, int]:
    """One layer of a branch, and the maps that it gives."""
    found = _LAYER.fullmatch(text)
    if found is None:
        raise ValueError(f"not a layer of an Inception module: {text!r}")
    stride, valid = int(found["stride"] or 1), bool(found["valid"])
    if found["pool"] == "max":
        return MaxPool2d(3, stride, 0 if valid else 1), c_in
    if found["pool"]:
        return AvgPool2d(3, stride, 0 if valid else 1, count_include_pad=found["pool"] == "zavg"), c_in
    maps = int(found["maps"])
    padding = 0 if valid else None
    return named_conv_bn(c_in, maps, (int(found["r"]), int(found["s"])), stride, padding), maps
