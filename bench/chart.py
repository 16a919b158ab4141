"""Dots with names on two logarithmic axes, drawn alike as SVG and as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image, ImageDraw, ImageFont

from cnnkern.bench.plots import Axis

WIDTH, HEIGHT, MARGIN = 900, 520, 64
FONT = 13
LETTER = 0.58 * FONT  # about the width of one
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8e5bb5", "#e08a1e", "#6b6b6b")
GRID, INK = "#e4e4e4", "#444444"
SEE_THROUGH = 0.55  # the opacity of a dot, as dots may overlap
FINE = 3  # pixels of a PNG for one of the chart


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


class Canvas(Protocol):
    """What a chart is drawn on: pixels from the upper left corner, texts centred on their baseline."""

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A line of the grid."""

    def circle(self, x: float, y: float, radius: float, colour: str, note: str) -> None:
        """A dot."""

    def text(self, x: float, y: float, words: str) -> None:
        """A label."""


class Svg:
    """Stands alone, and tells a dot's note when pointed at."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """As Canvas."""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GRID}"/>')

    def circle(self, x: float, y: float, radius: float, colour: str, note: str) -> None:
        """As Canvas."""
        shape = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="{colour}" fill-opacity="{SEE_THROUGH}"'
        self.parts.append(f"<circle {shape}><title>{escape(note)}</title></circle>")

    def text(self, x: float, y: float, words: str) -> None:
        """As Canvas."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>')

    def __str__(self) -> str:
        style = f'font-family="sans-serif" font-size="{FONT}" text-anchor="middle" fill="{INK}"'
        opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" {style}>'
        return f'{opening}<rect width="100%" height="100%" fill="white"/>{"".join(self.parts)}</svg>\n'


class Png:
    """FINE times as many pixels each way."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
        self.font = ImageFont.load_default(FONT * FINE)

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """As Canvas."""
        ImageDraw.Draw(self.image).line([FINE * at for at in (x1, y1, x2, y2)], GRID, FINE)

    def circle(self, x: float, y: float, radius: float, colour: str, note: str) -> None:
        """As Canvas, without the note."""
        mask = Image.new("L", self.image.size)
        box = [FINE * at for at in (x - radius, y - radius, x + radius, y + radius)]
        ImageDraw.Draw(mask).ellipse(box, fill=round(255 * SEE_THROUGH))
        self.image.paste(colour, mask=mask)

    def text(self, x: float, y: float, words: str) -> None:
        """As Canvas."""
        ImageDraw.Draw(self.image).text((FINE * x, FINE * y), words, INK, self.font, anchor="ms")


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from ``low`` to ``high``."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**decade for decade in decades for digit in (1, 2, 5) if low <= digit * 10.0**decade <= high]


def axis_of(values: Sequence[float], start: float, end: float) -> Axis:
    """A scale that has room on both sides of the values."""
    return Axis(min(values) / 1.6, max(values) * 1.6, start, end)


def draw(chart: Chart, canvas: Canvas) -> None:
    """The grid, the dots from the largest to the smallest, their names, and the titles."""
    if chart.dots:
        x = axis_of([dot.x for dot in chart.dots], MARGIN, WIDTH - 12)
        y = axis_of([dot.y for dot in chart.dots], HEIGHT - MARGIN, 36)
        draw_grid(x, y, canvas)
        draw_dots(chart.dots, x, y, canvas)
    canvas.text(WIDTH / 2, 20, f"{chart.y_title}, over {chart.x_title}")
    canvas.text(WIDTH / 2, HEIGHT - 12, chart.caption)


def draw_grid(x: Axis, y: Axis, canvas: Canvas) -> None:
    """Lines at the ticks, with their numbers."""
    for tick in ticks(x.low, x.high):
        canvas.line(x(tick), y.start, x(tick), y.end)
        canvas.text(x(tick), y.start + 18, f"{tick:g}")
    for tick in ticks(y.low, y.high):
        canvas.line(x.start, y(tick), x.end, y(tick))
        canvas.text(MARGIN / 2, y(tick) + 4, f"{tick:g}")


def draw_dots(dots: Sequence[Dot], x: Axis, y: Axis, canvas: Canvas) -> None:
    """Large dots before small ones; a name right of its dot, left, above or below: where it covers no other."""
    named: list[Box] = []
    for dot, colour in sorted(zip(dots, cycle(COLOURS), strict=False), key=lambda pair: -pair[0].area):
        at_x, at_y, radius = x(dot.x), y(dot.y), math.sqrt(dot.area / math.pi)
        canvas.circle(at_x, at_y, radius, colour, dot.note)
        half = len(dot.name) * LETTER / 2
        aside, above, below = radius + half + 3, at_y - radius - 4, at_y + radius + FONT
        places = [(at_x + aside, at_y + 4), (at_x - aside, at_y + 4), (at_x, above), (at_x, below)]
        boxes = [Box(column - half, column + half, row) for column, row in places]
        free = [box for box in boxes if box.is_inside and not any(box.meets(other) for other in named)]
        box = (free or boxes)[0]
        named.append(box)
        canvas.text((box.left + box.right) / 2, box.baseline, dot.name)


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
    svg, png = Svg(), Png()
    draw(chart, svg)
    draw(chart, png)
    path.with_suffix(".svg").write_text(str(svg))
    png.image.save(path.with_suffix(".png"))
    return str(svg)
