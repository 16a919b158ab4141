"""The lectures' table of layers as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cnnkern.summary.walk import BYTES, Layer, Total

if TYPE_CHECKING:
    from cnnkern.summary.record import Summary

Cell = Callable[[Layer], str]


def per_axis(numbers: Sequence[int]) -> str:
    """One number where all axes have the same, else 1x7."""
    return str(numbers[0]) if len(set(numbers)) == 1 else "x".join(map(str, numbers))


def rounded(value: float) -> str:
    """A whole number as in the lectures; two digits of what would be 0."""
    return f"{value:,.0f}" if value >= 0.5 or value == 0 else f"{value:.2g}"


def of_window(name: str) -> Cell:
    """A cell with one of the numbers of the window, empty where there is no window."""
    return lambda layer: per_axis(getattr(layer.window, name)) if layer.window else ""


def kilobytes(values: int) -> str:
    """What values take, in 1024 bytes."""
    return rounded(values * BYTES / 1024)


LEFT = ("layer", "module")
COLUMNS: dict[str, Cell] = {
    "layer": lambda layer: layer.label,
    "module": lambda layer: layer.module,
    "C in": lambda layer: str(layer.c_in),
    "H in": lambda layer: per_axis(layer.size_in) if layer.size_in else "",
    "filters": lambda layer: str(layer.c_out) if layer.kind == "conv" else "",
    "kernel": of_window("kernel"),
    "stride": of_window("stride"),
    "pad": of_window("padding"),
    "dilation": of_window("dilation"),
    "groups": lambda layer: str(layer.window.groups) if layer.window and layer.kind == "conv" else "",
    "C out": lambda layer: str(layer.c_out),
    "H out": lambda layer: per_axis(layer.size_out) if layer.size_out else "",
    "memory KB": lambda layer: kilobytes(layer.values) if layer.values else "-",
    "params k": lambda layer: rounded(layer.parameters / 1e3),
    "Mflop": lambda layer: rounded(layer.flops / 1e6) if layer.values else "-",
    "field": lambda layer: per_axis(layer.field.size) if layer.field else "-",
}
RARE = ("dilation", "groups")  # a column only where some layer has more than 1


def text(summary: Summary) -> str:
    """Head, a row for each layer, totals by kind, and notes."""
    cells = {title: [cell(layer) for layer in summary.layers] for title, cell in COLUMNS.items()}
    titles = [title for title in cells if title not in RARE or set(cells[title]) - {"", "1"}]
    rows = [titles, *zip(*(cells[title] for title in titles), strict=True)]
    kinds = list(dict.fromkeys(layer.kind for layer in summary.layers if layer.kind != "flatten"))
    totals = [(kind, summary.total(kind)) for kind in kinds]
    totals += [("layers", summary.total())] if len(kinds) > 1 else []
    rows += [[_of_total(kind, total).get(title, "") for title in titles] for kind, total in totals]
    lines = _aligned(rows, [title in LEFT for title in titles])
    rule = "-" * max(map(len, lines))
    body = [lines[0], rule, *lines[1 : 1 + len(summary.layers)], rule, *lines[1 + len(summary.layers) :]]
    return "\n".join([_head(summary), "", *body, "", *_foot(summary)])


def _of_total(kind: str, total: Total) -> dict[str, str]:
    return {
        "layer": "total",
        "module": f"{total.layers} {kind}",
        "memory KB": kilobytes(total.values) if total.values else "-",
        "params k": rounded(total.parameters / 1e3),
        "Mflop": rounded(total.flops / 1e6) if total.values else "-",
    }


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[bool]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if flush else cell.rjust(width)
            for cell, width, flush in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]


def _head(summary: Summary) -> str:
    size = "x".join(map(str, summary.input))
    counted = "with biases" if summary.biases else "without biases"
    return f"{summary.name}, input {size}; memory of the forward pass of one image, parameters {counted}"


def _foot(summary: Summary) -> list[str]:
    computing, pooling = summary.total("conv", "fc"), summary.total("conv", "fc", "pool")
    pools = f" ({pooling.megabytes:.1f} MB with those of pools)" if pooling.values > computing.values else ""
    line = (
        f"{computing.megabytes:.1f} MB in outputs of conv and fc{pools}, {summary.parameters:,} parameters, "
        f"{computing.flops / 1e9:.3g} Gflop in conv and fc"
    )
    batch = (
        f"a batch of {summary.batch}: {summary.batch * pooling.megabytes:.1f} MB, "
        f"{summary.batch * computing.flops / 1e9:.3g} Gflop"
    )
    notes = [f"note: {note}" for note in summary.notes]
    return [line, *([batch] if summary.batch > 1 else []), *notes]
