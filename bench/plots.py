"""The report's plots as inline SVG: nothing is loaded, and every dot tells its row when pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cnnkern.bench.record import Row
from cnnkern.bench.roofline import Ceilings, bytes_moved
from cnnkern.bench.suites import FAMILIES
from cnnkern.problem import ConvProblem

WIDTH, HEIGHT, MARGIN = 900, 320, 48
COLOURS = dict(zip(FAMILIES, ("#1f6fb4", "#d1495b", "#2a9d5c", "#8e5bb5", "#e08a1e", "#6b6b6b"), strict=True))


@dataclass(frozen=True)
class Axis:
    """A logarithmic scale from ``low`` to ``high`` onto the pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value; one off the scale is drawn at its end."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


def text(x: float, y: float, label: str, anchor: str = "middle") -> str:
    """A label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(label)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    """A line in the style of the class ``kind``."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def dot(x: float, y: float, row: Row) -> str:
    """A row in the colour of its family."""
    label = escape(f"{row.problem}\n{row.kernel}\n{row.warm.ratio.value:.2f} times {row.warm.peer_name}")
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[row.family]}"><title>{label}</title></circle>'


def canvas(parts: Sequence[str]) -> str:
    """The whole plot."""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def legend() -> str:
    """The colours of the families, for all plots."""
    return " ".join(f'<span style="color:{colour}">&#9679;</span> {family}' for family, colour in COLOURS.items())


def ratios(rows: Sequence[Row]) -> str:
    """The rows' ratios to the vendor from the least to the greatest, with their intervals; above the line is faster."""
    ordered = sorted(rows, key=lambda row: row.warm.ratio.value)
    low = min(0.5, *(row.warm.ratio.low for row in ordered))
    high = max(2.0, *(row.warm.ratio.high for row in ordered))
    y = Axis(low, high, HEIGHT - MARGIN, 12)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    parts = [line(MARGIN, y(tick), WIDTH, y(tick), "one" if tick == 1 else "grid") for tick in ticks]
    parts += [text(MARGIN - 6, y(tick) + 4, f"{tick:g}", "end") for tick in ticks]
    step = (WIDTH - MARGIN) / len(ordered)
    for position, row in enumerate(ordered):
        x = MARGIN + (position + 0.5) * step
        ratio = row.warm.ratio
        parts += [line(x, y(ratio.low), x, y(ratio.high), "interval"), dot(x, y(ratio.value), row)]
    return canvas([*parts, text(WIDTH / 2, HEIGHT - 12, "layers, from the least to the greatest ratio to the vendor")])


def intensity(row: Row) -> float:
    """FLOP per byte that must be moved."""
    problem = ConvProblem.parse(row.problem)
    return problem.flops / bytes_moved(problem)


def roofline(rows: Sequence[Row], ceilings: Ceilings) -> str:
    """GFLOP/s over arithmetic intensity, under the ceilings of the arithmetic and of copies from cache and memory."""
    peak = ceilings.flops[rows[0].dtype] / 1e9
    rates = {"memory": ceilings.memory / 1e9, "cache": max(ceilings.cached.values()) / 1e9}
    x = Axis(0.5, 1000, MARGIN, WIDTH - 12)
    y = Axis(peak / 200, peak * 1.3, HEIGHT - MARGIN, 12)
    parts = [line(x(tick), y.start, x(tick), y.end) for tick in (1, 10, 100, 1000)]
    parts += [text(x(tick), HEIGHT - MARGIN + 16, f"{tick:g}") for tick in (1, 10, 100, 1000)]
    parts += [line(x.start, y(tick), x.end, y(tick)) for tick in (peak / 100, peak / 10)]
    parts += [text(MARGIN - 6, y(tick) + 4, f"{tick:.3g}", "end") for tick in (peak / 100, peak / 10, peak)]
    parts.append(line(x(peak / rates["cache"]), y(peak), x.end, y(peak), "roof"))
    for name, rate in rates.items():
        parts.append(line(x(0.5), y(rate * 0.5), x(peak / rate), y(peak), "roof"))
        parts.append(text(x(0.6), y(rate * 0.6) - 6, name, "start"))
    parts += [dot(x(intensity(row)), y(row.gflops), row) for row in rows]
    return canvas([*parts, text(WIDTH / 2, HEIGHT - 12, "FLOP per byte of x, w and y; upwards GFLOP/s")])
