"""What a measurement asks of the C library's allocator, where that is glibc, and of torch's on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cnnkern.bench import device

# Options of mallopt.
M_TRIM_THRESHOLD = -1  # freed memory at the heap's top beyond this goes back to the system
M_MMAP_MAX = -4  # how many large blocks may be mappings of their own, which go back when freed
M_PERTURB = -6  # allocated memory is filled with the complement of this byte

NEVER = 2**31 - 1
POISON = 0x7F  # in every byte: 3e38 in float32 and bfloat16, 1e306 in float64, NaN in float16

_mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)


def keep_freed_memory() -> None:
    """Freed memory stays with the process, so that no call pays for new pages of its result.

    By default it depends on what the other calls of a round allocate which of them has its memory taken away: up to
    2,000 page faults, half a millisecond, in a call of either side.
    """
    _mallopt(M_TRIM_THRESHOLD, NEVER)
    _mallopt(M_MMAP_MAX, 0)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """What is allocated holds POISON, torch.empty and the ops' results alike; on a GPU NaN."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    _mallopt(M_PERTURB, POISON ^ 0xFF)
    torch.use_deterministic_algorithms(device.kind() == "cuda" or deterministic)  # fills what torch.empty returns
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        _mallopt(M_PERTURB, 0)
