"""The function :func:`summary`, and the record that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from cnnkern.summary import nets, notes, table
from cnnkern.summary.walk import Layer, Total, walk


@dataclass(frozen=True)
class Summary:
    """What :func:`summary` found; prints as a table."""

    name: str
    input: tuple[int, ...]
    """C, H and W of an image."""
    batch: int
    biases: bool
    layers: tuple[Layer, ...]
    parameters: int
    """The model's, biases left out if asked for; also those that no layer here reads."""
    notes: tuple[str, ...] = ()

    def total(self, *kinds: str) -> Total:
        """The sums over the layers of some kinds (conv, fc, pool, ...), or over all but flatten, which only renames."""
        return Total.of(layer for layer in self.layers if (layer.kind in kinds if kinds else layer.kind != "flatten"))

    def __str__(self) -> str:
        return table.text(self)

    __repr__ = __str__


def summary(
    model: str | nn.Module,
    input: Sequence[int] | None = None,
    batch: int = 1,
    *,
    biases: bool = True,
    all_layers: bool = False,
) -> Summary:
    """The layers of a model that run on an image in eval mode, in their order, and what each costs.

    Nothing is computed: the pass runs on tensors without data. Convolutions, pools, flattening and fully connected
    layers are rows, whether they are modules or calls of functions; so is what else reads a parameter, for example a
    batch normalisation. All numbers are of one image and of the forward pass:

    - memory: the values that a row's layer gives, 4 bytes each, in KB of 1024 bytes. A layer that changes values in
      place gives none of its own, nor do concatenation and sums.
    - parameters: those that the layer is the first to read, so shared ones count once.
    - multiply-adds: of convolutions and matrix products without biases, and one for each value in a window of a pool.
    - the receptive field in pixels of the input, padding included; see :mod:`cnnkern.summary.receptive_field`. None
      where branches of different stride meet, behind a transposed convolution, and behind a fully connected layer.

    Args:
        model: a module, a name in ``cnnkern.models.list()``, or "package.module:callable", which is called for one.
        input: C, H and W of an image; None for those of the lectures' table or else those the named model is for, and
            for (3, 224, 224) where nothing is known.
        batch: images in the pass, for a model that asks for several.
        biases: whether the parameters named "bias" are counted.
        all_layers: rows also for activations, sums, concatenations and the like.

    Raises ValueError for a name that there is not, for an input of other than three numbers and for a model with lazy
    layers, and what the model raises.
    """
    if not isinstance(model, str):
        return _summary(type(model).__name__, model, tuple(input or nets.IMAGE), batch, biases, all_layers)
    net = nets.find(model)
    usual = notes.INPUTS.get(model, net.input)
    found = _summary(model, net.build("meta"), tuple(input or usual), batch, biases, all_layers)
    slips = notes.notes_on(model, found) if found.input == usual else ()
    return replace(found, notes=(*found.notes, *slips))


def _summary(
    name: str, model: nn.Module, input: tuple[int, ...], batch: int, biases: bool, all_layers: bool
) -> Summary:
    if len(input) != 3:
        raise ValueError(f"input is (C, H, W), not {input}")
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"{key} has no shape yet: call the model once, on images")
    counted = {key: parameter for key, parameter in parameters.items() if biases or key.split(".")[-1] != "bias"}
    layers = walk(model, input, batch, counted, all_layers)
    total = sum(parameter.numel() for parameter in counted.values())
    return Summary(name, input, batch, biases, tuple(layers), total, _unread(counted, layers))


def _unread(parameters: dict[str, nn.Parameter], layers: Sequence[Layer]) -> tuple[str, ...]:
    """A note on the parameters that the pass does not read, by the top-level modules that they are in."""
    unread = set(parameters).difference(*(layer.weights for layer in layers))
    if not unread:
        return ()
    count = sum(parameters[name].numel() for name in unread)
    where = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters if name in unread))
    return (f"{count:,} of the parameters are not read in eval mode, in {where}",)
