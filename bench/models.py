"""Whole models: converted by cnnkern.convert, against torch eager in both memory formats."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import cnnkern
from cnnkern import dispatch
from cnnkern.bench import device, networks
from cnnkern.bench.peers import FORMATS
from cnnkern.bench.record import Comparison, Record, WholeRow
from cnnkern.bench.timing import race

CONVERTED = ("resnet50", "vgg16", "googlenet", "mobilenet_v2")
BATCHES = (1, 16)
ALLOWED = 4  # times the error of torch's own forward pass, both against float64
FLOAT64_IMAGES = 1  # of a batch, the images whose answer is also computed in float64

Progress = Callable[[WholeRow], None]


def error_of(got: Tensor, wanted: Tensor) -> float:
    """The largest deviation relative to the largest value."""
    return ((got.double() - wanted).abs().max() / wanted.abs().max()).item()


def find_fault(ours: Tensor, theirs: Tensor, wanted: Tensor) -> str:
    """Empty, or why the converted model's answer is wrong."""
    error, allowed = error_of(ours, wanted), ALLOWED * max(error_of(theirs, wanted), torch.finfo(ours.dtype).eps)
    return "" if error <= allowed else f"the answer is off by {error:.1e}, which is more than {allowed:.1e}"


def measure_model(name: str, batch: int, budget: float) -> WholeRow:
    """One forward pass of a converted network against the better of torch's two layouts."""
    torch.manual_seed(0)
    model = networks.build(name).eval()
    images = torch.randn(batch, *networks.input_size(name))
    converted = copy.deepcopy(model)
    cnnkern.convert(converted)
    formats = FORMATS[device.kind()]
    laid_out = {layout: copy.deepcopy(model).to(memory_format=form) for layout, form in formats.items()}
    pictures = {layout: images.contiguous(memory_format=form) for layout, form in formats.items()}
    peers = {f"torch eager {layout}": partial(laid_out[layout], pictures[layout]) for layout in formats}
    (ours,), peer = race({f"converted {name}": partial(converted, pictures["nhwc"])}, peers, budget)
    wanted = model.double()(images[:FLOAT64_IMAGES].double())
    answer, theirs = ours.output[:FLOAT64_IMAGES], peer.output[:FLOAT64_IMAGES]
    return WholeRow(
        name=name,
        setting=f"forward, f32, batch {batch}",
        warm=Comparison.of(ours, peer),
        error=error_of(answer, wanted),
        fault=find_fault(answer, theirs, wanted),
    )


def measure(
    record: Record, names: Sequence[str], batches: Sequence[int], budget: float, progress: Progress, where: str = "cpu"
) -> None:
    """Fills ``record.models`` in about ``budget`` seconds, on a type of device."""
    pairs = [(name, batch) for name in names for batch in batches]
    with torch.device(where), torch.inference_mode(), dispatch.use(fallback="raise"), device.plain_float32():
        for name, batch in pairs:
            row = measure_model(name, batch, budget / len(pairs))
            record.models.append(row)
            progress(row)
