"""Two records side by side: which rows became faster or slower, and whether that is a failure.

What is compared is the ratio to the vendor: the vendor ran in turn with ours in both records, so a machine that was
slower on one of the two days changes little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnnkern.bench.record import Record, Row, WholeRow
from cnnkern.bench.timing import Ratio

Key = tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A measurement that both records have."""

    name: str
    before: Ratio
    after: Ratio

    @property
    def factor(self) -> float:
        """Above 1: faster than before."""
        return self.after.value / self.before.value

    @property
    def certain(self) -> bool:
        """Whether the two 95% intervals lie apart."""
        return self.after.high < self.before.low or self.after.low > self.before.high

    def fails(self, allowed: float) -> bool:
        """Whether it became slower for certain, by more than the share ``allowed``."""
        return self.certain and self.factor < 1 - allowed


def key_of(row: Row | WholeRow) -> Key:
    """A layer's row is known by its problem alone: another kernel is what a change may bring."""
    return (row.problem,) if isinstance(row, Row) else (row.name, row.setting)


def ratios(record: Record) -> dict[Key, Ratio]:
    """The right rows' warm ratios; where several kernels ran a problem, the best of them."""
    found: dict[Key, Ratio] = {}
    for row in record.everything:
        key, ratio = key_of(row), row.warm.ratio
        if not row.fault and (key not in found or ratio.value > found[key].value):
            found[key] = ratio
    return found


def changes(before: Record, after: Record) -> list[Change]:
    """What both records measured, the greatest loss first."""
    old, new = ratios(before), ratios(after)
    both = [Change(", ".join(key), old[key], new[key]) for key in old if key in new]
    return sorted(both, key=lambda change: change.factor)


def missing(before: Record, after: Record) -> list[str]:
    """What only the first record has a right row for: a kernel that is gone or wrong."""
    return [", ".join(key) for key in ratios(before).keys() - ratios(after).keys()]


def failures(found: Sequence[Change], allowed: float) -> list[Change]:
    """The changes that fail a gate of ``allowed``."""
    return [change for change in found if change.fails(allowed)]
