"""Which kernel runs a problem: settings, the choice, its explanation, and the count of calls that fell back.

The choice among the compiled kernels is asked for once per problem: csrc/cpu/memo.cpp keeps it. What is settled per
call, above the operators, is only whether they are called at all (:mod:`cnnkern.functional`).
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from cnnkern import tune
from cnnkern.backends import BACKENDS, OWN_BACKENDS, Candidate, KernelName, ReferenceBackend, VendorBackend
from cnnkern.backends.base import TRANSFORMED_FAMILIES
from cnnkern.flags import ONLY, STRICT
from cnnkern.native import _C
from cnnkern.problem import ConvProblem

FALLBACKS = ("raise", "warn", "vendor")
FORCIBLE_BACKENDS = tuple(dict.fromkeys(backend.name for backend in BACKENDS))
_DEBUG = os.environ.get("CNNKERN_DEBUG", "0") not in ("", "0")


class NoKernelError(RuntimeError):
    """No kernel computes a problem; the message has every candidate and its reason."""


class FallbackError(RuntimeError):
    """A call would have been handed to the vendor, and ``fallback="raise"`` forbids it."""


class Kernels(NamedTuple):
    """Names of forced kernels, by direction."""

    fprop: str | None = None
    dgrad: str | None = None
    wgrad: str | None = None


_NOTHING_FORCED = Kernels()


@dataclass(frozen=True)
class Settings:
    """What :func:`use` and the environment ask for."""

    backend: str | None = None
    fallback: str = "vendor"
    flags: int = 0
    kernels: Kernels = _NOTHING_FORCED


class _Current(threading.local):
    """The calling thread's settings; a new thread starts with those of the environment."""

    def __init__(self) -> None:
        self.settings = _from_environment


def settings(kernel: str | None = None) -> Settings:
    """The calling thread's settings, with a kernel forced on top if one is named."""
    return _current.settings if kernel is None else _changed(_current.settings, kernel=kernel)


@contextmanager
def use(
    backend: str | None = None,
    strict: bool | None = None,
    fallback: str | None = None,
    kernel: str | None = None,
) -> Iterator[None]:
    """Within the ``with`` block, and on this thread, changes how calls are dispatched; None leaves a setting as it is.

    A backward pass follows the settings under which its forward pass ran, except that in a compiled graph ``kernel``
    and ``backend="reference"`` hold for the forward pass alone.

    Args:
        backend: "cpu", "triton" or "cuda" (own kernels), "vendor" (torch's convolution) or "reference" (plain loops,
            for tests, on the CPU).
        strict: only kernels with direct convolution's numerics.
        fallback: what becomes of a call that no own kernel computes: "vendor" hands it to torch and counts it (see
            :func:`fallback_counts`), "warn" also warns, once for each reason, "raise" raises :class:`FallbackError`.
        kernel: a kernel's name, forced in the direction that it is for.

    Raises ValueError for an unknown value. At import CNNKERN_BACKEND, CNNKERN_STRICT (0 or 1) and CNNKERN_FALLBACK
    give the same settings for the whole process.
    """
    before = _current.settings
    _current.settings = _changed(before, backend, strict, fallback, kernel)
    try:
        yield
    finally:
        _current.settings = before


def _changed(
    new: Settings,
    backend: str | None = None,
    strict: bool | None = None,
    fallback: str | None = None,
    kernel: str | None = None,
) -> Settings:
    if backend is not None:
        new = replace(new, backend=_one_of("backend", backend, FORCIBLE_BACKENDS))
    if strict is not None:
        new = replace(new, flags=STRICT if strict else 0)
    if fallback is not None:
        new = replace(new, fallback=_one_of("fallback", fallback, FALLBACKS))
    if kernel is not None:
        name = KernelName.parse(kernel)
        if name.backend == VendorBackend.name:
            return replace(new, backend=name.backend)
        new = replace(new, kernels=new.kernels._replace(**{name.direction: kernel}))
    return new


def _one_of(setting: str, value: str, values: Sequence[str]) -> str:
    if value not in values:
        raise ValueError(f"{setting}={value!r}: it is one of {', '.join(values)}")
    return value


