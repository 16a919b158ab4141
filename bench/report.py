"""Reports made from records: HTML that stands alone, Markdown, CSV, and the block of measured results in README.md.

A directory of results holds up to four records, layers.json, models.json, fused.json and overhead.json, and
one report of them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jinja2

from cnnkern.bench import plots, summary
from cnnkern.bench.record import Record, Row

KINDS = ("layers", "models", "fused", "overhead")
BEGIN, END = "<!-- measured results: begin -->", "<!-- measured results: end -->"

UNITS = (("us", 1e-6), ("ms", 1e-3), ("s", 1.0))

COLUMNS = {
    "problem": lambda row: row.problem,
    "used by": lambda row: " ".join(f"{use.network}:{use.layer}x{use.times}" for use in row.uses),
    "family": lambda row: row.family,
    "kernel": lambda row: row.kernel,
    "vendor": lambda row: row.warm.peer_name,
    "warm us": lambda row: row.warm.own.median * 1e6,
    "warm p10 us": lambda row: row.warm.own.p10 * 1e6,
    "warm p90 us": lambda row: row.warm.own.p90 * 1e6,
    "vendor warm us": lambda row: row.warm.peer.median * 1e6,
    "warm ratio": lambda row: row.warm.ratio.value,
    "warm ratio low": lambda row: row.warm.ratio.low,
    "warm ratio high": lambda row: row.warm.ratio.high,
    "verdict": lambda row: row.warm.ratio.verdict,
    "cold us": lambda row: row.cold.own.median * 1e6,
    "vendor cold us": lambda row: row.cold.peer.median * 1e6,
    "cold ratio": lambda row: row.cold.ratio.value,
    "cold verdict": lambda row: row.cold.ratio.verdict,
    "GFLOP/s": lambda row: row.gflops,
    "roofline": lambda row: row.roofline,
    "error": lambda row: row.error,
    "fault": lambda row: row.fault,
}


def merge(records: Sequence[Record]) -> Record:
    """One record of the rows of all; machine, versions and date are the first's."""
    first = records[0]
    return replace(
        first,
        rows=[row for record in records for row in record.rows],
        models=[row for record in records for row in record.models],
        fused=[row for record in records for row in record.fused],
        overhead=[row for record in records for row in record.overhead],
        missing={problem: reason for record in records for problem, reason in record.missing.items()},
    )


def load(path: Path) -> Record:
    """A record's file, or a directory of results. Raises FileNotFoundError where there is none."""
    if path.is_file():
        return Record.load(path)
    found = [Record.load(path / f"{kind}.json") for kind in KINDS if (path / f"{kind}.json").exists()]
    if not found:
        raise FileNotFoundError(f"{path} has none of {', '.join(f'{kind}.json' for kind in KINDS)}")
    return merge(found)


def duration(seconds: float) -> str:
    """About three digits and a unit."""
    unit, scale = next(((unit, scale) for unit, scale in UNITS if seconds < 1000 * scale), UNITS[-1])
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def where_used(row: Row) -> str:
    """The networks that a row's problem occurs in."""
    return ", ".join(dict.fromkeys(use.network for use in row.uses))


def environment() -> jinja2.Environment:
    """Where templates/ is read, with the filters that the templates use."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(time=duration, where_used=where_used)
    return found


def render(template: str, record: Record) -> str:
    """A template of templates/ with the record and all figures made from it."""
    parts = {part: [row for row in record.right if summary.Part.of(row) == part] for part in parts_of(record)}
    return (
        environment()
        .get_template(template)
        .render(
            record=record,
            parts=parts,
            means=summary.means(record.right),
            totals=summary.totals(record.right),
            losses=summary.losses(record.right),
            outcomes=summary.outcomes(record),
            faults=[row for row in record.rows if row.fault],
            plots=plots,
        )
    )


def parts_of(record: Record) -> list[summary.Part]:
    """The parts that have right rows, in the order in which they were run."""
    return list(dict.fromkeys(map(summary.Part.of, record.right)))


def to_csv(record: Record) -> str:
    """One line a row, its times in microseconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in record.rows:
        values = (read(row) for read in COLUMNS.values())
        writer.writerow([f"{value:.4g}" if isinstance(value, float) else value for value in values])
    return out.getvalue()


def write(directory: Path) -> Path:
    """Writes report.html, report.md and rows.csv beside the records in ``directory``; returns the HTML's path."""
    record = load(directory)
    (directory / "report.md").write_text(render("report.md", record))
    (directory / "rows.csv").write_text(to_csv(record))
    path = directory / "report.html"
    path.write_text(render("report.html", record))
    return path


def update_readme(readme: Path, record: Record) -> None:
    """Replaces what stands between the markers in a README. Raises ValueError where they are missing."""
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the lines {BEGIN} and {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{render('readme.md', record)}{END}{after}")
