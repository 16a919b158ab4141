"""Several sets of weights for one answer: an average along the run, or an ensemble of its snapshots."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cnnkern.training.losses import logits_of


def polyak(model: nn.Module, decay: float = 0.995) -> AveragedModel:
    """A copy whose weights and statistics become ``decay`` of themselves and the rest the model's, at each update."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class Ensemble(nn.Module):
    """The mean of the members' class probabilities, as log-probabilities (N, classes)."""

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """(N, classes) of (N, C, H, W)."""
        return mean_of_probabilities([logits_of(member(images)) for member in self.members])


def snapshot_ensemble(model: nn.Module, states: Iterable[Mapping[str, Tensor]]) -> Ensemble:
    """Copies of ``model`` with each of the state_dicts (Huang et al. 2017, arXiv 1704.00109)."""
    members = []
    for state in states:
        members.append(copy.deepcopy(model))
        members[-1].load_state_dict(state)
    return Ensemble(members)


def mean_of_probabilities(logits: Iterable[Tensor]) -> Tensor:
    """log(mean(softmax(logits))) over several answers (N, classes) to the same images."""
    each = torch.stack([answer.log_softmax(dim=1) for answer in logits])
    return each.logsumexp(dim=0) - math.log(len(each))
