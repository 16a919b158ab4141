"""The degradation experiment of He et al. (arXiv 1512.03385, figure 1 and section 4.2) on scikit-learn's digits.

Plain networks of 20 and 56 layers, and the same with shortcuts: the training loss tells whether the deeper one can be
optimised. Without shortcuts it learns less, with them more: after 20 epochs, a minute on one core, the losses were 0.11
(plain20), 1.49 (plain56), 0.11 (resnet20) and 0.04 (resnet56). Curves go to degradation.svg and degradation.png.

pip install cnnkern[train]
python examples/degradation.py
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cnnkern import models
from cnnkern.training import RECIPES, Trainer, data, plots
from cnnkern.training.monitoring import Epoch

NETWORKS = ("plain20", "plain56", "resnet20", "resnet56")
SIZE = 8  # the digits' own resolution
RECIPE = replace(RECIPES["resnet-cifar"], epochs=20, crop=partial(RECIPES["resnet-cifar"].crop, padding=1), augment=())


def histories(epochs: int = RECIPE.epochs, networks: tuple[str, ...] = NETWORKS) -> dict[str, list[Epoch]]:
    """Each network trained on the same images in the same order by the same recipe."""
    digits = data.digits(SIZE)
    runs = {}
    for name in networks:
        torch.manual_seed(0)
        model = models.create(name, num_classes=10, in_channels=1)
        trainer = Trainer(model, digits, replace(RECIPE, epochs=epochs))
        for row in trainer.epochs():
            print(f"{name}  epoch {row.epoch:2}  train loss {row.train_loss:.4f}  accuracy {row.train_accuracy:.1%}")
        runs[name] = trainer.history
    return runs


def plot(runs: dict[str, list[Epoch]], path: Path) -> None:
    """The losses on the images that are trained on, and the accuracies on others."""
    loss = {name: [row.train_loss for row in rows] for name, rows in runs.items()}
    accuracy = {name: [row.validation_accuracy for row in rows] for name, rows in runs.items()}
    plots.save({"training loss": loss, "validation accuracy": accuracy}, path)


if __name__ == "__main__":
    plot(histories(), Path("degradation"))
