"""Nets side by side: operations, parameters, published error, and time and memory of a forward pass on this machine.

The chart of operations against error with parameters as areas is that of Canziani, Paszke and Culurciello (arXiv
1605.07678, figure 2).
"""

from __future__ import annotations

import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import cnnkern
from cnnkern.bench import report
from cnnkern.bench.chart import Chart, Dot, save
from cnnkern.bench.record import describe_machine, describe_versions, now
from cnnkern.summary import nets
from cnnkern.summary.nets import Net

FORWARDS = 5  # timed, after one that is not
AREA = 28  # pixels of a dot for a million parameters


@dataclass(frozen=True)
class Measured:
    """One net in a process of its own: median seconds of a forward pass, and the most memory that it adds, in bytes."""

    seconds: float
    memory: int | None
    """Weights included; None where the system does not tell."""


@dataclass(frozen=True)
class Compared:
    """A net and what it costs; sizes and counts are of one image, what is measured is of the batch."""

    name: str
    input: tuple[int, ...]
    parameters: int
    """Those that the pass reads: no auxiliary classifier's."""
    flops: int
    """Multiply-adds of convolutions and fully connected layers."""
    megabytes: float
    """Outputs of all layers, in 2^20 bytes."""
    top5: float | None
    """Published error in percent."""
    source: str
    measured: Measured

    def note(self, batch: int) -> str:
        """The figures in words."""
        memory = f", {self.measured.memory / 2**20:.0f} MB" if self.measured.memory else ""
        error = f", top-5 error {self.top5}% ({self.source})" if self.top5 else ""
        costs = f"{self.parameters / 1e6:.1f}M parameters, {self.flops / 1e9:.2f} Gflop{error}"
        return f"{self.name}: {costs}; batch {batch}: {report.duration(self.measured.seconds)}{memory}"


@dataclass
class Comparison:
    """The nets, and where and when they were measured."""

    batch: int
    nets: list[Compared] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=describe_machine)
    versions: dict[str, str] = field(default_factory=describe_versions)
    date: str = field(default_factory=now)

    @property
    def charts(self) -> dict[str, Chart]:
        """Operations and error, of the nets with a published error; time and memory, where memory is told."""
        errors = [self.dot(net, net.flops / 1e9, net.top5) for net in self.nets if net.top5]
        costs = [
            self.dot(net, 1e3 * net.measured.seconds, net.measured.memory / 2**20)
            for net in self.nets
            if net.measured.memory
        ]
        where = f"batch {self.batch}, {self.machine['cpu']}, {self.machine['threads']} threads, {self.date}"
        largest = max(self.nets, key=lambda net: net.parameters)
        area = f"area: parameters, {largest.name} has {largest.parameters / 1e6:.1f}M"
        return {
            "error": Chart("Gflop (multiply-adds) of one image", "published top-5 error in %", area, tuple(errors)),
            "cost": Chart("ms of a forward pass", "MB of memory", f"{area}; {where}", tuple(costs)),
        }

    def dot(self, net: Compared, x: float, y: float) -> Dot:
        """A net in a chart."""
        return Dot(net.name, x, y, net.parameters / 1e6 * AREA, net.note(self.batch))

    def write(self, directory: Path) -> Path:
        """Writes compare.json, the charts as .svg and .png, and compare.html, the path of which it returns."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "compare.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        svgs = [save(chart, directory / name) for name, chart in self.charts.items() if chart.dots]
        path = directory / "compare.html"
        path.write_text(
            report.environment().get_template("compare.html").render(comparison=self, svgs=svgs, forwards=FORWARDS)
        )
        return path


def compare(names: Sequence[str], batch: int, threads: int, progress: Callable[[Compared], None]) -> Comparison:
    """Counts and measures each net, and tells ``progress`` of it."""
    comparison = Comparison(batch)
    for name in names:
        net = nets.find(name)
        counted = cnnkern.summary(name, net.input)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            measured = alone.submit(measure, net, batch, threads).result()
        row = Compared(
            name=name.rpartition(":")[2],
            input=net.input,
            parameters=counted.total().parameters,
            flops=counted.total("conv", "fc").flops,
            megabytes=counted.total().megabytes,
            top5=net.top5,
            source=net.source,
            measured=measured,
        )
        comparison.nets.append(row)
        progress(row)
    return comparison


def measure(net: Net, batch: int, threads: int) -> Measured:
    """Forward passes of ``batch`` random images in eval mode, float32 and channels_last.

    To be called in a new process: the memory is what the process grows by from before the model is built, at most.
    """
    torch.set_num_threads(threads)
    before = resident("VmRSS")
    model: Any = net.build()
    model.eval().to(memory_format=torch.channels_last)
    images = torch.randn(batch, *net.input).contiguous(memory_format=torch.channels_last)
    watched = forget_peak()
    with torch.inference_mode():
        model(images)
        seconds = statistics.median(timed(partial(model, images)) for _ in range(FORWARDS))
    peak = resident("VmHWM")
    return Measured(seconds, peak - before if watched and peak is not None and before is not None else None)


def timed(call: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident(field: str) -> int | None:
    """Bytes of a field of Linux's /proc/self/status: VmRSS is what is in memory now, VmHWM the most there was."""
    path = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s*(\d+) kB", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(found[1]) * 1024 if found else None


def forget_peak() -> bool:
    """VmHWM starts anew from VmRSS (proc(5), clear_refs); False where the system does not let it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
