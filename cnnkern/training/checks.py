"""Checks before a run: right gradients, a right first loss, and that twenty images can be learnt by heart."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.func import functional_call

from cnnkern.training.losses import cross_entropy, logits_of

TOO_MUCH = 0.5  # the first loss may be so far from ln(classes): the least that a wrong label or scale costs
BY_HEART = 0.05  # a loss near 0
SMALL_STEP = 1e-8  # many ReLUs, and batch normalisation of few values, bend within a larger one
FEW = 20  # images to learn by heart


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it was right, and the figures."""

    name: str
    passed: bool
    figures: str


def gradients(model: nn.Module, images: Tensor) -> list[Check]:
    """Analytic against numeric gradients in float64, of every layer by itself and of the whole model.

    A layer gets random inputs of the shape that ``images`` (N, C, H, W) have where they reach it; each of its inputs
    and parameters is changed in a random direction (torch.autograd.gradcheck's fast mode). In the model all change
    at once, a little off their present values: at a weight of zero a ReLU may have no gradient. In training mode, with
    the random numbers of dropout and the like fixed. The model is left as it was.
    """
    model = copy.deepcopy(model).double().train()
    layers = dict(model.named_modules())
    checks = []
    for name, shape in _shapes(model, images.double()).items():
        layer = layers[name]
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        function = partial(_computed, layer)
        parameters = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
        checks.append(_gradient(f"gradient of {name}, {layer}", function, (x, *parameters)))
    x = images.double()
    parameters = [parameter.detach() + 0.01 * torch.randn_like(parameter) for parameter in model.parameters()]
    directions = [torch.randn_like(tensor) / tensor.numel() ** 0.5 for tensor in (x, *parameters)]

    def along(t: Tensor) -> tuple[Tensor, ...]:
        return _computed(model, *(a + t * b for a, b in zip((x, *parameters), directions, strict=True)))

    start = torch.zeros((), dtype=torch.float64, requires_grad=True)
    return [*checks, _gradient("gradient of the model", along, (start,), SMALL_STEP)]


def first_loss(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> Check:
    """A softmax that knows nothing has a loss of ln(classes): 2.30 for ten."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        loss = F.cross_entropy(logits_of(model(images)), labels).item()
    expected = math.log(classes)
    return Check("first loss", abs(loss - expected) < TOO_MUCH, f"{loss:.3f}, ln {classes} = {expected:.3f}")


def overfit(model: nn.Module, images: Tensor, labels: Tensor, steps: int = 300, lr: float = 1e-3) -> Check:
    """A few images are learnt to 100% with a loss near 0 within ``steps`` of Adam, by a copy without dropout."""
    model = copy.deepcopy(model).train()
    for layer in model.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    optimizer = torch.optim.Adam(model.parameters(), lr)
    taken, alone, accuracy = 0, math.inf, 0.0
    while taken < steps and not (accuracy == 1 and alone < BY_HEART):
        output = model(images)
        alone = F.cross_entropy(logits_of(output), labels).item()
        accuracy = (logits_of(output).argmax(1) == labels).float().mean().item()
        optimizer.zero_grad()
        cross_entropy(output, labels).backward()
        optimizer.step()
        taken += 1
    figures = f"loss {alone:.4f} and accuracy {accuracy:.0%} after {taken} steps"
    return Check(f"{len(labels)} images by heart", accuracy == 1 and alone < BY_HEART, figures)


def _shapes(model: nn.Module, images: Tensor) -> dict[str, torch.Size]:
    """The shape of what reaches each layer without layers of its own, by its name and in the order of the calls."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            shapes[name] = inputs[0].shape

        return hook

    layers = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
    model(images)
    for handle in handles:
        handle.remove()
    return shapes


def _computed(layer: nn.Module, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """What a layer gives with other parameters, leaving its statistics and the generator's state as they are."""
    names = [name for name, _ in layer.named_parameters()]
    state = dict(zip(names, parameters, strict=True)) | {name: value.clone() for name, value in layer.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _tensors(functional_call(layer, state, (x.clone(),)))


def _gradient(name: str, function: Callable[..., Any], inputs: tuple[Tensor, ...], step: float = 1e-6) -> Check:
    try:
        gradcheck(function, inputs, fast_mode=True, check_undefined_grad=False, eps=step)
    except GradcheckError as error:
        return Check(name, False, str(error).strip().splitlines()[0])
    return Check(name, True, "analytic = numeric")


def _tensors(output: Any) -> tuple[Tensor, ...]:
    """The tensors of an output, which may be a tuple of tuples."""
    if isinstance(output, Tensor):
        return (output,)
    return tuple(tensor for part in output if part is not None for tensor in _tensors(part))
