"""The record of a run: plain data, kept as JSON. Reports are made from it and from nothing else."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import cnnkern
from cnnkern.bench import device
from cnnkern.bench.roofline import Ceilings
from cnnkern.bench.suites import Use
from cnnkern.bench.timing import Contender, Ratio, Timing, cache_bytes
from cnnkern.machine import cpu_info, cpu_model
from cnnkern.native import _C

SCHEMA = 1


@dataclass(frozen=True)
class Comparison:
    """One contender of ours against the best peer in one state of the caches; ``ratio`` above 1: ours is faster."""

    own: Timing
    peer: Timing
    ratio: Ratio
    peer_name: str

    @classmethod
    def of(cls, contender: Contender, peer: Contender) -> Comparison:
        """Two contenders of the same race."""
        ratio = Ratio.of(contender.samples, peer.samples)
        return cls(Timing.of(contender.samples), Timing.of(peer.samples), ratio, peer.name)

    @classmethod
    def load(cls, data: dict[str, Any]) -> Comparison:
        """From JSON."""
        return cls(Timing(**data["own"]), Timing(**data["peer"]), Ratio(**data["ratio"]), data["peer_name"])


@dataclass(frozen=True)
class Row:
    """One kernel on one problem. ``fault`` says why its times count for nothing, and is empty if they do."""

    problem: str
    family: str
    direction: str
    dtype: str
    batch: int
    uses: tuple[Use, ...]
    kernel: str
    warm: Comparison
    cold: Comparison
    gflops: float
    roofline: float
    error: float
    fault: str

    @classmethod
    def load(cls, data: dict[str, Any]) -> Row:
        """From JSON."""
        uses = tuple(Use(**use) for use in data["uses"])
        warm, cold = Comparison.load(data["warm"]), Comparison.load(data["cold"])
        return cls(**{**data, "uses": uses, "warm": warm, "cold": cold})


@dataclass(frozen=True)
class WholeRow:
    """A measurement that is not of one convolution: a whole model, a fused layer, or the overhead of one call."""

    name: str
    setting: str
    warm: Comparison
    error: float
    fault: str

    @classmethod
    def load(cls, data: dict[str, Any]) -> WholeRow:
        """From JSON."""
        return cls(**{**data, "warm": Comparison.load(data["warm"])})


@dataclass
class Record:
    """Everything one command measured, and where.

    ``missing`` maps a problem without a row to the reason: no own kernel computes it, the time was up, or
    it failed.
    """

    command: str
    rows: list[Row] = field(default_factory=list)
    models: list[WholeRow] = field(default_factory=list)
    fused: list[WholeRow] = field(default_factory=list)
    overhead: list[WholeRow] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    ceilings: Ceilings | None = None
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())
    versions: dict[str, str] = field(default_factory=lambda: describe_versions())
    date: str = field(default_factory=lambda: now())
    schema: int = SCHEMA

    @property
    def right(self) -> list[Row]:
        """The rows whose times count."""
        return [row for row in self.rows if not row.fault]

    @property
    def everything(self) -> list[Row | WholeRow]:
        """All rows of all kinds."""
        return [*self.rows, *self.models, *self.fused, *self.overhead]

    def save(self, path: Path) -> None:
        """Writes the JSON file, and its directory if there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Reads a JSON file; raises ValueError for one that another version of the schema wrote."""
        data = json.loads(path.read_text())
        if data.get("schema") != SCHEMA:
            raise ValueError(f"{path} has schema {data.get('schema')}; this version reads schema {SCHEMA}")
        return cls(
            **{
                **data,
                "rows": [Row.load(row) for row in data["rows"]],
                "models": [WholeRow.load(row) for row in data["models"]],
                "fused": [WholeRow.load(row) for row in data.get("fused", [])],
                "overhead": [WholeRow.load(row) for row in data["overhead"]],
                "ceilings": Ceilings.load(data["ceilings"]) if data["ceilings"] else None,
            }
        )


def now() -> str:
    """The time in UTC, to the minute."""
    return datetime.now(timezone.utc).isoformat(timespec="minutes")


def describe_machine() -> dict[str, Any]:
    """What the figures depend on, without the machine's name."""
    return {
        "cpu": cpu_model(),
        "gpu": torch.cuda.get_device_name() if device.kind() == "cuda" else "",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "mhz": cpu_info("cpu MHz"),
        "last_level_cache_bytes": cache_bytes(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "isas": _C.isas(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
    }


def describe_versions() -> dict[str, str]:
    """Ours, torch's, the vendor library's and Python's."""
    onednn = re.search(r"(?:MKL-DNN|oneDNN) (v[\d.]+)", torch.__config__.show())
    return {
        "cnnkern": cnnkern.__version__,
        "torch": torch.__version__,
        "onednn": onednn[1] if onednn else "not in this torch",
        "cudnn": str(torch.backends.cudnn.version() or "not in this torch"),
        "triton": metadata.version("triton") if find_spec("triton") else "not installed",
        "python": platform.python_version(),
    }
