"""The command ``cnnkern bench``."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cnnkern.backends import why_no_gpu
from cnnkern.bench import compare as comparing
from cnnkern.bench import fused as fused_layers
from cnnkern.bench import models as whole_models
from cnnkern.bench import networks, report, run, suites, summary
from cnnkern.bench import overhead as small_calls
from cnnkern.bench.record import Record, Row, WholeRow
from cnnkern.problem import DIRECTIONS, DTYPES, ConvProblem

STYLES = {"faster": "green", "slower": "red", "same": "", "undecided": "dim"}
OUT = Path("cnnkern-bench")
SUITES_OF = {"cpu": "default", "cuda": "gpu"}
BUSY = 0.5  # the load average of a machine that does little else is below this
REPLACES = "In place of the suite's own; may be repeated."

out_option = click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory of the report.")
threads_option = click.option("--threads", type=click.IntRange(1), help="Threads of both sides; default: torch's.")
dtype_option = click.option("--dtype", "dtypes", multiple=True, type=click.Choice(list(DTYPES)), help=REPLACES)
batch_option = click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help=REPLACES)

device_option = click.option(
    "--device", "where", type=click.Choice(["cpu", "cuda"]), help="Default: a GPU if there is one that has kernels."
)


def budget_option(seconds: int) -> Callable:
    """How long a command may measure."""
    return click.option("--budget", type=float, default=seconds, show_default=True, help="Seconds to spend on it.")


class Percent(click.ParamType):
    """5% as 0.05."""

    name = "PERCENT"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> float:
        """The share."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", value)
        return float(match[1]) / 100 if match else self.fail(f"{value!r} is not a percentage like 5%", param, context)


class Suite(click.ParamType):
    """The name of a suite, or a problem string."""

    name = "SUITE|PROBLEM"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str | ConvProblem:
        """The name, or the problem."""
        if value in suites.SUITES:
            return value
        try:
            return ConvProblem.parse(value)
        except ValueError as error:
            self.fail(f"{value!r} is none of {', '.join(suites.SUITES)}, and no problem: {error}", param, context)


@click.group(invoke_without_command=True)
@click.option("--suite", type=Suite(), help="A suite, a network or a problem; default: default, on a GPU gpu.")
@click.option("--direction", "directions", multiple=True, type=click.Choice(DIRECTIONS), help=REPLACES)
@dtype_option
@batch_option
@click.option("--kernel", metavar="REGEX", help="Each able kernel whose name matches, not the dispatcher's choice.")
@device_option
@threads_option
@budget_option(210)
@out_option
@click.pass_context
def bench(
    context: click.Context,
    suite: str | ConvProblem | None,
    directions: Sequence[str],
    dtypes: Sequence[str],
    batches: Sequence[int],
    kernel: str | None,
    where: str | None,
    threads: int | None,
    budget: float,
    out: Path,
) -> None:
    """The kernels against the vendor library, layer by layer."""
    if context.invoked_subcommand:
        return
    where = where or best_device()
    cases = chosen_cases(suite or SUITES_OF[where], directions, dtypes, batches)
    record = new_record(threads, where)
    with kept(record, "layers", out), rows_shown(len(cases)) as show:
        run.measure(record, cases, kernel, budget, show, where)
    console = new_console()
    console.print(means_table(record), losses_table(record), outcomes_table(record))
    finish(record, "layers", out)


@bench.command()
@click.option("--model", "names", multiple=True, type=click.Choice(networks.names()), default=whole_models.CONVERTED)
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=whole_models.BATCHES)
@click.option("--against", multiple=True, type=click.Choice(list(whole_models.PEERS)), default=("eager",))
@click.option("--dtype", type=click.Choice(["f32", "bf16", "f16"]), default="f32", show_default=True)
@device_option
@threads_option
@budget_option(150)
@out_option
def models(
    names: Sequence[str], batches: Sequence[int], against: Sequence[str], dtype: str, where: str | None,
    threads: int | None, budget: float, out: Path,
) -> None:  # fmt: skip
    """Converted networks against torch eager, or torch.compile with max-autotune."""
    where = where or best_device()
    record = new_record(threads, where)
    with kept(record, "models", out), rows_shown(len(names) * len(batches) * len(against)) as show:
        whole_models.measure(record, names, batches, against, budget, show, where, dtype)
    finish(record, "models", out)


@bench.command()
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=fused_layers.BATCHES)
@threads_option
@budget_option(30)
@out_option
def fused(batches: Sequence[int], threads: int | None, budget: float, out: Path) -> None:
    """The fused depthwise-separable layers against two convolutions each."""
    record = new_record(threads)
    with rows_shown(2 * len(batches) * len(fused_layers.pairs())) as show:
        fused_layers.measure(record, batches, budget, show)
    finish(record, "fused", out)


@bench.command()
@threads_option
@budget_option(6)
@out_option
def overhead(threads: int | None, budget: float, out: Path) -> None:
    """One small call of cnnkern.Conv2d against nn.Conv2d."""
    record = new_record(threads)
    with rows_shown(len(small_calls.SETTINGS)) as show:
        small_calls.measure(record, budget, show)
    finish(record, "overhead", out)


