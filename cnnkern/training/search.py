"""Random search: values drawn evenly in log space, judged on the validation set.

Random points try more values of the parameter that matters than a grid does (Bergstra and Bengio 2012, JMLR 13).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cnnkern.training.data import Data
from cnnkern.training.recipe import Recipe
from cnnkern.training.trainer import Trainer

SPACE = {"lr": (1e-3, 1.0), "weight_decay": (1e-5, 1e-2)}


@dataclass(frozen=True)
class Trial:
    """Values that were tried, and how accurate the network was on the validation set after the last epoch."""

    values: dict[str, float]
    accuracy: float
    loss: float


def draw(space: Mapping[str, tuple[float, float]], source: random.Random) -> dict[str, float]:
    """A value for each name, its logarithm uniform between those of the two ends."""
    return {name: math.exp(source.uniform(math.log(low), math.log(high))) for name, (low, high) in space.items()}


def random_search(
    build: Callable[[], nn.Module],
    data: Data,
    recipe: Recipe,
    trials: int,
    space: Mapping[str, tuple[float, float]] = SPACE,
    seed: int = 0,
) -> list[Trial]:
    """Trains a new network with each of ``trials`` drawn recipes; the best on the validation set comes first.

    Args:
        build: makes the network.
        data: its test set is not looked at.
        recipe: what is not drawn; a few epochs tell good rates from bad ones.
        trials: the number of draws.
        space: the least and the greatest value of fields of the recipe, both positive.
        seed: of the draws and of each run.
    """
    source = random.Random(seed)
    results = []
    for _ in range(trials):
        values = draw(space, source)
        changes: dict[str, Any] = dict(values)
        last = Trainer(build(), data, replace(recipe, **changes), seed=seed).fit()[-1]
        results.append(Trial(values, last.validation_accuracy, last.validation_loss))
    return sorted(results, key=lambda trial: (-trial.accuracy, trial.loss))
