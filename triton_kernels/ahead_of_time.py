"""Compiles a launch for a GPU that is not there, through the same specialisation that a real launch would get."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from cnnkern.triton_kernels.launch import Launch

_TOOLS = Path(triton.__file__).with_name("backends") / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a kernel."""

    shared_bytes: int
    registers: int  # of a thread
    stack_bytes: int  # of a thread: more than 0 where registers are spilled
    ptx: str


class _AbsentGpu:
    """As much of a Triton driver as compilation asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _active(gpu: Any) -> Iterator[None]:
    before = driver._active
    driver.set_active(gpu)
    try:
        yield
    finally:
        driver._active = before


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """The launch's kernel for compute capability 80, 90, ...; its tensors may be on the meta device."""
    options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages}
    with _active(_AbsentGpu(capability)):
        kernel = launch.function.warmup(**launch.arguments, **options, grid=launch.grid)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [_TOOLS / "cuobjdump", "-res-usage", cubin.name], capture_output=True, text=True, check=True
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups()  # type: ignore[union-attr]
    return Compiled(kernel.metadata.shared, int(registers), int(stack), kernel.asm["ptx"])
