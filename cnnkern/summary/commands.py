"""The commands ``cnnkern summary`` and ``cnnkern module``."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

import cnnkern
from cnnkern.summary.examples import EXAMPLES, Example


class Numbers(click.ParamType):
    """3x227x227 as (3, 227, 227)."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        numbers = value.split("x")
        if not all(number.isdecimal() and int(number) for number in numbers):
            self.fail(f"{value!r} is not like 3x227x227", param, context)
        return tuple(map(int, numbers))


@contextmanager
def users_models() -> Iterator[None]:
    """Modules in the current directory can be imported, and what a model or its name has wrong is told in a line."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.argument("net")
@click.option("--input", type=Numbers(), help="Of an image; default: what NET is for.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in the pass.")
@click.option("--biases/--no-biases", default=True, help="Whether parameters named bias are counted.")
@click.option("--all", "all_layers", is_flag=True, help="Also activations, sums, concatenations and the like.")
def summary(net: str, input: tuple[int, ...] | None, batch: int, biases: bool, all_layers: bool) -> None:
    """The lectures' table of NET's layers: sizes, memory, parameters, multiply-adds, receptive fields.

    NET is a name of `cnnkern.models.list()`, or package.module:callable for a model of your own.
    """
    with users_models():
        click.echo(cnnkern.summary(net, input, batch, biases=biases, all_layers=all_layers))


@click.group()
def module() -> None:
    """The lectures' worked examples: what a form of a module costs, and what another one saves."""


def option_of(parameter: inspect.Parameter) -> click.Option:
    """The option for a parameter of an example."""
    required = parameter.default is parameter.empty
    kinds: dict[Any, dict[str, Any]] = {bool: {"is_flag": True}, int: {"type": int, "show_default": True}}
    kind = kinds.get(parameter.annotation, {"type": Numbers(), "show_default": not required})
    default = None if required else parameter.default
    shown = "x".join(map(str, default)) if isinstance(default, tuple) else default
    return click.Option([f"--{parameter.name}"], default=shown, required=required, **kind)


def command_of(name: str, example: Callable[..., Example]) -> click.Command:
    """The command that prints an example."""

    def show(**arguments: Any) -> None:
        with users_models():
            click.echo(example(**arguments))

    parameters = inspect.signature(example, eval_str=True).parameters.values()
    return click.Command(name, callback=show, params=list(map(option_of, parameters)), help=example.__doc__)


for name, example in EXAMPLES.items():
    module.add_command(command_of(name, example))
