"""What one call costs beside its arithmetic: Conv2d on a 1x8x8x8 input, where next to none is left to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

import cnnkern
from cnnkern import dispatch
from cnnkern.bench.peers import FORMATS
from cnnkern.bench.record import Comparison, Record, WholeRow
from cnnkern.bench.timing import Call, race

SIZE = (1, 8, 8, 8)
CHANNELS = 8
TOLERANCE = 1e-5
SETTINGS = {"forward": False, "forward and backward": True}  # whether it is training

Progress = Callable[[WholeRow], None]


def step(layer: nn.Conv2d, x: Tensor, training: bool) -> Call:
    """A forward pass, or one with a backward pass that gives all three gradients; returns y or dx."""
    wanted = (x, *layer.parameters())
    dy = torch.ones_like(layer(x))

    def forward() -> Tensor:
        return layer(x)

    def forward_and_backward() -> Tensor:
        return torch.autograd.grad(layer(x), wanted, dy)[0]

    return forward_and_backward if training else forward


def measure_call(setting: str, budget: float) -> WholeRow:
    """cnnkern.Conv2d against nn.Conv2d with the same weights, each in its better memory format."""
    training = SETTINGS[setting]
    torch.manual_seed(0)
    theirs = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    ours = cnnkern.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(SIZE)
    calls: dict[str, dict[str, Call]] = {"cnnkern": {}, "torch": {}}
    with nullcontext() if training else torch.no_grad():
        for name, layer in (("cnnkern", ours), ("torch", theirs)):
            for layout, memory_format in FORMATS["cpu"].items():
                image = x.contiguous(memory_format=memory_format).requires_grad_(training)
                calls[name][f"{name} {layout}"] = step(
                    copy.deepcopy(layer).to(memory_format=memory_format), image, training
                )
        contenders, peer = race(calls["cnnkern"], calls["torch"], budget)
    best = min(contenders, key=lambda contender: contender.median)
    error = (best.output - peer.output).abs().max().item()
    return WholeRow(
        name=f"Conv2d({CHANNELS}, {CHANNELS}, 3, padding=1) on {'x'.join(map(str, SIZE))}",
        setting=setting,
        warm=Comparison.of(best, peer),
        error=error,
        fault="" if error <= TOLERANCE else f"differs from torch by {error:.1e}",
    )


def measure(record: Record, budget: float, progress: Progress) -> None:
    """Fills ``record.overhead`` in about ``budget`` seconds."""
    with dispatch.use(fallback="raise"):
        for setting in SETTINGS:
            row = measure_call(setting, budget / len(SETTINGS))
            record.overhead.append(row)
            progress(row)
