"""Figures made from a record's rows: geometric means, losses, network totals, and the bars we hold ourselves to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cnnkern.bench.record import Record, Row, WholeRow
from cnnkern.bench.suites import FAMILIES


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


@dataclass(frozen=True)
class Part:
    """The rows of one direction, dtype and batch."""

    direction: str
    dtype: str
    batch: int

    @classmethod
    def of(cls, row: Row) -> Part:
        """The part that a row belongs to."""
        return cls(row.direction, row.dtype, row.batch)

    def __str__(self) -> str:
        return f"{self.direction} {self.dtype} batch {self.batch}"


@dataclass(frozen=True)
class Mean:
    """Geometric mean ratios to the vendor over the rows of a part, of one family or of all."""

    part: Part
    family: str
    rows: int
    warm: float
    cold: float
    slower: int
    worst: float


def means(rows: Sequence[Row]) -> list[Mean]:
    """Per part: all of its rows, then each family that it has."""
    found = []
    for part in dict.fromkeys(map(Part.of, rows)):
        for family in ("all", *FAMILIES):
            chosen = [row for row in rows if Part.of(row) == part and family in ("all", row.family)]
            if chosen:
                found.append(mean_of(part, family, chosen))
    return found


def mean_of(part: Part, family: str, rows: Sequence[Row]) -> Mean:
    """The figures of one table line."""
    ratios = [row.warm.ratio.value for row in rows]
    cold = geometric_mean(row.cold.ratio.value for row in rows)
    slower = sum(row.warm.ratio.verdict == "slower" for row in rows)
    return Mean(part, family, len(rows), geometric_mean(ratios), cold, slower, min(ratios))


@dataclass(frozen=True)
class Total:
    """Seconds that all convolutions of a network take together, each layer counted as often as it occurs."""

    network: str
    part: Part
    own: float
    peer: float

    @property
    def ratio(self) -> float:
        """Above 1: ours are faster."""
        return self.peer / self.own


def totals(rows: Sequence[Row]) -> list[Total]:
    """Per network and part. The kernels are the rows', so this is for records of one kernel a problem."""
    sums: dict[tuple[str, Part], tuple[float, float]] = {}
    for row in rows:
        for use in row.uses:
            own, peer = sums.get((use.network, Part.of(row)), (0.0, 0.0))
            seconds = row.warm.own.median * use.times, row.warm.peer.median * use.times
            sums[use.network, Part.of(row)] = own + seconds[0], peer + seconds[1]
    return [Total(network, part, own, peer) for (network, part), (own, peer) in sums.items()]


def losses(rows: Sequence[Row]) -> list[Row]:
    """The rows that are slower than the vendor, warm or cold, the worst first."""
    lost = [row for row in rows if "slower" in (row.warm.ratio.verdict, row.cold.ratio.verdict)]
    return sorted(lost, key=lambda row: row.warm.ratio.value)


@dataclass(frozen=True)
class Target:
    """A bar: the ``measure`` (min or geometric mean) of the ratios that ``ratios`` picks is ``at_least`` that."""

    title: str
    at_least: float
    ratios: Callable[[Record], list[float]]
    measure: Callable[[Iterable[float]], float] = geometric_mean


def ratios_of(rows: Iterable[Row | WholeRow]) -> list[float]:
    """The warm ratios of those rows that are right."""
    return [row.warm.ratio.value for row in rows if not row.fault]


def pick(wanted: Callable[[Row], bool]) -> Callable[[Record], list[float]]:
    """The warm ratios of the right rows that are ``wanted``."""
    return lambda record: ratios_of(row for row in record.rows if wanted(row))


def is_core(row: Row) -> bool:
    """The dense layers that most of the arithmetic of today's networks is in."""
    networks = {use.network for use in row.uses}
    return (
        row.direction == "fprop"
        and row.dtype == "f32"
        and row.family in ("pointwise", "dense 3x3")
        and bool(networks & {"resnet50", "vgg16"})
    )


def in_direction(*directions: str, dtype: str = "f32", family: str = "") -> Callable[[Record], list[float]]:
    """The ratios of a direction, of one family or all."""
    return pick(lambda row: row.direction in directions and row.dtype == dtype and family in ("", row.family))


TARGETS = (
    Target("pointwise and dense 3x3 of ResNet-50 and VGG16, fprop f32, each", 0.95, pick(is_core), min),
    Target("pointwise and dense 3x3 of ResNet-50 and VGG16, fprop f32", 1.05, pick(is_core)),
    Target("depthwise, fprop f32", 1.5, in_direction("fprop", family="depthwise")),
    Target("grouped, fprop f32", 1.5, in_direction("fprop", family="grouped")),
    Target("dgrad f32", 0.95, in_direction("dgrad")),
    Target("wgrad f32", 0.95, in_direction("wgrad")),
    Target("bf16", 0.9, in_direction("fprop", "dgrad", "wgrad", dtype="bf16")),
    Target("all layers, fprop f32 batch 1", 1.2, pick(lambda row: Part.of(row) == Part("fprop", "f32", 1))),
    Target("whole models, each", 1.0, lambda record: ratios_of(record.models), min),
    Target("one call of Conv2d, each", 1.0, lambda record: ratios_of(record.overhead), min),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a target over ``rows`` measurements."""

    title: str
    at_least: float
    measured: float
    rows: int
    kind: str

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.measured >= self.at_least


def outcomes(record: Record) -> list[Outcome]:
    """The targets that the record has rows for."""
    found = []
    for target in TARGETS:
        ratios = target.ratios(record)
        if ratios:
            kind = "least" if target.measure is min else "geometric mean"
            found.append(Outcome(target.title, target.at_least, target.measure(ratios), len(ratios), kind))
    return found
