"""The compiled half of the package: the operators in torch.ops.cnnkern, and the module ``_C`` that describes them."""

from __future__ import annotations

from pathlib import Path

import torch

_LIBRARY = Path(__file__).with_name("libcnnkern_cpu.so")
_FIX = "Build it with `pip install .` (or `make build` in a clone), using the Python and torch that you run."

try:
    torch.ops.load_library(_LIBRARY)
    import cnnkern._C as _C
except (ImportError, OSError) as error:
    raise ImportError(f"cnnkern's compiled library cannot be loaded: {error}. {_FIX}") from error

_C.isas()  # raises RuntimeError if CNNKERN_ISA names none: without this every call would fall back to torch

__all__ = ["_C"]