def _read_environment(environment: Mapping[str, str]) -> Settings:
    def read(variable: str, values: Sequence[str]) -> str | None:
        value = environment.get(variable)
        return _one_of(variable, value, values) if value else None

    backend = read("CNNKERN_BACKEND", FORCIBLE_BACKENDS)
    return _changed(Settings(), backend, read("CNNKERN_STRICT", ("0", "1")) == "1", read("CNNKERN_FALLBACK", FALLBACKS))


def candidates(
    problem: ConvProblem, flags: int = 0, backend: str | None = None, device: str = "cpu"
) -> list[Candidate]:
    """The kernels of the problem's direction and dtype for a type of device ("cpu" or "cuda"), with their answers.

    They are in dispatch order; of one backend if it is named. flags are those of :mod:`cnnkern.ops`.
    """
    asked = [source for source in BACKENDS if source.device == device and backend in (None, source.name)]
    return [_judged(candidate, flags) for source in asked for candidate in source.candidates(problem, flags)]


def _judged(candidate: Candidate, flags: int) -> Candidate:
    if flags & STRICT and KernelName.parse(candidate.kernel).family in TRANSFORMED_FAMILIES:
        return candidate._replace(why_not="strict asks for direct convolution's numerics")
    return candidate


def choose(problem: ConvProblem, flags: int = 0, backend: str | None = None, device: str = "cpu") -> str:
    """The name of the kernel that runs the problem on a type of device, among the package's own or a named backend's.

    It is the one that was the fastest when the problem was tuned here (:mod:`cnnkern.tune`) if it can, else, of the
    first backend that can, the first kernel that can and would, else the first that can. Raises :class:`NoKernelError`
    if there is none.
    """
    backends = (backend,) if backend else _own_backends(device, flags)
    asked = [answer for name in backends for answer in candidates(problem, flags, name, device)]
    able = [candidate for candidate in asked if not candidate.why_not]
    if not able:
        reasons = "".join(f"\n  {candidate.kernel}: {candidate.why_not}" for candidate in asked)
        raise NoKernelError(f"no {' or '.join(backends)} kernel computes {problem}{reasons}")
    tuned = tune.choice(problem, device, flags)
    if any(candidate.kernel == tuned for candidate in able):
        return tuned
    backend_of_first = KernelName.parse(able[0].kernel).backend
    own = [candidate for candidate in able if KernelName.parse(candidate.kernel).backend == backend_of_first]
    return next((candidate for candidate in own if candidate.willing), own[0]).kernel


def _own_backends(device: str, flags: int) -> tuple[str, ...]:
    asked = tuple(name for name in OWN_BACKENDS[device] if flags & ONLY.get(name, 0))
    return asked or OWN_BACKENDS[device]


def _choose_for_memo(text: str, flags: int) -> str:
    """Called by csrc/cpu/memo.cpp at the first call of each problem."""
    kernel = choose(ConvProblem.parse(text), flags)
    if _DEBUG:
        print(f"cnnkern: {text} -> {kernel}", file=sys.stderr)
    return kernel


@functools.cache
def reference_kernels(dtype_name: str) -> Kernels:
    """Names of the reference kernels for a dtype."""
    names = map(KernelName.parse, ReferenceBackend().kernels())
    return Kernels(**{name.direction: str(name) for name in names if name.dtype == dtype_name})


def note_fallback(reason: str) -> None:
    """Counts a call that no own kernel computes, and does with it what the setting ``fallback`` says."""
    policy = settings().fallback
    if policy == "raise":
        raise FallbackError(f"this call needs the vendor's convolution: {reason}")
    if torch.compiler.is_compiling():
        return  # a graph is traced once and run often: there is no call to count
    with _lock:
        _fallback_counts[reason] += 1
        first = _fallback_counts[reason] == 1
    if policy == "warn" and first:
        warnings.warn(f"cnnkern hands a call to the vendor's convolution: {reason}", stacklevel=4)


def fallback_counts() -> dict[str, int]:
    """How many calls of this process were handed to the vendor, by reason."""
    with _lock:
        return dict(_fallback_counts)


def clear_fallback_counts() -> None:
    """Starts the counts anew."""
    with _lock:
        _fallback_counts.clear()


_lock = threading.Lock()
_fallback_counts: Counter[str] = Counter()
_from_environment = _read_environment(os.environ)
_current = _Current()
_C.set_chooser(_choose_for_memo)
