"""The package's Triton kernels, for GPUs from compute capability 8.0 on."""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnnkern.backends.base import Candidate
from cnnkern.flags import UNALIGNED, gpu_of
from cnnkern.problem import ConvProblem

if TYPE_CHECKING:
    from cnnkern.operands import Operands
    from cnnkern.triton_kernels.launch import Chip, Config, TritonKernel

OLDEST = 80  # compute capability
ASSUMED = 90  # where there is no GPU to ask, an H100 or H200
MOST_PIXELS = 2**30


@functools.cache
def why_missing(device: torch.device | None = None) -> str:
    """Empty, or why no Triton kernel can run on the device (None: on any of this machine)."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'cnnkern[triton]'"
    if not torch.cuda.is_available():
        return "this torch sees no GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < OLDEST:
        return f"Triton kernels need compute capability {OLDEST / 10}, and this GPU has {major}.{minor}"
    return ""


def chip(flags: int = 0) -> Chip:
    """What configs are picked by: figures of the GPU that they are for, or of an assumed one where there is none."""
    from cnnkern.triton_kernels.configs import CHIPS

    return _chip(gpu_of(flags)) if torch.cuda.is_available() else CHIPS[ASSUMED]


@functools.cache
def _chip(index: int) -> Chip:
    from cnnkern.triton_kernels.launch import Chip

    properties = torch.cuda.get_device_properties(index)
    return Chip(
        10 * properties.major + properties.minor,
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )


def _kernels() -> tuple[TritonKernel, ...]:
    if importlib.util.find_spec("triton") is None:
        return ()
    from cnnkern.triton_kernels.kernel_list import KERNELS

    return KERNELS


def _name(kernel: TritonKernel, dtype: str, config: Config) -> str:
    return f"triton_{kernel.family}_{kernel.direction}_{dtype}_nhwc_{config}__sm{kernel.capability}"


@functools.cache
def listed() -> dict[str, tuple[TritonKernel, Config]]:
    """Every kernel with each of its configs, by name, in dispatch order."""
    return {
        _name(kernel, dtype, config): (kernel, config)
        for kernel in _kernels()
        for dtype in kernel.dtypes
        for config in kernel.configs
    }


class _Thread(threading.local):
    """What a thread has done."""

    def __init__(self) -> None:
        self.entered: set[torch.device] = set()


_thread = _Thread()


@contextmanager
def on_device_of(tensor: Tensor) -> Iterator[None]:
    """Makes the tensor's GPU the current one, with a CUDA context.

    Threads begin without one, autograd's too, and the driver asks for one where a tensor descriptor is encoded.
    """
    with torch.cuda.device_of(tensor):
        if tensor.is_cuda and tensor.device not in _thread.entered:
            torch.cuda.Event().record()  # the first thing that asks the runtime, also while a graph is captured
            _thread.entered.add(tensor.device)
        yield


def prepared(kernel: str, problem: ConvProblem, flags: int) -> Callable[[Operands], None]:
    """A call of the kernel on the problem, to be made any number of times."""
    from cnnkern.triton_kernels.launch import run

    family, config = listed()[kernel]

    def call(operands: Operands) -> None:
        with on_device_of(operands.x):
            run(family.launches(problem, operands, config))

    return call


class TritonBackend:
    """The Triton kernels, each config of each a kernel of its own."""

    name = "triton"
    device = "cuda"

    def why_missing(self) -> str:
        """Empty, or why none of its kernels can run on this machine."""
        return why_missing()

    def kernels(self) -> Sequence[str]:
        """Names of all kernels, in dispatch order."""
        return list(listed())

    def candidates(self, problem: ConvProblem, flags: int = 0) -> Sequence[Candidate]:
        """The kernels of the problem's direction and dtype, of each the config picked first, with their answers."""
        return [
            Candidate(_name(kernel, problem.dtype, config), *answer)
            for kernel in _kernels()
            if kernel.direction == problem.direction and problem.dtype in kernel.dtypes
            for config, *answer in _answers(kernel, problem, flags)
        ]


def why_too_large(problem: ConvProblem) -> str:
    """Empty, or which of the problem's sizes a Triton kernel cannot count."""
    if problem.n * max(problem.h * problem.w, problem.p * problem.q) >= MOST_PIXELS:
        return "its pixels are counted in 32 bits, with room for a split's last"
    x_row, y_row = problem.w * (problem.x_pixel_stride or problem.c), problem.q * (problem.y_pixel_stride or problem.k)
    return "elements of a row are counted in 32 bits" if max(x_row, y_row) >= 2**31 else ""


def _answers(kernel: TritonKernel, problem: ConvProblem, flags: int) -> Iterator[tuple[Config, str, str]]:
    """Each config with its why_not and rather_not."""
    why_not = kernel.why_not(problem)
    if kernel.aligned and flags & UNALIGNED:
        why_not = "an operand does not begin at a multiple of 16 bytes"
    why_not = why_too_large(problem) or why_not
    if kernel.capability > chip(flags).capability:
        why_not = f"it needs compute capability {kernel.capability / 10}"
    if why_not:
        yield from ((config, why_not, "") for config in kernel.configs)
        return
    picked = kernel.pick(problem, chip(flags))
    yield picked, "", kernel.rather_not(problem)
    yield from (
        (config, "", f"a tile of {picked} is expected to be faster") for config in kernel.configs if config != picked
    )