@bench.command()
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("after", type=click.Path(exists=True, path_type=Path))
@click.option("--fail-if", "allowed", type=Percent(), help="Exit with 1 if a row lost more than this for certain.")
def compare(before: Path, after: Path, allowed: float | None) -> None:
    """What changed from BEFORE to AFTER: records, or directories of them."""
    old, new = report.load(before), report.load(after)
    console = new_console()
    if old.machine["cpu"] != new.machine["cpu"]:
        console.print(f"different machines: {old.machine['cpu']} and {new.machine['cpu']}", style="yellow")
    changes, gone = comparing.changes(old, new), comparing.missing(old, new)
    table = new_table("Ratios to the vendor", "row", "before", "after", "change", "certain")
    for change in changes:
        table.add_row(
            change.name,
            f"{change.before.value:.2f}",
            f"{change.after.value:.2f}",
            f"{change.factor - 1:+.1%}",
            "yes" if change.certain else "",
        )
    console.print(table)
    mean = summary.geometric_mean(change.factor for change in changes)
    console.print(f"{len(changes)} rows, geometric mean {mean - 1:+.1%}")
    for name in gone:
        console.print(f"only before: {name}", style="red", markup=False)
    if allowed is not None and (gone or comparing.failures(changes, allowed)):
        sys.exit(1)


@bench.command("report")
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path), default=OUT)
@click.option("--readme", type=click.Path(exists=True, path_type=Path), help="Also write the table in this README.")
def make_report(results: Path, readme: Path | None) -> None:
    """Makes the reports of a directory of records anew."""
    click.echo(report.write(results))
    if readme:
        report.update_readme(readme, report.load(results))


def first_line(text: str) -> str:
    """What matters most of a reason."""
    return text.partition("\n")[0]


def chosen_cases(
    suite: str | ConvProblem, directions: Sequence[str], dtypes: Sequence[str], batches: Sequence[int]
) -> list[suites.Case]:
    """The cases of the command line."""
    if isinstance(suite, ConvProblem):
        return [suites.Case(suite, ())]
    return suites.cases(suites.parts(suite, directions, dtypes, batches))


def best_device() -> str:
    """The type of device that is measured if none is named."""
    return "cpu" if why_no_gpu() else "cuda"


def new_record(threads: int | None, where: str = "cpu") -> Record:
    """An empty record, after the number of threads is set."""
    if threads:
        torch.set_num_threads(threads)
    with torch.device(where):
        record = Record(command=shlex.join(["cnnkern", *sys.argv[1:]]))
    warn_if_busy(record.machine["load"])
    return record


def warn_if_busy(load: float) -> None:
    """Says so where others use the machine too."""
    if load > BUSY:
        click.secho(f"The machine is busy (load {load:.1f}): expect wide intervals.", fg="yellow")


@contextmanager
def lines_shown(count: int) -> Iterator[Callable[[str, str], None]]:
    """A progress bar of ``count`` steps; what is yielded prints a line in a style above it and takes a step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=new_console()) as progress:
        task = progress.add_task("measuring", total=count)

        def show(line: str, style: str) -> None:
            progress.console.print(line, style=style, markup=False, highlight=False)
            progress.advance(task)

        yield show


@contextmanager
def rows_shown(count: int) -> Iterator[Callable[[Row | WholeRow], None]]:
    """A progress bar of ``count`` steps; what is yielded prints a row above it and takes a step."""
    with lines_shown(count) as show:
        yield lambda row: show(describe(row), STYLES[row.warm.ratio.verdict])


def describe(row: Row | WholeRow) -> str:
    """A measurement in one line: no ratio where there is a fault."""
    name = f"{row.problem:<52} {row.kernel}" if isinstance(row, Row) else f"{row.name}, {row.setting}"
    if row.fault:
        return f"{name} WRONG: {row.fault}"
    warm = row.warm
    times = f"{report.duration(warm.own.median):>8} against {report.duration(warm.peer.median):>8}"
    return f"{name:<104} {times}  {warm.ratio.value:5.2f}  {warm.ratio.verdict}"


def new_console() -> Console:
    """Wide enough for the tables where what is printed goes to no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


def new_table(title: str, *columns: str) -> Table:
    """An empty table with the look of all."""
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)


def means_table(record: Record) -> Table:
    """Geometric means by part and family."""
    table = new_table("Geometric means", "layers", "family", "rows", "ratio warm", "ratio cold", "least", "slower")
    for mean in summary.means(record.right):
        figures = (f"{figure:.2f}" for figure in (mean.warm, mean.cold, mean.worst))
        table.add_row(str(mean.part), mean.family, str(mean.rows), *figures, str(mean.slower))
    return table


def losses_table(record: Record) -> Table:
    """The rows where the vendor is faster."""
    table = new_table("Losses", "problem", "used by", "kernel", "ratio warm", "ratio cold")
    for row in summary.losses(record.right):
        ratios = (f"{comparison.ratio.value:.2f}" for comparison in (row.warm, row.cold))
        table.add_row(row.problem, report.where_used(row), row.kernel, *ratios)
    return table


def outcomes_table(record: Record) -> Table:
    """The bars that the record has rows for."""
    table = new_table("Bars", "bar", "measure", "rows", "wanted", "measured", "")
    for outcome in summary.outcomes(record):
        figures = (str(outcome.rows), f"{outcome.at_least:.2f}", f"{outcome.measured:.2f}")
        table.add_row(outcome.title, outcome.kind, *figures, "met" if outcome.met else "not met")
    return table


@contextmanager
def kept(record: Record, kind: str, out: Path) -> Iterator[None]:
    """Saves the record at the end, whatever that is."""
    try:
        yield
    finally:
        record.save(out / f"{kind}.json")


def finish(record: Record, kind: str, out: Path) -> None:
    """Tells what is missing, saves the record, makes the reports, and exits with 1 if a result was wrong or failed."""
    for reason, count in Counter(map(first_line, record.missing.values())).items():
        new_console().print(f"{count} not measured: {reason}", style="yellow", markup=False)
    record.save(out / f"{kind}.json")
    click.echo(f"report: {report.write(out)}")
    failed = any(reason.startswith(run.FAILED) for reason in record.missing.values())
    if failed or any(row.fault for row in record.everything):
        sys.exit(1)
