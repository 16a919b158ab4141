"""Curves of a run, as an SVG and a PNG that stand alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cnnkern.bench import canvas
from cnnkern.bench.canvas import COLOURS, Canvas
from cnnkern.training.monitoring import Epoch

WIDTH, HEIGHT = 420, 260  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 42, 36
TICKS = 4

Curves = Mapping[str, Sequence[float]]
"""Values for the epochs from 1 on, by the names in the legend."""


@dataclass(frozen=True)
class Scale:
    """Linear axes: epochs from 1 to ``points`` across, values from ``low`` to ``low + span`` upwards."""

    left: float
    points: int
    low: float
    span: float

    @classmethod
    def of(cls, curves: Curves, left: float) -> Scale:
        """The axes that the finite values of all curves fit on."""
        values = [value for curve in curves.values() for value in curve if math.isfinite(value)] or [0.0]
        return cls(left, max(map(len, curves.values())), min(values), (max(values) - min(values)) or 1.0)

    def x(self, index: int) -> float:
        """The pixel of an epoch, counted from 0."""
        return self.left + (WIDTH - LEFT - RIGHT) * index / max(self.points - 1, 1)

    def y(self, value: float) -> float:
        """The pixel of a value."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / self.span


def save(panels: Mapping[str, Curves], path: Path) -> None:
    """Writes ``path``.svg and ``path``.png: curves over the epochs, a panel for each title, side by side."""
    canvas.save(partial(draw, panels), WIDTH * len(panels), HEIGHT, path)


def draw(panels: Mapping[str, Curves], on: Canvas) -> None:
    """Each panel's axes, legend and curves; what is not finite is left out."""
    for number, (title, curves) in enumerate(panels.items()):
        left = WIDTH * number
        scale = Scale.of(curves, left + LEFT)
        on.text(left + WIDTH / 2, 14, title)
        on.text(left + WIDTH / 2, HEIGHT - 4, "epoch")
        draw_axes(scale, on)
        for position, (name, curve) in enumerate(curves.items()):
            colour = COLOURS[position % len(COLOURS)]
            on.text(scale.left + (WIDTH - LEFT - RIGHT) * (position + 0.5) / len(curves), 32, name, colour=colour)
            points = [(scale.x(index), scale.y(value)) for index, value in enumerate(curve) if math.isfinite(value)]
            on.line(points, colour)


def draw_axes(scale: Scale, on: Canvas) -> None:
    """A line for each of a few values, with the value, and the numbers of the first, middle and last epoch."""
    for tick in range(TICKS + 1):
        value = scale.low + scale.span * tick / TICKS
        on.line([(scale.left, scale.y(value)), (scale.left + WIDTH - LEFT - RIGHT, scale.y(value))])
        on.text(scale.left - 5, scale.y(value) + 4, f"{value:.3g}", "end")
    for index in sorted({0, (scale.points - 1) // 2, scale.points - 1}):
        on.text(scale.x(index), HEIGHT - BOTTOM + 15, str(index + 1))


def save_history(history: Sequence[Epoch], path: Path) -> None:
    """Loss, accuracy, the gap between the sets, the rate and the update ratio over the epochs."""
    panels = {
        "loss": {"train": [row.train_loss for row in history], "validation": [row.validation_loss for row in history]},
        "accuracy": {
            "train": [row.train_accuracy for row in history],
            "validation": [row.validation_accuracy for row in history],
            "gap": [row.gap for row in history],
        },
        "learning rate": {"rate": [row.lr for row in history]},
        "update / weight": {"median": [row.update_ratio for row in history]},
    }
    save(panels, path)
