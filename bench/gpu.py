"""Everything that a machine with a GPU can show, in stages, the most valuable first: `make gpu`.

Each stage is a command of at most nine minutes that writes into the directory of results. A stage that has ended well
is not run again, so that the whole can be resumed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

MINUTES = 9  # of a stage
GRACE = 20  # of those, seconds to write what has been measured when the time is up
MOST_SHARDS = 16
TAIL = 8  # lines of a log that are shown where something went wrong


@dataclass(frozen=True)
class Stage:
    """A command; {out} in it, and in its environment, is the directory of results."""

    name: str
    purpose: str
    command: tuple[str, ...]
    under: tuple[str, ...] = ()  # a program that runs it, without which there is nothing to do, and its options
    environment: Mapping[str, str] = field(default_factory=dict)
    sharded: bool = False  # several processes share it, each told which part is its own by --shard


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu")
BENCH = ("-m", "cnnkern", "bench", "--device", "cuda")
MODELS = ("-m", "cnnkern", "bench", "models", "--device", "cuda", "--dtype", "bf16", "--batch", "32")
TUNE = ("-m", "cnnkern", "tune", "resnet50", "--device", "cuda")
SANITIZER = ("compute-sanitizer", "--error-exitcode", "1", "--report-api-errors", "no")
SMALL = "exact and ((triton and 16x16x16 and f32) or (cuda and bf16))"
WARPGROUPS = "(exact and triton and 128x64x32 and bf16)"  # whose products read their operands from shared memory
UNTUNED = {"CNNKERN_TUNED": "0"}
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor has memory of its own, beyond which access is an error
STAGES = (
    Stage("kernels", "each CUDA kernel by itself, from its primitives on", ("-m", "cnnkern.bench.kernels")),
    Stage("tests", "every kernel against the oracle", PYTEST, sharded=True),
    Stage("layers", "layer by layer against cuDNN", (*BENCH, "--budget", "400", "--out", "{out}"), environment=UNTUNED),
    Stage("cuda", "the same by the CUDA C++ kernels", (*BENCH, "--budget", "400", "--out", "{out}/cuda"),
          environment={**UNTUNED, "CNNKERN_BACKEND": "cuda"}),
    Stage("models", "converted networks against eager", (*MODELS, "--budget", "240", "--out", "{out}"),
          environment=UNTUNED),
    Stage("compiled", "the same against torch.compile",
          (*MODELS, "--against", "compile", "--model", "resnet50", "--budget", "60", "--out", "{out}/compiled"),
          environment=UNTUNED),
    Stage("memcheck", "no access out of bounds", (*PYTEST, "-k", f"{SMALL} or {WARPGROUPS}"), SANITIZER, UNCACHED,
          sharded=True),
    Stage("racecheck", "no race in shared memory", (*PYTEST, "-k", SMALL), (*SANITIZER, "--tool", "racecheck"),
          sharded=True),
    Stage("profile", "counters of a layer of each class", ("-m", "cnnkern.bench.profile"),
          ("ncu", "--profile-from-start", "off", "--clock-control", "none", "--set", "basic", "--csv")),
    Stage("tune", "the fastest config of each layer",
          (*TUNE, "--dtype", "bf16", "--batch", "32", "--budget", "400"),
          environment={"CNNKERN_TUNED": "{out}/tuned.json"}),
)  # fmt: skip


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory of the results.")
@click.option("--stage", "only", multiple=True, type=click.Choice([stage.name for stage in STAGES]))
def main(out: Path, only: tuple[str, ...]) -> None:
    """Runs the stages that have not ended well yet, or those that are named."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and so would the stages
    out.mkdir(parents=True, exist_ok=True)
    failed = [stage.name for stage in STAGES if (not only or stage.name in only) and not run(stage, out, bool(only))]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(stage: Stage, out: Path, again: bool) -> bool:
    """Whether the stage ended well, now or earlier."""
    done, log = out / f"{stage.name}.done", out / f"{stage.name}.log"
    if done.exists() and not again:
        return True
    if stage.under and not shutil.which(stage.under[0]):
        click.echo(f"{stage.name}: skipped, {stage.under[0]} is not here")
        return True
    command = [*stage.under, sys.executable, *(part.format(out=out) for part in stage.command)]
    own = {name: value.format(out=out) for name, value in stage.environment.items()}
    own |= {"OMP_NUM_THREADS": "1"} if stage.sharded else {}
    environment = os.environ | {"COLUMNS": "160"} | own  # so that pytest says what failed
    click.echo(f"{stage.name}: {stage.purpose}")
    start = time.monotonic()
    codes = run_all(shards(command, log) if stage.sharded else {log: command}, environment)
    endings = ", ".join(sorted({"time was up" if code is None else f"exit {code}" for code in codes.values()}))
    click.echo(f"{stage.name}: {endings} after {time.monotonic() - start:.0f} s, {log}")
    for part, code in codes.items():
        if code != 0:
            click.echo("\n".join(part.read_text().splitlines()[-TAIL:]))
    if stage.sharded:
        log.write_text("".join(part.read_text() for part in codes))
        for part in codes:
            part.unlink()
    if any(code != 0 for code in codes.values()):
        return False
    done.touch()
    return True


def shards(command: list[str], log: Path) -> dict[Path, list[str]]:
    """The command of each of the processes that share a stage's work, by its log."""
    count = min(os.cpu_count() or 1, MOST_SHARDS)
    return {log.with_suffix(f".{i}.log"): [*command, "--shard", f"{i}/{count}"] for i in range(count)}


def run_all(commands: Mapping[Path, list[str]], environment: Mapping[str, str]) -> dict[Path, int | None]:
    """The exit status of each command by its log, None where the time was up; all run at once."""
    deadline = time.monotonic() + 60 * MINUTES - GRACE
    running = {}
    try:
        for log, command in commands.items():
            with log.open("w") as out:
                running[log] = subprocess.Popen(
                    command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
        codes = {log: ended(process, deadline) for log, process in running.items()}
        for log, code in codes.items():
            if code is None:
                os.killpg(running[log].pid, signal.SIGINT)
        for process in running.values():  # to write what it has
            ended(process, deadline + GRACE)
        return codes
    finally:
        for process in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ended(process: subprocess.Popen, deadline: float) -> int | None:
    """The exit status, None where there is none by then."""
    try:
        return process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    main()
