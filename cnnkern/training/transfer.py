"""Training on from another set's weights: the classifier anew, the layers before it frozen or at a lower rate.

With little data only the classifier is trained, with more of it the rest too (Yosinski et al. 2014, arXiv 1411.1792).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def classifier_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The qualified name and the module of the last layer with parameters, in the order of their definition."""
    layers = [(name, m) for name, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None]
    if not layers:
        raise ValueError("the model has no parameters")
    return layers[-1]


def parameter_groups(model: nn.Module, lr: float, backbone_rate: float = 1.0) -> list[dict[str, Any]]:
    """The parameters for an optimizer: the classifier's at ``lr``, all others at ``backbone_rate * lr``.

    At a rate of 0 the others are frozen, which sets their ``requires_grad``; at 1 there is one group.
    """
    if backbone_rate == 1:
        return [{"params": list(model.parameters()), "lr": lr}]
    head = list(classifier_of(model)[1].parameters())
    known = {id(parameter) for parameter in head}
    backbone = [parameter for parameter in model.parameters() if id(parameter) not in known]
    if backbone_rate == 0:
        for parameter in backbone:
            parameter.requires_grad_(False)
        return [{"params": head, "lr": lr}]
    return [{"params": head, "lr": lr}, {"params": backbone, "lr": backbone_rate * lr}]


def train_mode(model: nn.Module) -> None:
    """``model.train()``, but for batch normalisation that is frozen: it keeps the statistics that it came with."""
    model.train()
    for module in model.modules():
        frozen = not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and frozen:
            module.eval()


def load_backbone(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Loads a state_dict of the same network, the classifier's too where its shapes are the same.

    Returns the names that kept the model's own values: those of a classifier of another number of classes, or of
    layers that ``state`` does not have. Raises RuntimeError where the rest does not fit.
    """
    classifier, _ = classifier_of(model)
    own = model.state_dict()
    fits = {
        name: value
        for name, value in state.items()
        if not name.startswith(f"{classifier}.") or value.shape == own[name].shape
    }
    if not fits.keys() & own.keys():
        raise RuntimeError("none of the weights has a name that the model knows")
    return list(model.load_state_dict(fits, strict=False).missing_keys)
