"""The package's CUDA C++ kernels: libcnnkern_cuda, a C interface of problem strings, device pointers and streams.

The library needs neither torch nor a GPU to be loaded, so its kernels can be asked about any problem anywhere.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnkern.backends.base import Candidate
from cnnkern.flags import gpu_of
from cnnkern.operands import Operands, pixel_stride
from cnnkern.problem import ConvProblem

LIBRARY = Path(__file__).parents[1] / "libcnnkern_cuda.so"
OLDEST = 80  # compute capability
ASSUMED = 90  # where there is no GPU to ask, an H100 or H200


class Pointers(ctypes.Structure):
    """csrc/cuda/kernel.h's Operands."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "w", "y", "scale", "shift", "x_scale", "x_shift", "residual")),
        ("dbias", ctypes.c_void_p),
        ("statistics", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("residual_pixel_stride", ctypes.c_int64),
        *((f"narrow_{name}", ctypes.c_bool) for name in ("scale", "shift", "x_scale", "x_shift")),
    )


_TEXT, _HANDLE, _FLAGS = ctypes.c_char_p, ctypes.c_void_p, (ctypes.c_int64, ctypes.c_int)
# What csrc/cuda/library.h's functions return, and their arguments where they are not all said at the call.
CONVOLUTION: dict[str, tuple[Any, ...]] = {
    "architectures": (_TEXT,),
    "kernels": (_TEXT,),
    "candidates": (_TEXT, _TEXT, *_FLAGS),
    "prepare": (_HANDLE, _TEXT, _TEXT, *_FLAGS),
    "workspace_bytes": (ctypes.c_int64, _HANDLE),
    "partials": (ctypes.c_int64, _HANDLE),
    "release": (None, _HANDLE),
    "run": (_TEXT, _HANDLE, ctypes.POINTER(Pointers), ctypes.c_int, ctypes.c_void_p),
    "error": (_TEXT,),
    "operands_size": (ctypes.c_int64,),
}
TOOLS: dict[str, tuple[Any, ...]] = {
    "channel_shuffle": (_TEXT,),
    "max_pool2d": (_TEXT,),
    "max_pool2d_backward": (_TEXT,),
    "avg_pool2d": (_TEXT,),
    "avg_pool2d_backward": (_TEXT,),
    "global_avg_pool2d": (_TEXT,),
    "global_avg_pool2d_workspace_bytes": (ctypes.c_int64, *(ctypes.c_int64,) * 3),
    "batch_statistics": (_TEXT,),
    "batch_statistics_partials": (ctypes.c_int64, ctypes.c_int, *(ctypes.c_int64,) * 2),
    "batch_moments": (_TEXT,),
    "batch_moments_workspace_bytes": (ctypes.c_int64, *(ctypes.c_int64,) * 2),
    "batch_norm": (_TEXT,),
    "batch_norm_backward": (_TEXT,),
    "batch_norm_backward_workspace_bytes": (ctypes.c_int64, ctypes.c_int, *(ctypes.c_int64,) * 2),
    "conv_max_pool2d": (_TEXT,),
    "conv_max_pool2d_why_not": (_TEXT, _TEXT, _HANDLE, *_FLAGS),
    "separable": (_TEXT,),
    "separable_why_not": (_TEXT, _TEXT, _TEXT, ctypes.c_int64),
}


def declare(library: ctypes.CDLL, functions: dict[str, tuple[Any, ...]]) -> None:
    """Tells ctypes the types of some functions."""
    for name, (result, *arguments) in functions.items():
        function = getattr(library, f"cnnkern_cuda_{name}")
        function.restype = result
        if arguments:
            function.argtypes = arguments


@functools.cache
def _loaded() -> ctypes.CDLL | None:
    """The library; None where it was not built."""
    if not LIBRARY.exists():
        return None
    library = ctypes.CDLL(str(LIBRARY))
    try:
        declare(library, CONVOLUTION | TOOLS)
        fits = library.cnnkern_cuda_operands_size() == ctypes.sizeof(Pointers)
    except AttributeError:
        fits = False
    if not fits:
        raise ImportError(f"{LIBRARY} is of another version of the package: build it again")
    return library


def library() -> ctypes.CDLL:
    """The library; RuntimeError where it was not built."""
    loaded = _loaded()
    if loaded is None:
        raise RuntimeError(why_missing())
    return loaded


