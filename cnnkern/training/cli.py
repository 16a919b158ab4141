"""The command ``cnnkern train``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from cnnkern.training import checkpoint, checks, distributed, search, transfer
from cnnkern.training import data as datasets
from cnnkern.training.data import Data
from cnnkern.training.monitoring import Epoch
from cnnkern.training.recipe import Recipe
from cnnkern.training.recipes import RECIPES
from cnnkern.training.trainer import Trainer

CHECKED = 4  # images whose gradients are checked
DIGITS_SIDE = 16  # of the digits, 8x8 pixels, for a network that was made for other images and takes so small ones


class Setting(click.ParamType):
    """drop_path=0.2 as ("drop_path", 0.2); a value is JSON, or else a word."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, Any]:
        """The name and the value."""
        name, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{value!r} is not like drop_path=0.2", param, context)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


@click.command()
@click.argument("net")
@click.option("--data", "source", default="digits", show_default=True, help="digits, or a folder of <class>/<image>.")
@click.option("--recipe", "name", type=click.Choice(list(RECIPES)), default="digits", show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="In place of the recipe's.")
@click.option("--batch", type=click.IntRange(1), help="In place of the recipe's; of all processes together.")
@click.option("--lr", type=float, help="In place of the recipe's.")
@click.option("--weight-decay", type=float, help="In place of the recipe's.")
@click.option("--option", "options", type=Setting(), multiple=True, help="Of NET, for example drop_path=0.2.")
@click.option(
    "--size", type=click.IntRange(1), help="Side of the network's input; default: what NET is for; of digits, few."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, order and augmentation.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("cnnkern-train"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option(
    "--pretrained", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Weights to start from."
)
@click.option("--check", is_flag=True, help="Only check gradients, the first loss, and that 20 images can be learnt.")
@click.option(
    "--search", "trials", type=click.IntRange(1), help="Only try so many rates and weight decays, drawn at random."
)
def train(
    net: str, options: tuple[tuple[str, Any], ...], source: str, name: str, size: int | None, seed: int, out: Path,
    resume: bool, pretrained: Path | None, check: bool, trials: int | None, **changes: Any,
) -> None:  # fmt: skip
    """Train NET, a model of cnnkern.models, on data by a recipe.

    --out gets a checkpoint after every epoch, history.csv, activations.csv, and curves as .svg and .png. Processes
    share the work under torchrun --no-python --nproc-per-node 2 cnnkern train ...
    """
    with distributed.process_group() as device, _errors_shown():
        recipe = replace(RECIPES[name], **{field: value for field, value in changes.items() if value is not None})
        console = Console(quiet=distributed.rank() > 0)
        data = datasets.load(source, size or usual_size(net, source), recipe.resize)
        build = partial(network, net, data, dict(options))
        if trials:
            return run_search(build, data, recipe, trials, seed, device, console)
        torch.manual_seed(seed)
        model = build()
        if pretrained is not None:
            console.print(f"drawn anew: {', '.join(start_from(model, pretrained)) or 'nothing'}")
        if check:
            return run_checks(model, data, console)
        console.print(str(recipe), style="dim", highlight=False)
        trainer = Trainer(model, data, recipe, seed=seed, out=out, device=device)
        if resume:
            trainer.restore(checkpoint.load(out / "checkpoint.pt"))
        fit(trainer, recipe, console)
        loss, accuracy = trainer.test()
        console.print(f"test loss {loss:.4f}, accuracy {accuracy:.2%}; curves in {out / 'curves.svg'}")


def usual_size(net: str, source: str) -> int:
    """The side of the images that NET was published for; of the digits, for a NET of colour images, fewer pixels."""
    from cnnkern import models

    facts = models.entry(net)
    channels, side, _ = facts.input_size
    return max(DIGITS_SIDE, facts.smallest) if source == "digits" and channels > 1 else side


def network(name: str, data: Data, options: dict[str, Any]) -> nn.Module:
    """The model of that name for the data's channels and classes, with options of its own."""
    from cnnkern import models

    return models.create(name, **{"num_classes": len(data.classes), "in_channels": data.channels, **options})


def start_from(model: nn.Module, path: Path) -> list[str]:
    """Loads a state_dict, or the model of a checkpoint; returns the names that keep the values they were drawn with."""
    state = checkpoint.load(path)
    try:
        return transfer.load_backbone(model, state.get("model", state))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit: {error}") from error


def fit(trainer: Trainer, recipe: Recipe, console: Console) -> None:
    """Trains under a progress bar, with a line for every epoch."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        images = len(trainer.data.train) // distributed.world_size()  # type: ignore[arg-type]
        task = bar.add_task("", total=images * recipe.epochs, completed=images * len(trainer.history))
        for row in trainer.epochs(lambda count, loss: bar.update(task, advance=count, description=f"loss {loss:.4f}")):
            console.print(line(row), soft_wrap=True)


def line(row: Epoch) -> str:
    """An epoch's figures."""
    return (
        f"epoch {row.epoch:3}  lr {row.lr:.2e}  loss {row.train_loss:.4f} / {row.validation_loss:.4f}  "
        f"accuracy {row.train_accuracy:.2%} / {row.validation_accuracy:.2%}  update {row.update_ratio:.1e}  "
        f"{row.seconds:.1f} s"
    )


def run_checks(model: nn.Module, data: Data, console: Console) -> None:
    """Prints every check; raises click's exit with status 1 if one failed."""
    images, labels = datasets.first(data.train, checks.FEW)
    images = data.normalise(images)
    results = checks.gradients(model, images[:CHECKED])
    results += [checks.first_loss(model, images, labels, len(data.classes)), checks.overfit(model, images, labels)]
    for result in results:
        mark = "[green]right[/]" if result.passed else "[red]wrong[/]"
        console.print(mark, f"{result.name}: {result.figures}", soft_wrap=True)
    if not all(result.passed for result in results):
        raise click.exceptions.Exit(1)


def run_search(
    build: Callable[[], nn.Module], data: Data, recipe: Recipe, trials: int, seed: int, device: torch.device,
    console: Console,
) -> None:  # fmt: skip
    """Prints every trial, and the options of the best."""
    done = []
    for trial in search.random_search(build, data, recipe, trials, seed=seed, device=device):
        done.append(trial)
        console.print(f"accuracy {trial.accuracy:.2%}  loss {trial.loss:.4f}  {_as_options(trial)}", soft_wrap=True)
    console.print(f"best on the validation set: {_as_options(search.best(done))}", soft_wrap=True)


def _as_options(trial: search.Trial) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value:.2e}" for name, value in trial.values.items())


@contextmanager
def _errors_shown() -> Iterator[None]:
    """What a user can put right is a line and no traceback."""
    try:
        yield
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
