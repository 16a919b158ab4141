"""AlexNet as it was trained in 2012: half of the maps and neurons of every layer on each of two processes.

Krizhevsky, Sutskever and Hinton 2012, section 3.5: conv2, conv4 and conv5 see the maps of their own GPU only, conv3 and
the fully connected layers see those of both. On one process that is a chain of layers in which conv2, conv4 and conv5
have two groups. :func:`split` gives a process its half of such a chain: it stops for the other one's maps before each
convolution without groups and each linear layer, and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function

from cnnkern.models.alexnet import GroupedLocalResponseNorm

PROCESSES = 2


class Gather(nn.Module):
    """(N, C, ...) on each process, of (N, C / 2, ...) of its own; those of rank 0 come first.

    ``replicated`` says that what follows is the same computation on both processes, as the loss of the logits is. The
    gradient of the half is then the process's own; elsewhere it is the sum of both's.
    """

    def __init__(self, replicated: bool = False) -> None:
        super().__init__()
        self.replicated = replicated

    def forward(self, half: Tensor) -> Tensor:
        """The other process has to call it, too, with a half of the same shape."""
        return _Gather.apply(half, self.replicated)


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, half: Tensor, replicated: bool) -> Tensor:
        ctx.replicated = replicated
        half = half.contiguous()
        halves = [torch.empty_like(half) for _ in range(PROCESSES)]
        dist.all_gather(halves, half)
        return torch.cat(halves, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if not ctx.replicated:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(gradient)
        return gradient.chunk(PROCESSES, dim=1)[dist.get_rank()], None


def split(layers: Iterable[nn.Module], rank: int) -> nn.Sequential:
    """A process's half of a chain of layers, with copies of its half of the weights.

    Args:
        layers: from the images to the logits; convolutions have one group or two, and numbers of maps, neurons and
            classes are even. Layers without parameters work on their own half.
        rank: 0 or 1.

    ``models.create("alexnet_two_gpu")`` is ``[*model.features, model.avgpool, nn.Flatten(), *model.classifier]``.

    Given the same images (N, C, H, W), both halves return the same logits (N, classes). Raises ValueError for a layer
    that cannot be halved.
    """
    halves: list[nn.Module] = []
    whole = True  # whether what has been computed so far is on both processes
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            grouped = isinstance(layer, nn.Conv2d) and layer.groups == PROCESSES
            if not whole and not grouped:
                halves.append(Gather())
            halves.append(_half(layer, rank))
            whole = False
        elif isinstance(layer, GroupedLocalResponseNorm):
            halves.append(nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k))
        elif isinstance(layer, nn.LocalResponseNorm) or any(True for _ in layer.parameters()):
            raise ValueError(f"{layer} works across both halves, or has weights of a kind that is not split")
        else:
            halves.append(copy.deepcopy(layer))
    return nn.Sequential(*halves, Gather(replicated=True))


def _half(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Module:
    """The layer with half of its outputs, and with half of its inputs where it has two groups."""
    half = copy.deepcopy(layer)
    if isinstance(half, nn.Conv2d):
        if half.groups not in (1, PROCESSES) or half.out_channels % PROCESSES:
            raise ValueError(f"{layer} has neither one group nor two, or an odd number of maps")
        half.out_channels //= PROCESSES
        half.in_channels //= half.groups
        half.groups = 1
    else:
        if half.out_features % PROCESSES:
            raise ValueError(f"{layer} has an odd number of outputs")
        half.out_features //= PROCESSES
    half.weight = nn.Parameter(layer.weight.detach().chunk(PROCESSES)[rank].clone())
    if layer.bias is not None:
        half.bias = nn.Parameter(layer.bias.detach().chunk(PROCESSES)[rank].clone())
    return half
