"""What charts and curves are drawn on: the same lines, dots and words as SVG and as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont

FONT = 13
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8e5bb5", "#e08a1e", "#6b6b6b")
GRID, INK = "#e4e4e4", "#444444"
SEE_THROUGH = 0.55  # the opacity of a dot, as dots may overlap
FINE = 2  # pixels of a PNG for one of the drawing

Point = tuple[float, float]


class Canvas(Protocol):
    """Coordinates are pixels from the upper left corner."""

    def line(self, points: Sequence[Point], colour: str = GRID) -> None:
        """A line through points; a curve if it has a colour of its own."""

    def circle(self, x: float, y: float, radius: float, colour: str, note: str) -> None:
        """A dot, with a note for who points at it."""

    def text(self, x: float, y: float, words: str, anchor: str = "middle", colour: str = INK) -> None:
        """Words on the baseline ``y``, whose ``anchor`` (middle or end) is at ``x``."""


class Svg:
    """Stands alone, and tells a dot's note when pointed at."""

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self.parts: list[str] = []

    def line(self, points: Sequence[Point], colour: str = GRID) -> None:
        """As Canvas."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        width = 1 if colour == GRID else 1.5
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')

    def circle(self, x: float, y: float, radius: float, colour: str, note: str) -> None:
        """As Canvas."""
        shape = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="{colour}" fill-opacity="{SEE_THROUGH}"'
        self.parts.append(f"<circle {shape}><title>{escape(note)}</title></circle>")

    def text(self, x: float, y: float, words: str, anchor: str = "middle", colour: str = INK) -> None:
        """As Canvas."""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
        self.parts.append(f"<text {place}>{escape(words)}</text>")

    def __str__(self) -> str:
        view = 'viewBox="0 0 {} {}"'.format(*self.size)
        opening = f'<svg xmlns="http://www.w3.org/2000/svg" {view} role="img" font-family="sans-serif"'
        white = '<rect width="100%" height="100%" fill="white"/>'
        return f'{opening} font-size="{FONT}">{white}{"".join(self.parts)}</svg>\n'


class Png:
    """FINE times as many pixels each way; without the notes."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (FINE * width, FINE * height), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(FINE * FONT)

    def line(self, points: Sequence[Point], colour: str = GRID) -> None:
        """As Canvas."""
        self.draw.line([(FINE * x, FINE * y) for x, y in points], colour, FINE if colour == GRID else FINE + 1)

    def circle(self, x: float, y: float, radius: float, colour: str, note: str) -> None:
        """As Canvas."""
        mask = Image.new("L", self.image.size)
        box = [FINE * at for at in (x - radius, y - radius, x + radius, y + radius)]
        ImageDraw.Draw(mask).ellipse(box, fill=round(255 * SEE_THROUGH))
        self.image.paste(colour, mask=mask)

    def text(self, x: float, y: float, words: str, anchor: str = "middle", colour: str = INK) -> None:
        """As Canvas."""
        self.draw.text((FINE * x, FINE * y), words, colour, self.font, anchor={"middle": "ms", "end": "rs"}[anchor])


def save(draw: Callable[[Canvas], None], width: int, height: int, path: Path) -> str:
    """Has ``path``.svg and ``path``.png drawn; returns the SVG."""
    svg, png = Svg(width, height), Png(width, height)
    draw(svg)
    draw(png)
    path.with_suffix(".svg").write_text(str(svg), encoding="utf-8")
    png.image.save(path.with_suffix(".png"))
    return str(svg)
