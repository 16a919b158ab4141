"""The depthwise-separable layers of MobileNetV1 as one operator: against their two convolutions, ours and torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnkern import dispatch, functional
from cnnkern.bench import shapes
from cnnkern.bench.allocator import keep_freed_memory
from cnnkern.bench.peers import FORMATS
from cnnkern.bench.record import Comparison, Record, WholeRow
from cnnkern.bench.suites import family
from cnnkern.bench.timing import Call, race
from cnnkern.problem import ConvProblem

BATCHES = (1, 16)
TOLERANCE = 1e-5  # of the largest output
TWO_KERNELS = "our two convolutions"

Pair = tuple[ConvProblem, ConvProblem]
Progress = Callable[[WholeRow], None]


def pairs() -> list[Pair]:
    """Each depthwise layer of the network with the pointwise one that reads its output."""
    problems = [layer.problem for layer in shapes.read("mobilenet_v1")]
    following = {(p.c, p.h, p.w): p for p in reversed(problems) if family(p) == "pointwise"}
    return [(p, following[p.k, p.p, p.q]) for p in problems if family(p) == "depthwise"]


def composition(conv2d: Callable[..., Tensor], depthwise: ConvProblem, x: Tensor, dw: Tensor, pw: Tensor) -> Call:
    """The pair as two calls of ``conv2d``."""
    geometry = (None, depthwise.stride, depthwise.padding[:2], depthwise.dilation, depthwise.groups)
    return lambda: conv2d(conv2d(x, dw, *geometry), pw)


def measure_pair(pair: Pair, batch: int, budget: float) -> list[WholeRow]:
    """The fused operator in NHWC against our two kernels, and against torch's in its better memory format."""
    depthwise, pointwise = pair
    torch.manual_seed(0)
    image = torch.randn(batch, depthwise.c, depthwise.h, depthwise.w)
    filters = torch.randn(depthwise.c, 1, depthwise.r, depthwise.s), torch.randn(pointwise.k, pointwise.c, 1, 1)

    def operands(memory_format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
        x, dw, pw = (tensor.contiguous(memory_format=memory_format) for tensor in (image, *filters))
        return x, dw, pw

    x, dw, pw = operands(torch.channels_last)

    def fused_call() -> Tensor:
        return functional.depthwise_separable_conv2d(
            x, dw, pw, stride=depthwise.stride, padding=depthwise.padding[:2], dilation=depthwise.dilation
        )

    peers: dict[str, dict[str, Call]] = {
        "two kernels": {TWO_KERNELS: composition(functional.conv2d, depthwise, x, dw, pw)},
        "torch": {
            f"torch {layout}": composition(F.conv2d, depthwise, *operands(memory_format))
            for layout, memory_format in FORMATS["cpu"].items()
        },
    }
    rows = []
    for against, calls in peers.items():
        (fused,), peer = race({"fused": fused_call}, calls, budget / len(peers))
        error = ((fused.output - peer.output).abs().max() / peer.output.abs().max()).item()
        rows.append(
            WholeRow(
                name=f"{depthwise.c} -> {pointwise.k} maps, {depthwise.h}x{depthwise.w}"
                + ("/2" if depthwise.stride != (1, 1) else ""),
                setting=f"against {against}, f32, batch {batch}",
                warm=Comparison.of(fused, peer),
                error=error,
                fault="" if error <= TOLERANCE else f"differs from the {against} by {error:.1e}",
            )
        )
    return rows


def measure(record: Record, batches: Sequence[int], budget: float, progress: Progress) -> None:
    """Fills ``record.fused`` in about ``budget`` seconds."""
    keep_freed_memory()
    layers = [(pair, batch) for batch in batches for pair in pairs()]
    with dispatch.use(fallback="raise"), torch.inference_mode():
        for pair, batch in layers:
            for row in measure_pair(pair, batch, budget / len(layers)):
                record.fused.append(row)
                progress(row)
