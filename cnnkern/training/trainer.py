"""The training loop: a network, its data and a recipe, an epoch at a time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import Dataset

from cnnkern.training import averages, checkpoint, crops, distributed, monitoring, plots, transfer
from cnnkern.training.data import Data, first, with_mean_image
from cnnkern.training.losses import cross_entropy, elastic_net, logits_of, weights_of
from cnnkern.training.monitoring import Epoch
from cnnkern.training.recipe import Recipe

EVALUATED = 128  # images at once, where nothing is learnt
OBSERVED = 64  # images for the statistics of activations

Progress = Callable[[int, float], None]
"""Told the number of images of each step and its loss."""


class Trainer:
    """A run: all that changes in it is in the model, the optimizer, the schedule, the averages and the history.

    Random numbers follow from the seed, the epoch and the process's rank, so that a run continued from a checkpoint
    is the run that was never stopped, bit for bit on the same machine with the same number of threads.

    Args:
        model: takes images (N, C, size, size), gives logits (N, classes); in training it may give a tuple of logits
            and auxiliary logits. It is trained in place.
        data: the three sets.
        recipe: how.
        seed: of the order of the images, augmentation and dropout.
        out: directory of the checkpoint, tables and plots; None writes nothing.
        device: where the model and the images are moved.

    Under torchrun, within :func:`cnnkern.training.distributed.process_group`, this is one process's part of the run.
    """

    def __init__(
        self, model: nn.Module, data: Data, recipe: Recipe, *, seed: int = 0, out: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.recipe, self.seed, self.out, self.device = recipe, seed, out, torch.device(device)
        self.data = with_mean_image(data) if recipe.mean_image else data
        self.model = model.to(device)
        groups = transfer.parameter_groups(self.model, recipe.lr, recipe.backbone_rate)
        self.network = distributed.parallel(self.model)
        decay = {"weight_decay": recipe.weight_decay} if recipe.weight_decay else {}
        self.optimizer = recipe.optimizer(groups, lr=recipe.lr, **decay)
        steps = len(self._batches(0)) * recipe.epochs // recipe.cycles
        self.schedule = recipe.schedule(self.optimizer, max(1, steps))
        self.averaged = None if recipe.polyak is None else averages.polyak(self.model, recipe.polyak)
        self.snapshots: list[dict[str, Tensor]] = []
        self.history: list[Epoch] = []

    def fit(self) -> list[Epoch]:
        """Trains the epochs that are left, and returns the history of all."""
        for _ in self.epochs():
            pass
        return self.history

    def epochs(self, progress: Progress | None = None) -> Iterator[Epoch]:
        """Trains the epochs that are left, and gives each when its files are written."""
        self._observe()
        while len(self.history) < self.recipe.epochs:
            row = self.train_epoch(progress)
            self._write()
            yield row

    def train_epoch(self, progress: Progress | None = None) -> Epoch:
        """One pass over the training set, then the validation set."""
        epoch, start = len(self.history), time.perf_counter()
        source = random.Random(f"seed {self.seed}, epoch {epoch}, rank {distributed.rank()}")
        torch.manual_seed(source.getrandbits(63))
        transfer.train_mode(self.model)
        lr = self.optimizer.param_groups[0]["lr"]
        batches = self._batches(epoch)
        sums = torch.zeros(3, dtype=torch.float64)  # of the losses, of right answers, of images
        ratios: list[float] = []
        for number, (images, labels) in enumerate(batches):
            images = self._augmented(images)
            middle = number == len(batches) // 2
            with monitoring.update_ratios(self.model) if middle else nullcontext(ratios) as ratios:
                loss, right = self.step(images, labels.to(self.device))
            sums += torch.tensor([loss * len(labels), right, len(labels)], dtype=torch.float64)
            if progress is not None:
                progress(len(labels), loss)
        loss, accuracy = _means(sums, self.device)
        held_out = self.evaluate(self.model, self.data.validation)
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(held_out[0])
        if self.recipe.cycles > 1 and (epoch + 1) % (self.recipe.epochs // self.recipe.cycles) == 0:
            self.snapshots.append({name: value.clone() for name, value in self.model.state_dict().items()})
        seconds = time.perf_counter() - start
        self.history.append(Epoch(epoch + 1, lr, loss, accuracy, *held_out, median(ratios), seconds))
        return self.history[-1]

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """One step of the optimizer; the loss and the number of right answers before it.

        An optimizer that evaluates the loss several times in a step, like L-BFGS, calls the closure as often.
        """
        recipe = self.recipe
        before: list[tuple[float, int]] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            output = self.network(images)
            loss = cross_entropy(output, labels, recipe.label_smoothing, recipe.auxiliary_weight)
            before.append((loss.item(), int((logits_of(output).argmax(1) == labels).sum())))
            if recipe.l1:
                loss = loss + elastic_net(weights_of(self.model), recipe.l1)
            loss.backward()
            return loss

        self.optimizer.step(closure)  # type: ignore[arg-type]
        if not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return before[0]

    def test(self) -> tuple[float, float]:
        """The loss and accuracy on the test set, of the averaged weights or the ensemble where there is one."""
        return self.evaluate(self.predictor(), self.data.test, self.recipe.test_scales)

    def predictor(self) -> nn.Module:
        """What the run has made: the model, its average along the run, or the ensemble of its snapshots."""
        if self.averaged is not None:
            return self.averaged.module
        if self.snapshots:
            return averages.snapshot_ensemble(self.model, self.snapshots)
        return self.model

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, scales: tuple[float, ...] = ()) -> tuple[float, float]:
        """The mean cross-entropy and the accuracy of a model on a set, on crops of ``scales``, by all processes."""
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for images, labels in distributed.share(dataset, EVALUATED, self.data.workers):
            images, labels = self._placed(images), labels.to(self.device)
            scores = crops.scores(model, images, self.data.size, scales)
            loss = F.cross_entropy(scores, labels, reduction="sum")
            right = (scores.argmax(1) == labels).sum()
            sums += torch.tensor([loss.item(), right.item(), len(labels)], dtype=torch.float64)
        return _means(sums, self.device)

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs to go on from here."""
        return {
            "recipe": str(self.recipe),
            "seed": self.seed,
            "classes": list(self.data.classes),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "snapshots": self.snapshots,
            "history": [asdict(row) for row in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state. Raises ValueError for one of another recipe, seed, classes or model."""
        own = {"recipe": str(self.recipe), "seed": self.seed, "classes": list(self.data.classes)}
        for name, value in own.items():
            if state[name] != value:
                raise ValueError(f"the checkpoint's {name} is\n{state[name]}\nand this run's is\n{value}")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another model: {error}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.snapshots = state["snapshots"]
        self.history = [Epoch(**row) for row in state["history"]]

    def _batches(self, epoch: int) -> Any:
        return distributed.batches(self.data.train, self.recipe.batch, self.seed, epoch, self.data.workers)

    def _augmented(self, images: Tensor) -> Tensor:
        images = self.recipe.crop(images.to(self.device), self.data.size)
        for change in self.recipe.augment:
            images = change(images)
        return self._placed(images)

    def _placed(self, images: Tensor) -> Tensor:
        return self.data.normalise(images.to(self.device)).contiguous(memory_format=torch.channels_last)

    def _observe(self) -> None:
        """What the layers put out before the first step, as a table."""
        if self.out is None or distributed.rank() > 0 or self.history:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        images, _ = first(self.data.train, OBSERVED)
        self.model.eval()
        rows = monitoring.activation_statistics(self.model, self._placed(crops.centre_crop(images, self.data.size)))
        monitoring.write_csv(self.out / "activations.csv", rows)

    def _write(self) -> None:
        if self.out is None or distributed.rank() > 0:
            return
        checkpoint.save(self.state(), self.out / "checkpoint.pt")
        monitoring.write_csv(self.out / "history.csv", self.history)
        plots.save_history(self.history, self.out / "curves")


def _means(sums: Tensor, device: torch.device) -> tuple[float, float]:
    """The mean loss and the accuracy over all processes from sums over this one."""
    loss, right, count = distributed.total(sums.to(device)).tolist()
    return loss / count, right / count
