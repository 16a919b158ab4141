"""The vendor's side: oneDNN or cuDNN through ATen, as a user who knows it would run it.

On a CPU both memory formats are timed and the better one counts; on a GPU it is channels_last with benchmark=True. The
backward asks for exactly the gradient under measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnkern.bench import device
from cnnkern.bench.operands import Operands
from cnnkern.problem import ConvProblem

FORMATS = {
    "cpu": {"nhwc": torch.channels_last, "nchw": torch.contiguous_format},
    "cuda": {"nhwc": torch.channels_last},
}
LIBRARIES = {"cpu": "onednn", "cuda": "cudnn"}


@contextmanager
def best_of_vendor() -> Iterator[None]:
    """cuDNN picks its algorithms by measurement, as a user who knows it has it do."""
    was = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = was


def vendor_call(problem: ConvProblem, operands: Operands) -> Callable[[], Tensor]:
    """The call on ``operands`` as they lie. Padding must be the same on opposite sides, as ATen has it."""
    x, w, dy, bias = operands.x, operands.w, operands.dy, operands.bias
    stride, padding, dilation = problem.stride, problem.padding[:2], problem.dilation

    def fprop() -> Tensor:
        return F.conv2d(x, w, bias, stride, padding, dilation, problem.groups)

    def gradient(mask: list[bool]) -> tuple[Tensor, ...]:
        return torch.ops.aten.convolution_backward(
            dy, x, w, None, stride, padding, dilation, False, [0, 0], problem.groups, mask
        )

    def dgrad() -> Tensor:
        return gradient([True, False, False])[0]

    def wgrad() -> Tensor:
        return gradient([False, True, False])[1]

    return {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}[problem.direction]


def vendor_calls(problem: ConvProblem, operands: Operands) -> dict[str, Callable[[], Tensor]]:
    """The call in each layout, under the names that their rows bear."""
    torch.backends.cudnn.benchmark = True
    where = device.kind()
    return {
        f"vendor_aten_{problem.direction}_{problem.dtype}_{layout}_any__{LIBRARIES[where]}": vendor_call(
            problem, operands.to(memory_format)
        )
        for layout, memory_format in FORMATS[where].items()
    }
