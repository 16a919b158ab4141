"""What is minimised: cross-entropy, of auxiliary classifiers too, and penalties on the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Output = Tensor | tuple[Any, ...]
"""Logits (N, classes). In training also (logits, auxiliary logits, ...) or (logits, (auxiliary logits, ...)): a plain
or a named tuple, in which None stands for a classifier that is off."""


def logits_of(output: Output) -> Tensor:
    """The main classifier's logits (N, classes)."""
    return output[0] if isinstance(output, tuple) else output


def auxiliary_of(output: Output) -> list[Tensor]:
    """The auxiliary classifiers' logits, (N, classes) each."""
    rest = output[1:] if isinstance(output, tuple) else ()
    each = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple) else rest
    return [logits for logits in each if logits is not None]


def cross_entropy(
    output: Output, labels: Tensor, label_smoothing: float = 0.0, auxiliary_weight: float = 0.3
) -> Tensor:
    """The mean cross-entropy of logits with labels (N,).

    Args:
        output: logits, and those of auxiliary classifiers (Szegedy et al. 2014, arXiv 1409.4842, section 5).
        labels: (N,), int64.
        label_smoothing: e in q' = (1 - e) q + e / classes (Szegedy et al. 2015, arXiv 1512.00567, section 7).
        auxiliary_weight: of each auxiliary classifier's loss; 0.3 in GoogLeNet.
    """
    loss = F.cross_entropy(logits_of(output), labels, label_smoothing=label_smoothing)
    for auxiliary in auxiliary_of(output):
        loss = loss + auxiliary_weight * F.cross_entropy(auxiliary, labels, label_smoothing=label_smoothing)
    return loss


def elastic_net(weights: Iterable[Tensor], l1: float = 0.0, l2: float = 0.0) -> Tensor:
    """sum(l1 |w| + l2 / 2 w^2): its gradient is l1 sign(w) + l2 w, so that ``l2`` is what SGD calls weight decay."""
    each = [l1 * weight.abs().sum() + l2 / 2 * weight.square().sum() for weight in weights]
    return torch.stack(each).sum()


def weights_of(model: nn.Module) -> list[Tensor]:
    """What is penalised: filters and matrices that are trained, and neither biases nor batch normalisation's."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
