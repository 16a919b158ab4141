"""The device of a measurement: torch's default device, on which operands are drawn and calls are timed.

On a GPU calls are recorded in a CUDA graph and replayed, on both sides of a comparison: what is timed is the GPU's
work, as in a compiled model, and not Python's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Call = Callable[[], Tensor]


def kind() -> str:
    """Its type: "cpu" or "cuda"."""
    return torch.get_default_device().type


@contextmanager
def plain_float32() -> Iterator[None]:
    """float32 is multiplied as float32, on both sides: cuDNN's default is TF32."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def wait() -> None:
    """Returns when everything that was asked of the device is done."""
    if kind() == "cuda":
        torch.cuda.synchronize()


def timed(call: Call) -> tuple[Tensor, float]:
    """What the call returns, and the seconds that it keeps the device busy.

    On a GPU what was asked of it before may still run, and hides the launch.
    """
    if kind() == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        output = call()
        end.record()
        end.synchronize()
        return output, begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    output = call()
    return output, time.perf_counter() - start


def repeated(call: Call, count: int) -> Call:
    """``count`` calls in one, which returns what the last of them returned."""
    if kind() == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                output = call()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def loop() -> Tensor:
        for _ in range(count - 1):
            call()
        return call()

    return loop
