"""Whole models: converted by cnnkern.convert, against torch eager in both memory formats or torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import cnnkern
from cnnkern import dispatch
from cnnkern.bench import device, networks
from cnnkern.bench.peers import FORMATS, best_of_vendor
from cnnkern.bench.record import Comparison, Record, WholeRow
from cnnkern.bench.run import FAILED
from cnnkern.bench.timing import race
from cnnkern.problem import DTYPES

CONVERTED = ("resnet50", "vgg16", "googlenet", "mobilenet_v2")
BATCHES = (1, 16)
ALLOWED = 4  # times the error of torch's own forward pass, both against float64
FLOAT64_IMAGES = 1  # of a batch, the images whose answer is also computed in float64

Progress = Callable[[WholeRow], None]
Peers = dict[str, Callable[[], Tensor]]


def error_of(got: Tensor, wanted: Tensor) -> float:
    """The largest deviation relative to the largest value."""
    return ((got.double() - wanted).abs().max() / wanted.abs().max()).item()


def find_fault(ours: Tensor, theirs: Tensor, wanted: Tensor) -> str:
    """Empty, or why the converted model's answer is wrong."""
    error, allowed = error_of(ours, wanted), ALLOWED * max(error_of(theirs, wanted), torch.finfo(ours.dtype).eps)
    return "" if error <= allowed else f"the answer is off by {error:.1e}, which is more than {allowed:.1e}"


def eager(model: nn.Module, images: Tensor) -> Peers:
    """torch as it is, in each memory format."""
    return {
        f"torch eager {layout}": partial(
            copy.deepcopy(model).to(memory_format=form), images.contiguous(memory_format=form)
        )
        for layout, form in FORMATS[device.kind()].items()
    }


def compiled(model: nn.Module, images: Tensor) -> Peers:
    """torch.compile with all that it tunes, in channels_last; on a GPU we record the CUDA graph, as for our side."""
    mode = {"cpu": "max-autotune", "cuda": "max-autotune-no-cudagraphs"}[device.kind()]
    laid_out = copy.deepcopy(model).to(memory_format=torch.channels_last)
    call = partial(torch.compile(laid_out, mode=mode), images.contiguous(memory_format=torch.channels_last))
    call()  # compiles
    return {"torch.compile nhwc": call}


PEERS: dict[str, Callable[[nn.Module, Tensor], Peers]] = {"eager": eager, "compile": compiled}


def measure_model(name: str, batch: int, dtype: str, against: str, budget: float) -> WholeRow:
    """One forward pass of a converted network against a peer of PEERS."""
    torch.manual_seed(0)
    model = networks.build(name).eval().to(DTYPES[dtype])
    images = torch.randn(batch, *networks.input_size(name), dtype=DTYPES[dtype])
    converted = copy.deepcopy(model)
    cnnkern.convert(converted)
    call = partial(converted, images.contiguous(memory_format=torch.channels_last))
    (ours,), peer = race({f"converted {name}": call}, PEERS[against](model, images), budget)
    wanted = model.double()(images[:FLOAT64_IMAGES].double())
    answer, theirs = ours.output[:FLOAT64_IMAGES], peer.output[:FLOAT64_IMAGES]
    return WholeRow(
        name=name,
        setting=f"forward, {dtype}, batch {batch}",
        warm=Comparison.of(ours, peer),
        error=error_of(answer, wanted),
        fault=find_fault(answer, theirs, wanted),
    )


def measure(
    record: Record, names: Sequence[str], batches: Sequence[int], against: Sequence[str], budget: float,
    progress: Progress, where: str = "cpu", dtype: str = "f32",
) -> None:  # fmt: skip
    """Fills ``record.models`` in about ``budget`` seconds, and what compiling takes, on a type of device."""
    rows = [(name, batch, peer) for name in names for batch in batches for peer in against]
    with (
        torch.device(where),
        torch.inference_mode(),
        dispatch.use(fallback="raise"),
        device.plain_float32(),
        best_of_vendor(),
    ):
        for name, batch, peer in rows:
            try:
                row = measure_model(name, batch, dtype, peer, budget / len(rows))
            except Exception as error:  # the others are worth measuring all the same
                record.missing[f"{name}, batch {batch}, against {peer}"] = f"{FAILED}{error}"
                continue
            record.models.append(row)
            progress(row)
