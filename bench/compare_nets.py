"""The command ``cnnkern compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch

from cnnkern.bench import report
from cnnkern.bench.cli import lines_shown, new_console, new_table, threads_option, warn_if_busy
from cnnkern.bench.complexity import Comparison
from cnnkern.bench.complexity import compare as compare_nets
from cnnkern.summary.commands import users_models


@click.command()
@click.argument("names", metavar="NET...", nargs=-1, required=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in a forward pass.")
@threads_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("cnnkern-compare"), help="Directory of the report."
)
def compare(names: Sequence[str], batch: int, threads: int | None, out: Path) -> None:
    """Counts, published errors, and time and memory measured here, of nets side by side: a table and charts.

    NET is as for `cnnkern summary`.
    """
    if threads:
        torch.set_num_threads(threads)
    with users_models(), lines_shown(len(names)) as show:
        found = compare_nets(names, batch, torch.get_num_threads(), lambda net: show(net.note(batch), ""))
    new_console().print(table_of(found))
    warn_if_busy(found.machine["load"])
    click.echo(f"report: {found.write(out)}")


def table_of(comparison: Comparison) -> object:
    """The nets as rows."""
    title = f"Batch {comparison.batch}, {comparison.machine['threads']} threads of {comparison.machine['cpu']}"
    columns = ("net", "input", "parameters M", "Gflop", "outputs MB", "top-5 error %", "time", "memory MB")
    table = new_table(title, *columns)
    for net in comparison.nets:
        counts = (f"{net.parameters / 1e6:.2f}", f"{net.flops / 1e9:.3f}", f"{net.megabytes:.1f}")
        error = "-" if net.top5 is None else f"{net.top5:g}"
        memory = "-" if net.measured.memory is None else f"{net.measured.memory / 2**20:.0f}"
        time = report.duration(net.measured.seconds)
        table.add_row(net.name, "x".join(map(str, net.input)), *counts, error, time, memory)
    return table
