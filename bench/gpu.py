"""Everything that a machine with a GPU can show, in stages, the most valuable first: `make gpu`.

Each stage is a command of at most nine minutes that writes into the directory of results. A stage that has ended well
is not run again, so that the whole can be resumed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

MINUTES = 9  # of a stage


@dataclass(frozen=True)
class Stage:
    """A command; {out} in it is the directory of results."""

    name: str
    purpose: str
    command: tuple[str, ...]
    under: tuple[str, ...] = ()  # a program that runs it, without which there is nothing to do, and its options


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
BENCH = ("-m", "cnnkern.cli", "bench")
SANITIZER = ("compute-sanitizer", "--error-exitcode", "1")
SMALL = "exact and ((triton and 16x16x16 and f32) or (cuda and bf16))"
MODELS = (*BENCH, "models", "--device", "cuda", "--batch", "32")
STAGES = (
    Stage("tests", "every kernel against the oracle", (*PYTEST, "tests/gpu", "-x")),
    Stage("layers", "layer by layer against cuDNN", (*BENCH, "--device", "cuda", "--budget", "420", "--out", "{out}")),
    Stage("models", "converted networks against eager", (*MODELS, "--budget", "240", "--out", "{out}")),
    Stage("compiled", "the same against torch.compile", (*MODELS, "--against", "compile", "--model", "resnet50",
                                                         "--budget", "60", "--out", "{out}/compiled")),
    Stage("memcheck", "no access out of bounds", (*PYTEST, "tests/gpu", "-k", SMALL), SANITIZER),
    Stage("racecheck", "no race in shared memory", (*PYTEST, "tests/gpu", "-k", SMALL),
          (*SANITIZER, "--tool", "racecheck")),
    Stage("profile", "counters of a layer of each class", ("-m", "cnnkern.bench.profile"),
          ("ncu", "--clock-control", "none", "--set", "basic", "--csv")),
    Stage("tune", "the fastest config of each layer", ("-m", "cnnkern.cli", "tune", "resnet50", "--device", "cuda",
                                                       "--budget", "420")),
)  # fmt: skip


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory of the results.")
@click.option("--stage", "only", multiple=True, type=click.Choice([stage.name for stage in STAGES]))
def main(out: Path, only: tuple[str, ...]) -> None:
    """Runs the stages that have not ended well yet, or those that are named."""
    out.mkdir(parents=True, exist_ok=True)
    failed = [stage.name for stage in STAGES if (not only or stage.name in only) and not run(stage, out, bool(only))]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(stage: Stage, out: Path, again: bool) -> bool:
    """Whether the stage ended well, now or earlier."""
    done = out / f"{stage.name}.done"
    if done.exists() and not again:
        return True
    if stage.under and not shutil.which(stage.under[0]):
        click.echo(f"{stage.name}: skipped, {stage.under[0]} is not here")
        return True
    command = [*stage.under, sys.executable, *(part.format(out=out) for part in stage.command)]
    click.echo(f"{stage.name}: {stage.purpose}")
    start = time.monotonic()
    with (out / f"{stage.name}.log").open("w") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=60 * MINUTES).returncode
        except subprocess.TimeoutExpired:
            code = None
    ending = "time was up" if code is None else f"exit {code}"
    click.echo(f"{stage.name}: {ending} after {time.monotonic() - start:.0f} s, {out / f'{stage.name}.log'}")
    if code == 0:
        done.touch()
    return code == 0


if __name__ == "__main__":
    main()
