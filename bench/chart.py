"""Dots with names on two logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from cnnkern.bench import canvas
from cnnkern.bench.canvas import COLOURS, FONT, Canvas
from cnnkern.bench.plots import Axis

WIDTH, HEIGHT, MARGIN = 900, 520, 64
LETTER = 0.58 * FONT  # about the width of one


@dataclass(frozen=True)
class Dot:
    """A point whose circle has ``area`` pixels; ``note`` is shown when it is pointed at."""

    name: str
    x: float
    y: float
    area: float
    note: str


@dataclass(frozen=True)
class Chart:
    """What is drawn; ``caption`` explains the areas."""

    x_title: str
    y_title: str
    caption: str
    dots: tuple[Dot, ...]


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from ``low`` to ``high``."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**decade for decade in decades for digit in (1, 2, 5) if low <= digit * 10.0**decade <= high]


def axis_of(values: Sequence[float], start: float, end: float) -> Axis:
    """A scale that has room on both sides of the values."""
    return Axis(min(values) / 1.6, max(values) * 1.6, start, end)


def draw(chart: Chart, on: Canvas) -> None:
    """The grid, the dots from the largest to the smallest, their names, and the titles."""
    if chart.dots:
        x = axis_of([dot.x for dot in chart.dots], MARGIN, WIDTH - 12)
        y = axis_of([dot.y for dot in chart.dots], HEIGHT - MARGIN, 36)
        draw_grid(x, y, on)
        draw_dots(chart.dots, x, y, on)
    on.text(WIDTH / 2, 20, f"{chart.y_title}, over {chart.x_title}")
    on.text(WIDTH / 2, HEIGHT - 12, chart.caption)


def draw_grid(x: Axis, y: Axis, on: Canvas) -> None:
    """Lines at the ticks, with their numbers."""
    for tick in ticks(x.low, x.high):
        on.line([(x(tick), y.start), (x(tick), y.end)])
        on.text(x(tick), y.start + 18, f"{tick:g}")
    for tick in ticks(y.low, y.high):
        on.line([(x.start, y(tick)), (x.end, y(tick))])
        on.text(MARGIN / 2, y(tick) + 4, f"{tick:g}")


def draw_dots(dots: Sequence[Dot], x: Axis, y: Axis, on: Canvas) -> None:
    """Large dots before small ones; a name right of its dot, left, above or below: where it covers no other."""
    named: list[Box] = []
    for dot, colour in sorted(zip(dots, cycle(COLOURS), strict=False), key=lambda pair: -pair[0].area):
        at_x, at_y, radius = x(dot.x), y(dot.y), math.sqrt(dot.area / math.pi)
        on.circle(at_x, at_y, radius, colour, dot.note)
        half = len(dot.name) * LETTER / 2
        aside, above, below = radius + half + 3, at_y - radius - 4, at_y + radius + FONT
        places = [(at_x + aside, at_y + 4), (at_x - aside, at_y + 4), (at_x, above), (at_x, below)]
        boxes = [Box(column - half, column + half, row) for column, row in places]
        free = [box for box in boxes if box.is_inside and not any(box.meets(other) for other in named)]
        box = (free or boxes)[0]
        named.append(box)
        on.text((box.left + box.right) / 2, box.baseline, dot.name)


class Box(NamedTuple):
    """Where a name is."""

    left: float
    right: float
    baseline: float

    @property
    def is_inside(self) -> bool:
        """Whether none of it is cut off."""
        return self.left >= MARGIN and self.right <= WIDTH

    def meets(self, other: Box) -> bool:
        """Whether the two would be hard to read."""
        return self.left < other.right and other.left < self.right and abs(self.baseline - other.baseline) < FONT


def save(chart: Chart, path: Path) -> str:
    """Writes ``path``.svg and ``path``.png; returns the SVG."""
    return canvas.save(partial(draw, chart), WIDTH, HEIGHT, path)
