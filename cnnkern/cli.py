"""The command ``cnnkern``."""

from __future__ import annotations

import importlib
from typing import ClassVar

import cnnkern
from cnnkern.info import kernel_table

try:
    import click
except ImportError:
    raise SystemExit("the command needs click: pip install 'cnnkern[cli]'") from None


class _Commands(click.Group):
    """Commands of which some live in files of their own, which may have more dependencies: imported when asked for."""

    elsewhere: ClassVar = {
        "bench": "cnnkern.bench.cli",
        "compare": "cnnkern.bench.compare_nets",
        "module": "cnnkern.summary.commands",
        "summary": "cnnkern.summary.commands",
        "train": "cnnkern.training.cli",
        "tune": "cnnkern.bench.tune",
    }

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *self.elsewhere})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.elsewhere:
            return super().get_command(context, name)
        try:
            return getattr(importlib.import_module(self.elsewhere[name]), name)
        except ModuleNotFoundError as error:
            return _missing(name, f"{error}: pip install 'cnnkern[{'train' if name == 'train' else 'bench'}]'")


def _missing(name: str, fix: str) -> click.Command:
    """What stands for a command whose dependencies are not installed: it is listed, and fails saying what to do."""

    def fail(arguments: tuple[str, ...]) -> None:
        raise click.ClickException(fix)

    takes_anything = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
    return click.Command(
        name, callback=fail, params=[takes_anything], help=fix, context_settings={"ignore_unknown_options": True}
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cnnkern.__version__, package_name="cnnkern")
def main() -> None:
    """Hand-written convolution kernels for PyTorch."""


@main.command()
def info() -> None:
    """Versions, instruction sets, kernels and backends, and why one is missing."""
    click.echo(cnnkern.info())


@main.command()
def kernels() -> None:
    """Every family, direction, backend and dtype that there is a kernel for."""
    click.echo(kernel_table())


@main.command()
@click.argument("pattern", default="*")
def models(pattern: str) -> None:
    """The architectures whose names fit PATTERN (all; for example 'resnet*'), and what each costs."""
    from cnnkern import models

    click.echo(models.table(pattern))


@main.command()
@click.argument("problem")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where the tensors are.")
def explain(problem: str, device: str) -> None:
    """Which kernel runs PROBLEM, why, and why each other one does not.

    PROBLEM is a problem string, for example fprop-f32-n1c64h56w56-k64r3s3-p1
    """
    try:
        click.echo(cnnkern.explain(problem, device))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="PROBLEM") from error
