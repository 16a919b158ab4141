"""The table of models: what each of them costs, counted on a model without memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from cnnkern.models._registry import Entry, create, entry, names


class Cost(NamedTuple):
    """What a model costs as published, for one image."""

    parameters: int
    multiply_adds: int
    """Of convolutions and linear layers."""


@functools.cache
def cost(name: str) -> Cost:
    """The cost of an architecture without options, for an image of its published size, in eval mode."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = create(name).eval()
        model(torch.empty(1, *entry(name).input_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)


def table(pattern: str = "*") -> str:
    """Every architecture that a shell-style pattern fits, by year, as a Markdown table."""
    lines = [
        "| model | year | parameters | multiply-adds, G | input | smallest | torchvision's keys | error, % | source |",
        "|---|---:|---:|---:|---|---:|---|---|---|",
    ]
    lines += [_row(facts) for facts in sorted(map(entry, names(pattern)), key=lambda facts: (facts.year, facts.name))]
    return "\n".join(lines)


def _row(facts: Entry) -> str:
    parameters, multiply_adds = cost(facts.name)
    cells = [
        facts.name,
        str(facts.year),
        f"{parameters:,}",
        f"{multiply_adds / 1e9:.3f}" if multiply_adds >= 1e7 else f"{multiply_adds / 1e9:.5f}",
        "x".join(map(str, facts.input_size)),
        str(facts.smallest),
        "yes" if facts.torchvision else "",
        _error(facts),
        facts.paper,
    ]
    return f"| {' | '.join(cells)} |"


def _error(facts: Entry) -> str:
    if facts.error is None:
        return ""
    top1, top5, source = facts.error
    figures = [f"top-{k} {value}" for k, value in ((1, top1), (5, top5)) if value is not None]
    return f"{', '.join(figures)} ({source})"
