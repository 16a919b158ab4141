"""Kernels that were measured to be the fastest on this machine, kept between processes in one JSON file.

A choice is an index into the list of a device's own kernels. It holds for that very list (by its digest), the machine
and the number of threads beside which it stands::

    {"schema": 1, "tuned": [{"device": "cpu", "machine": "AMD EPYC: avx2 generic", "threads": 2,
                             "kernels": "<digest>", "choices": {"fprop-f32-n1c64h56w56-k64r3s3-p1": 17}}]}

It is kept for the bare convolution, and serves it with any layouts, prologue and epilogue: operands are copied to the
kernels' layouts before a kernel runs, and the rest costs much the same in each kernel. Whether the kernel can compute
a problem is asked of it again at every choice.

A file that is broken, foreign or of another schema counts as an empty one. ``cnnkern tune`` measures: bench/tune.py.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from cnnkern.backends import BACKENDS, OWN_BACKENDS, why_no_gpu
from cnnkern.flags import gpu_of
from cnnkern.machine import cpu_model
from cnnkern.native import _C
from cnnkern.problem import ConvProblem, Epilogue, Prologue

SCHEMA = 1
VARIABLE = "CNNKERN_TUNED"  # another file, or 0 for none
_FIELDS = {"device": str, "machine": str, "threads": int, "kernels": str, "choices": dict}


class Setting(NamedTuple):
    """What a choice depends on besides the problem."""

    device: str  # "cpu" or "cuda"
    machine: str
    threads: int  # 0 on a GPU
    kernels: str  # the digest of their names, in order


Choices = dict[Setting, dict[str, int]]  # problem -> index


def path() -> Path | None:
    """The file, or None where there is to be none."""
    named = os.environ.get(VARIABLE)
    if named:
        return None if named == "0" else Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the XDG specification has a relative one ignored
        cache = Path(os.path.expanduser("~"), ".cache")
    return cache / "cnnkern" / "tuned.json" if cache.is_absolute() else None


def bare(problem: ConvProblem) -> ConvProblem:
    """The convolution alone, in the kernels' layouts."""
    return replace(problem, x_layout="nhwc", w_layout="krsc", y_layout="nhwc", prologue=Prologue(), epilogue=Epilogue())


@functools.cache
def kernels(device: str) -> tuple[str, ...]:
    """The list that choices are indices into: all own kernels for a type of device."""
    own = [backend for backend in BACKENDS if backend.device == device and backend.name in OWN_BACKENDS[device]]
    return tuple(name for backend in own for name in backend.kernels())


@functools.cache
def _digest(device: str) -> str:
    return hashlib.sha256("\n".join(kernels(device)).encode()).hexdigest()


def setting(device: str, flags: int = 0) -> Setting | None:
    """The setting of a call made now on a type of device, with its flags; None if this machine has none."""
    if device == "cpu":
        machine = f"{cpu_model()}: {' '.join(_C.isas())}"
        return Setting(device, machine, torch.get_num_threads(), _digest(device))
    if why_no_gpu():
        return None
    return Setting(device, torch.cuda.get_device_name(gpu_of(flags)), 0, _digest(device))


def parse(text: str) -> Choices:
    """Reads a file's text; raises ValueError that says what is wrong with it."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if type(document) is not dict or type(document.get("tuned")) is not list:
        raise ValueError("it holds no choices")
    if type(document.get("schema")) is not int or document["schema"] != SCHEMA:
        raise ValueError(f"it is not of schema {SCHEMA}")
    choices: Choices = {}
    for entry in document["tuned"]:
        if type(entry) is not dict or {name: type(value) for name, value in entry.items()} != _FIELDS:
            raise ValueError("an entry has other fields than it should")
        indices = entry.pop("choices")
        if not all(type(index) is int and index >= 0 for index in indices.values()):
            raise ValueError("a choice is no index")
        choices.setdefault(Setting(**entry), {}).update(indices)
    return choices


def read(file: Path) -> tuple[Choices, str]:
    """A file's choices, and why there are none."""
    try:
        return parse(file.read_text(encoding="utf-8")), ""
    except FileNotFoundError:
        return {}, "there is no such file"
    except (OSError, ValueError) as error:
        return {}, f"it cannot be read: {error}"


@functools.cache
def _loaded() -> Choices:
    """The choices that this process goes by."""
    file = path()
    return read(file)[0] if file else {}


def choice(problem: ConvProblem, device: str = "cpu", flags: int = 0) -> str:
    """The name of the kernel kept for a problem on a type of device, which may be unable to compute it; or empty."""
    choices = _loaded()
    here = setting(device, flags) if choices else None
    index = choices.get(here, {}).get(str(bare(problem))) if here else None
    return kernels(device)[index] if index is not None and index < len(kernels(device)) else ""


def keep(device: str, fastest: Mapping[ConvProblem, str]) -> None:
    """Adds the names of the fastest kernels by problem to the file, for this process too.

    Processes that keep choices at once wait for each other and lose none, and one that is killed leaves the old file.
    Raises RuntimeError where there is no file or no such device, and OSError if the file cannot be written.
    """
    file, here = path(), setting(device)
    if file is None or here is None:
        raise RuntimeError(why_not_kept() or f"there is no {device} device")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        choices, _ = read(file)
        indices = {str(bare(problem)): kernels(device).index(name) for problem, name in fastest.items()}
        choices.setdefault(here, {}).update(indices)
        entries = [{**setting._asdict(), "choices": kept} for setting, kept in choices.items()]
        new = file.with_name(f"{file.name}.new")
        with new.open("w", encoding="utf-8") as out:
            json.dump({"schema": SCHEMA, "tuned": entries}, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, file)
    forget()


def forget() -> None:
    """Forgets in this process what was read and every kernel that was chosen: the next call reads the file anew."""
    from cnnkern import gpu

    _loaded.cache_clear()
    _C.clear_memo()
    gpu.clear_memo()


def why_not_kept() -> str:
    """Empty, or why there is no file."""
    if path() is not None:
        return ""
    return f"{VARIABLE}=0 turns it off" if os.environ.get(VARIABLE) else "there is no directory for caches"


def describe() -> str:
    """The file, and how many choices in it are for this machine; or why there are none."""
    file = path()
    if file is None:
        return f"none: {why_not_kept()}"
    choices, why_none = read(file)
    if why_none:
        return f"none from {file}: {why_none}"
    counts = []
    for device in OWN_BACKENDS:
        if here := setting(device):
            count = sum(index < len(kernels(device)) for index in choices.get(here, {}).values())
            counts.append(f"{count} for {here.machine}" + (f" with {here.threads} threads" if here.threads else ""))
    return f"{', '.join(counts)}, from {file}"
