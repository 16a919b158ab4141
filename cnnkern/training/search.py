"""Random search: values drawn evenly in log space, judged on the validation set.

Random points try more values of the parameter that matters than a grid does (Bergstra and Bengio 2012, JMLR 13).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cnnkern.training.data import Data
from cnnkern.training.recipe import Recipe
from cnnkern.training.trainer import Trainer

REACH = 30.0  # a space ends at so many times a recipe's value, and begins at one such part of it


@dataclass(frozen=True)
class Trial:
    """Values that were tried, and how accurate the network was on the validation set after the last epoch."""

    values: dict[str, float]
    accuracy: float
    loss: float


def around(recipe: Recipe) -> dict[str, tuple[float, float]]:
    """The space in which the recipe's rate and weight decay are the middle, as far as they are not 0."""
    values = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    return {name: (value / REACH, value * REACH) for name, value in values.items() if value > 0}


def draw(space: Mapping[str, tuple[float, float]], source: random.Random) -> dict[str, float]:
    """A value for each name, its logarithm uniform between those of the two ends."""
    return {name: math.exp(source.uniform(math.log(low), math.log(high))) for name, (low, high) in space.items()}


def random_search(
    build: Callable[[], nn.Module],
    data: Data,
    recipe: Recipe,
    trials: int,
    space: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Trial]:
    """Trains a new network with each of ``trials`` drawn recipes, and gives each trial when it is done.

    Args:
        build: makes the network.
        data: its test set is not looked at.
        recipe: what is not drawn; a few epochs tell good rates from bad ones.
        trials: the number of draws.
        space: the least and the greatest value of fields of the recipe, both positive; None is :func:`around` it.
        seed: of the draws, and of each run and its network.
        device: where the networks are trained.
    """
    source = random.Random(seed)
    for _ in range(trials):
        values = draw(around(recipe) if space is None else space, source)
        changes: dict[str, Any] = dict(values)
        torch.manual_seed(seed)
        last = Trainer(build(), data, replace(recipe, **changes), seed=seed, device=device).fit()[-1]
        yield Trial(values, last.validation_accuracy, last.validation_loss)


def best(trials: Iterable[Trial]) -> Trial:
    """The most accurate on the validation set; of equals, the one with the lower loss."""
    return min(trials, key=lambda trial: (-trial.accuracy, trial.loss))
