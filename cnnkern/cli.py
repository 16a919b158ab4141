"""The command ``cnnkern``."""

from __future__ import annotations

import importlib
from typing import ClassVar

import click

import cnnkern


class _Commands(click.Group):
    """Commands of which some live in modules with dependencies of their own, imported when they are asked for."""

    elsewhere: ClassVar = {"bench": "cnnkern.bench.cli"}

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *self.elsewhere})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.elsewhere:
            return super().get_command(context, name)
        return getattr(importlib.import_module(self.elsewhere[name]), name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cnnkern.__version__, package_name="cnnkern")
def main() -> None:
    """Hand-written convolution kernels for PyTorch."""


@main.command()
def info() -> None:
    """Versions, instruction sets, kernels and backends, and why one is missing."""
    click.echo(cnnkern.info())


@main.command()
@click.argument("problem")
def explain(problem: str) -> None:
    """Which kernel runs PROBLEM, why, and why each other one does not.

    PROBLEM is a problem string, for example fprop-f32-n1c64h56w56-k64r3s3-p1
    """
    try:
        click.echo(cnnkern.explain(problem))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="PROBLEM") from error
