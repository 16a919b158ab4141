"""Each CUDA kernel by itself, in a process of its own: ``make gpu STAGE=kernels``.

A kernel that hangs, faults or is wrong is told by name, with the first problem where it is, and hurts no other.
Problems go from one tile and one step to many tiles, one feature at a time. Hopper's primitives come before the kernels
that are made of them (tests/simt/test_sm90.cpp, csrc/cuda/driver.cpp). Nothing of the package is imported, so that
``python bench/kernels.py`` can be the first thing on a new machine.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
SECONDS = 60  # of a process
PROCESSES = 8  # at once

SHAPES = (
    "n1c64h8w8-k64r1s1",  # a tile, a step
    "n2c64h16w16-k256r1s1",
    "n2c256h9w9-k136r1s1",  # steps; tails of pixels and maps
    "n1c8h5w7-k8r3s3-p1",  # taps; the least that vectors can have
    "n2c64h12w12-k64r3s3-p1",
    "n3c72h13w11-k200r3s3-p1",
    "n1c64h16w16-k64r1s1-u2",  # strides: parities that no tap meets
    "n16c16h10w10-k16r2s2-u2-l2",
    "n2c64h15w15-k128r3s3-u2-p1",
    "n1c32h20w18-k64r5s3-u2x1-p2x0x1x3-l1x2",  # rows and columns told apart
    "n2c64h12w12-k64r3s3-p1-xs72-ys80",  # pixel strides
    "n2c64h12w12-k64r3s3-p1-shift-act:relu",
    "n2c64h12w12-k200r3s3-p1-scale-shift-residual-act:relu",
    "n2c64h12w12-k64r3s3-p1-xscale-xshift-xact:relu",
    "n1c3h9w9-k6r3s3-p1",  # direct
    "n2c3h40w40-k64r3s3-p1",
    "n2c3h41w41-k32r3s3-u2-p1",
    "n2c3h41w41-k64r7s7-u2-p3",
    "n2c3h59w59-k64r11s11-u4-p2",
    *(
        f"n2c72h17w17-k72r{size}s{size}-u{stride}-p{size // 2}-g72"  # depthwise
        for size in (3, 5, 7)
        for stride in (1, 2)
    ),
    "n1c12h9w9-k12r2s3-u1x2-l2-g12",
    *(f"n2c128h12w12-k128r3s3-u{stride}-p1-g{groups}" for groups in (32, 16, 8, 4) for stride in (1, 2)),  # grouped
    "n1c40h9w9-k40r3s3-p1-g2",
    "n16c64h28w28-k512r3s3-p1",  # more tiles than multiprocessors
    "n16c128h28w28-k512r1s1-shift-residual-act:relu",
    "n16c256h28w28-k256r3s3-u2-p1",
)


@click.command()
@click.option(
    "--build",
    type=click.Path(path_type=Path),
    default=ROOT / "build" / "gpu",
    show_default=True,
    help="Directory of the programs; they are built where they are not there.",
)
@click.option("--only", default="", help="Part of a name.")  # fmt: skip
def main(build: Path, only: str) -> None:
    """Runs the primitives and the kernels; ends with 1 if one of them is wrong."""
    programs = [build / name for name in ("cuda_sm90_test", "cuda_driver")]
    if not all(program.exists() for program in programs):
        make(build)
    primitives, driver = programs
    cases = [(name, (str(primitives), name), "") for name in listed(primitives)]
    cases += [(name, (str(driver), "--tf32"), problems(name)) for name in listed(driver)]
    cases = [case for case in cases if only in case[0]]
    wrong = 0
    with ThreadPoolExecutor(PROCESSES) as pool:
        for (name, *_), why in zip(cases, pool.map(lambda case: why_wrong(*case[1:]), cases), strict=True):
            click.echo(f"{name}: {why or 'ok'}")
            wrong += why != ""
    click.echo(f"{len(cases)} cases, {wrong} wrong")
    raise SystemExit(wrong > 0)


def make(build: Path) -> None:
    """Compiles the programs."""
    configure = ("-DCNNKERN_CPU=OFF", "-DCNNKERN_CUDA=ON")
    subprocess.run(("cmake", "-S", ROOT, "-B", build, *configure), check=True)
    targets = ("cuda_sm90_test", "cuda_driver")
    subprocess.run(("cmake", "--build", build, "--parallel", str(os.cpu_count()), "--target", *targets), check=True)


def listed(program: Path) -> list[str]:
    """What a program can run."""
    return subprocess.run((program, "--list"), capture_output=True, text=True, check=True).stdout.splitlines()


def problems(kernel: str) -> str:
    """The driver's input: the kernel on every problem of its direction and type."""
    direction, dtype = kernel.split("_nhwc_")[0].split("_")[-2:]
    own = [shape for shape in SHAPES if direction == "fprop" or ("act" not in shape and "residual" not in shape)]
    return "".join(f"{direction}-{dtype}-{shape} {kernel}\n" for shape in own)


def why_wrong(command: Sequence[str], given: str, seconds: float = SECONDS) -> str:
    """Empty, or what went wrong first in a process that reads `given`."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(given, seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            return f"time was up: {last_line(said)}"
    if process.returncode not in (0, 1):
        return f"exit {process.returncode}: {last_line(said)}"
    if process.returncode == 1:
        return next((line for line in said.splitlines() if "WRONG" in line), " ".join(said.split()))
    for_this_gpu = given and "compute capability" not in said
    return "it computes none of the problems" if for_this_gpu and " ok" not in said else ""


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "nothing was said")


if __name__ == "__main__":
    main()
