"""A recipe: everything about a training run that is neither the network nor the data, as a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch.optim import SGD, Optimizer

from cnnkern.training.augmentation import Change, Crop, centre_crop
from cnnkern.training.schedules import Schedule, constant

MOMENTUM = partial(SGD, momentum=0.9)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; ``dataclasses.replace`` makes another one."""

    epochs: int
    lr: float
    batch: int | None = 128
    """Images in a step, of all processes together; None for the whole training set."""
    optimizer: Callable[..., Optimizer] = MOMENTUM
    """One of torch.optim's, taking the parameters, lr and, where there is one, weight_decay."""
    weight_decay: float = 0.0
    schedule: Schedule = constant
    cycles: int = 1
    """The schedule's cycles in the run. A copy of the model is kept after each if there are several, and the ensemble
    of the copies is what is tested."""
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.3
    l1: float = 0.0
    """Weight of the L1 penalty; with ``weight_decay`` an elastic net."""
    mean_image: bool = False
    """Whether the training set's mean image is subtracted, in place of a mean per channel."""
    resize: float = 1.0
    """The side of the images that crops are cut from, as a multiple of the network's input size."""
    crop: Crop = centre_crop
    augment: tuple[Change, ...] = ()
    """Changes to the cropped images, in order."""
    polyak: float | None = None
    """Decay of an average of the weights that is tested in their place, for example 0.995."""
    backbone_rate: float = 1.0
    """The rate of all layers but the classifier, as a share of ``lr``; 0 freezes them."""
    test_scales: tuple[float, ...] = ()
    """Sides, as multiples of the input size, that images are scaled to for ten crops each in the test; none: one crop
    from the middle."""

    def __post_init__(self) -> None:
        if self.epochs % self.cycles:
            raise ValueError(f"{self.epochs} epochs do not divide into {self.cycles} cycles")

    def __str__(self) -> str:
        """Every field on a line, the same in every process: a function is told by its name."""
        return "\n".join(f"{field.name} = {_text(getattr(self, field.name))}" for field in fields(self))


def _text(value: Any) -> str:
    if isinstance(value, partial):
        return f"{_text(value.func)}({', '.join(f'{name}={_text(given)}' for name, given in value.keywords.items())})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return value.__name__ if callable(value) else repr(value)