@functools.cache
def why_missing(device: torch.device | None = None) -> str:
    """Empty, or why no CUDA C++ kernel can run on the device (None: on any of this machine)."""
    library = _loaded()
    if library is None:
        return "the CUDA kernels were not built: set CNNKERN_CUDA=1 and install again with nvcc at hand"
    if not torch.cuda.is_available():
        return "this torch sees no GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < OLDEST:
        return f"the CUDA kernels need compute capability {OLDEST / 10}, and this GPU has {major}.{minor}"
    return ""


def architectures() -> str:
    """Compute capabilities that the library has code for, as "80 90a"; empty where it was not built."""
    library = _loaded()
    return library.cnnkern_cuda_architectures().decode() if library else ""


def capability(flags: int = 0) -> int:
    """That of the GPU that a kernel is chosen for, as 80 or 90."""
    return _capability(gpu_of(flags)) if torch.cuda.is_available() else ASSUMED


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


class PreparedCall:
    """A kernel and the problem that it is to compute, checked once and called any number of times.

    Raises RuntimeError if the kernel cannot compute the problem.
    """

    def __init__(self, kernel: str, problem: ConvProblem, flags: int) -> None:
        self._library = library()
        given = (kernel.encode(), str(problem).encode(), flags, capability(flags))
        self._handle = self._library.cnnkern_cuda_prepare(*given)
        if not self._handle:
            raise RuntimeError(self._library.cnnkern_cuda_error().decode())
        self._workspace_bytes = self._library.cnnkern_cuda_workspace_bytes(self._handle)
        self.partials = self._library.cnnkern_cuda_partials(self._handle)  # of the statistics that it can leave

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.cnnkern_cuda_release(self._handle)

    def __call__(self, operands: Operands) -> None:
        """Puts the kernel on the current stream of the operands' device; all are NHWC, or KRSC and dense."""
        workspace = operands.x.new_empty(self._workspace_bytes, dtype=torch.uint8) if self._workspace_bytes else None
        given = (
            operands.x, operands.w, operands.y, operands.scale, operands.shift, operands.x_scale, operands.x_shift,
            operands.residual, operands.dbias, operands.statistics, workspace,
        )  # fmt: skip
        pointers = Pointers(
            *(None if tensor is None else tensor.data_ptr() for tensor in given),
            0 if operands.residual is None else pixel_stride(operands.residual),
            *(narrow(vector, operands.x) for vector in given[3:7]),
        )
        with current(operands.x):
            error = self._library.cnnkern_cuda_run(self._handle, pointers, *place(operands.x))
        if error:
            raise RuntimeError(error.decode())


def current(tensor: Tensor) -> torch.cuda.device_of:
    """Within it, the tensor's GPU is the current one.

    The library would see to that itself, but also give the GPU that was current before a context, some hundred MB.
    """
    return torch.cuda.device_of(tensor)


def place(tensor: Tensor) -> tuple[int, int]:
    """The index of its device, and the current stream there."""
    index = tensor.device.index
    return index, torch._C._cuda_getCurrentRawStream(index)


def narrow(vector: Tensor | None, x: Tensor) -> bool:
    """Whether a vector of the channels has the type of the tensors, where that is not float32."""
    return vector is not None and vector.dtype != torch.float32 and vector.dtype == x.dtype


class CudaBackend:
    """Everything in the library's list."""

    name = "cuda"
    device = "cuda"

    def why_missing(self) -> str:
        """Empty, or why none of its kernels can run on this machine."""
        return why_missing()

    def kernels(self) -> Sequence[str]:
        """Names of all kernels, in dispatch order."""
        library = _loaded()
        return library.cnnkern_cuda_kernels().decode().split() if library else []

    def candidates(self, problem: ConvProblem, flags: int = 0) -> Sequence[Candidate]:
        """The kernels of the problem's direction and dtype, with their answers."""
        library = _loaded()
        if library is None:
            return []
        lines = library.cnnkern_cuda_candidates(str(problem).encode(), flags, capability(flags))
        if lines is None:
            raise ValueError(library.cnnkern_cuda_error().decode())
        return [Candidate(*line.split("\t")) for line in lines.decode().splitlines()]
