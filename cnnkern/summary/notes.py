"""Where the lectures print a number that their own layers do not give: the number that follows, computed.

The figures that are quoted are the lectures'; everything else in a note is taken from the summary that it is a note on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cnnkern.summary.walk import BYTES, Total

if TYPE_CHECKING:
    from cnnkern.summary import Summary

# (C, H, W) of a lecture's table, where it is not what the model was published for.
INPUTS = {"alexnet": (3, 227, 227)}

ALEXNET_PARAMETERS = 61_100_840


class Note(NamedTuple):
    """What is printed, and the sentence that says what follows instead."""

    printed: str
    follows: Callable[[Summary], str]


def _values(summary: Summary) -> str:
    values = math.prod(summary.input) + summary.total("conv", "pool", "fc").values
    return f"the layers' own outputs and the image add up to {values / 1e6:.1f}M values, {values * BYTES / 1e6:.0f} MB"


def _against_alexnet(summary: Summary) -> str:
    total = summary.total("conv", "fc")
    return f"those leave out conv3_3; with it {total.megabytes:.1f} MB and {total.flops / 1e9:.2f} Gflop"


def _down_to_28(summary: Summary) -> str:
    layers = [layer for layer in summary.layers if layer.kind == "conv" and layer.size_out[0] >= summary.input[1] // 4]
    total = Total.of(layers)
    costs = f"{total.megabytes:.1f} MB, {total.parameters / 1e6:.1f}M parameters, {total.flops / 1e6:.0f} Mflop"
    return f"those leave out conv3_3; with it {costs}"


def _conv4(summary: Summary) -> str:
    layer = next(layer for layer in summary.layers if layer.label == "conv4")
    return f"{layer.c_out}*{layer.size_out[0]}^2 outputs of {layer.c_in}*3^2 products are {layer.flops / 1e6:.1f} Mflop"


def _stem(summary: Summary) -> str:
    flops = [layer.flops / 1e6 for layer in summary.layers if layer.kind in ("conv", "pool")][:5]
    return f"{' + '.join(f'{part:.0f}' for part in flops)} = {sum(flops):.0f} Mflop; 418 has the digits turned round"


def _parameters(summary: Summary) -> str:
    parameters = summary.total().parameters
    return f"the layers that run have {parameters / 1e6:.1f}M, {ALEXNET_PARAMETERS / parameters:.0f}x fewer"


def _flops(summary: Summary) -> str:
    return f"the layers give {summary.total('conv', 'fc').flops / 1e9:.2f} Gflop"


def _stride(summary: Summary) -> str:
    flops = summary.total("conv", "fc").flops / 1e9
    return f"that is the paper's form, with the stride in the first 1x1 of a block; this one has {flops:.2f} Gflop"


NOTES = {
    "alexnet": (Note("145 Mflop in conv4", _conv4),),
    "vgg16": (
        Note("24M x 4 bytes = 96 MB", _values),
        Note("48.6 MB (25x AlexNet's) and 13.6 Gflop (19.4x)", _against_alexnet),
        Note("42.9 MB, 1.1M parameters and 7485 Mflop down to 28x28", _down_to_28),
    ),
    "googlenet": (
        Note("418 Mflop in the stem", _stem),
        Note("about 5M parameters, 12x fewer than AlexNet", _parameters),
    ),
    "resnet34": (Note("3.6 Gflop", _flops),),
    "resnet50": (Note("3.8 Gflop", _stride),),
    "resnet101": (Note("7.6 Gflop", _stride),),
    "resnet152": (Note("11.3 Gflop", _stride),),
}


def notes_on(name: str, summary: Summary) -> tuple[str, ...]:
    """The notes on a net of the lectures."""
    return tuple(f'the lecture prints "{note.printed}": {note.follows(summary)}' for note in NOTES.get(name, ()))
