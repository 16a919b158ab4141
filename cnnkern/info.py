"""cnnkern.info: what is installed, what this machine can run, and why something is missing; the table of kernels."""

from __future__ import annotations

import os
import platform
from collections import Counter

import torch

import cnnkern
from cnnkern import dispatch, tune
from cnnkern.backends import BACKENDS, KernelName, cuda
from cnnkern.native import _C
from cnnkern.problem import DIRECTIONS, DTYPES

_VARIABLES = ("CNNKERN_BACKEND", "CNNKERN_STRICT", "CNNKERN_FALLBACK", "CNNKERN_ISA", "CNNKERN_TUNED", "CNNKERN_DEBUG")


class Info(dict[str, str]):
    """Facts by name; prints as two columns."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:{width}}  {fact}" for name, fact in self.items())


def info() -> Info:
    """Versions, build, instruction sets, kernels and backends, the reason for each that is missing, and settings."""
    facts = Info(
        cnnkern=cnnkern.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads",
    )
    facts |= {f"build {name}": str(fact) for name, fact in _C.build_info().items()}
    facts["CPU features"] = ", ".join(name for name, present in _C.cpu_features().items() if present) or "none"
    facts["instruction sets"] = ", ".join(_C.isas()) + " (the first that has a kernel for a problem runs it)"
    for backend in BACKENDS:
        families = Counter(KernelName.parse(kernel).family for kernel in backend.kernels())
        listed = ", ".join(f"{family} {count}" for family, count in families.items())
        missing = backend.why_missing()
        known = f"backend {backend.name} ({backend.device})"
        facts[known] = f"{families.total()} kernels: {listed}" + (f"; none can run: {missing}" if missing else "")
    facts["CUDA architectures"] = cuda.architectures() or "none built"
    facts["tuned choices"] = tune.describe()
    settings = dispatch.settings()
    facts["settings"] = f"backend={settings.backend} strict={bool(settings.flags)} fallback={settings.fallback}"
    facts["environment"] = " ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "none"
    counts = dispatch.fallback_counts()
    facts["handed to the vendor"] = ", ".join(f"{count} x {reason}" for reason, count in counts.items()) or "no call"
    return facts


def kernel_table() -> str:
    """Every family, direction, backend and dtype that there is a kernel for, as a Markdown table."""
    dtypes: dict[tuple[str, str, str], dict[str, None]] = {}
    for backend in BACKENDS:
        if backend.name in ("vendor", "reference"):
            continue
        for name in map(KernelName.parse, backend.kernels()):
            dtypes.setdefault((name.family, name.direction, backend.name), {})[name.dtype] = None
    lines = [f"| family | {' | '.join(DIRECTIONS)} |", "|---|---|---|---|"]
    for family in dict.fromkeys(family for family, _, _ in dtypes):
        cells = [
            "; ".join(
                f"{backend.name} {' '.join(sorted(dtypes[family, direction, backend.name], key=list(DTYPES).index))}"
                for backend in BACKENDS
                if (family, direction, backend.name) in dtypes
            )
            for direction in DIRECTIONS
        ]
        lines.append(f"| {family.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)
