"""Curves of a run as SVG files that stand alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnkern.bench.plots import line, text
from cnnkern.training.monitoring import Epoch

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 42, 36
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8e5bb5", "#e08a1e", "#6b6b6b")
STYLE = """text { font: 11px sans-serif; fill: #333 } .grid { stroke: #ddd }
g text { fill: currentColor } polyline { fill: none; stroke: currentColor; stroke-width: 1.5 }"""
TICKS = 4

Curves = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Scale:
    """Linear axes: epochs from 1 to ``points`` across, values from ``low`` to ``low + span`` upwards."""

    points: int
    low: float
    span: float

    @classmethod
    def of(cls, curves: Curves) -> Scale:
        """The axes that the finite values of all curves fit on."""
        values = [value for curve in curves.values() for value in curve if math.isfinite(value)] or [0.0]
        return cls(max(map(len, curves.values())), min(values), (max(values) - min(values)) or 1.0)

    def x(self, index: int) -> float:
        """The pixel of an epoch, counted from 0."""
        return LEFT + (WIDTH - LEFT - RIGHT) * index / max(self.points - 1, 1)

    def y(self, value: float) -> float:
        """The pixel of a value."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / self.span


def panel(title: str, curves: Curves) -> str:
    """Curves over the epochs with axes and a legend, as the parts of an SVG; what is not finite is left out."""
    scale = Scale.of(curves)
    parts = [text(WIDTH / 2, 14, title), text(WIDTH / 2, HEIGHT - 6, "epoch"), *_axes(scale)]
    for position, (name, curve) in enumerate(curves.items()):
        points = [(scale.x(index), scale.y(value)) for index, value in enumerate(curve) if math.isfinite(value)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        label = text(LEFT + (WIDTH - LEFT - RIGHT) * (position + 0.5) / len(curves), 32, name)
        parts.append(f'<g style="color:{COLOURS[position % len(COLOURS)]}"><polyline points="{path}"/>{label}</g>')
    return "".join(parts)


def _axes(scale: Scale) -> list[str]:
    levels = [scale.low + scale.span * tick / TICKS for tick in range(TICKS + 1)]
    across = [line(LEFT, scale.y(level), WIDTH - RIGHT, scale.y(level)) for level in levels]
    values = [text(LEFT - 5, scale.y(level) + 4, f"{level:.3g}", "end") for level in levels]
    epochs = sorted({0, (scale.points - 1) // 2, scale.points - 1})
    return [*across, *values, *(text(scale.x(index), HEIGHT - BOTTOM + 14, str(index + 1)) for index in epochs)]


def svg(panels: Sequence[str]) -> str:
    """Panels side by side as one image."""
    placed = [f'<svg x="{WIDTH * index}" width="{WIDTH}">{part}</svg>' for index, part in enumerate(panels)]
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}"'
    white = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{white}{"".join(placed)}</svg>\n'


def write_curves(path: Path, history: Sequence[Epoch]) -> None:
    """Loss, accuracy, the gap between the sets, the rate and the update ratio over the epochs."""
    loss = {"train": [row.train_loss for row in history], "validation": [row.validation_loss for row in history]}
    accuracy = {
        "train": [row.train_accuracy for row in history],
        "validation": [row.validation_accuracy for row in history],
        "gap": [row.gap for row in history],
    }
    panels = [
        panel("loss", loss),
        panel("accuracy", accuracy),
        panel("learning rate", {"rate": [row.lr for row in history]}),
        panel("update / weight", {"median": [row.update_ratio for row in history]}),
    ]
    path.write_text(svg(panels), encoding="utf-8")
