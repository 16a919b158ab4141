"""What to watch while a network learns: curves, how far weights move in a step, what its layers put out."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnkern.training.losses import weights_of

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.GELU, nn.Tanh, nn.Sigmoid)
OBSERVED = (nn.Conv2d, nn.Linear, *ACTIVATIONS)


@dataclass(frozen=True)
class Epoch:
    """One epoch's figures.

    Those of the training set are of the steps themselves: on augmented images, the loss with label smoothing and
    auxiliary classifiers. Those of the validation set are the plain cross-entropy and the accuracy after the epoch.
    """

    epoch: int
    lr: float
    """At the start of the epoch."""
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    update_ratio: float
    """The median over the weights of |update| / |weight| in the epoch's middle step: about 1e-3 is usual."""
    seconds: float

    @property
    def gap(self) -> float:
        """How much more accurate the network is on what it trains on: overfitting shows here."""
        return self.train_accuracy - self.validation_accuracy


@dataclass(frozen=True)
class Activations:
    """What a layer puts out for some images."""

    layer: str
    mean: float
    deviation: float
    zeros: float
    """The share of outputs that are zero: of a ReLU, of what is switched off."""


@contextmanager
def update_ratios(model: nn.Module) -> Iterator[list[float]]:
    """The list is filled, when the context ends, with |change| / |weight| of each filter and matrix."""
    weights = weights_of(model)
    before = [weight.detach().clone() for weight in weights]
    ratios: list[float] = []
    yield ratios
    for old, new in zip(before, weights, strict=True):
        ratios.append(((new.detach() - old).norm() / old.norm().clamp_min(1e-12)).item())


@torch.no_grad()
def activation_statistics(model: nn.Module, images: Tensor) -> list[Activations]:
    """One row per convolution, linear layer and activation module, in the order of their calls, in the model's mode.

    The statistics before training show what an initialisation does: deviations that shrink or grow with depth.
    """
    rows: list[Activations] = []

    def observe(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            deviation, mean = torch.std_mean(output.float())
            rows.append(Activations(name, mean.item(), deviation.item(), (output == 0).float().mean().item()))

        return hook

    observed = [(name, module) for name, module in model.named_modules() if isinstance(module, OBSERVED)]
    handles = [module.register_forward_hook(observe(name)) for name, module in observed]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """A table of records of one class, a line each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
