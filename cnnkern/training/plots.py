"""Curves of a run as SVG files that stand alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnkern.bench.plots import line, text
from cnnkern.training.monitoring import Epoch

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 36
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8e5bb5", "#e08a1e", "#6b6b6b")
STYLE = """text { font: 11px sans-serif; fill: #333 } .grid { stroke: #ddd }
polyline { fill: none; stroke-width: 1.5 } .title { font-weight: bold }"""
TICKS = 4

Curves = Mapping[str, Sequence[float]]


def panel(title: str, curves: Curves, x_label: str = "epoch") -> str:
    """Curves over 1, 2, 3 and so on with linear axes and a legend, as the parts of an SVG."""
    points = max(map(len, curves.values()))
    values = [value for curve in curves.values() for value in curve]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index / max(points - 1, 1))

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / span

    levels = [low + span * tick / TICKS for tick in range(TICKS + 1)]
    parts = [line(LEFT, y(level), WIDTH - RIGHT, y(level)) for level in levels]
    parts += [text(LEFT - 5, y(level) + 4, f"{level:.3g}", "end") for level in levels]
    for index in sorted({0, (points - 1) // 2, points - 1}):
        parts.append(text(x(index), HEIGHT - BOTTOM + 14, str(index + 1)))
    for position, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[position % len(COLOURS)]
        path = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(curve))
        label = text(WIDTH - RIGHT - 4, TOP + 12 + 13 * position, name, "end")
        parts.append(f'<polyline stroke="{colour}" points="{path}"/>')
        parts.append(label.replace("<text", f'<text style="fill:{colour}"'))
    parts.append(text(WIDTH / 2, HEIGHT - 6, x_label))
    parts.append(text(WIDTH / 2, 14, title).replace("<text", '<text class="title"'))
    return "".join(parts)


def svg(panels: Sequence[str]) -> str:
    """Panels side by side as one image."""
    placed = [f'<g transform="translate({WIDTH * index} 0)">{part}</g>' for index, part in enumerate(panels)]
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
