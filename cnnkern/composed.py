"""Prologue and epilogue as torch's own operators: where a kernel's fused ones are differentiated, or have no kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda x, alpha: x,
    "relu": lambda x, alpha: F.relu(x),
    "relu6": lambda x, alpha: F.relu6(x),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
    "elu": lambda x, alpha: F.elu(x, alpha),
    "hardswish": lambda x, alpha: F.hardswish(x),
    "silu": lambda x, alpha: F.silu(x),
    "sigmoid": lambda x, alpha: torch.sigmoid(x),
    "tanh": lambda x, alpha: torch.tanh(x),
}


def activate(x: Tensor, activation: str, alpha: float) -> Tensor:
    """The activation, elementwise; alpha is leaky_relu's slope below 0 and elu's factor."""
    return _ACTIVATIONS[activation](x, alpha)


def affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """scale * x + shift for x (N, C, H, W), scale and shift (C,) or None, in the wider of their dtypes."""
    x = x if scale is None else x * scale[:, None, None]
    return x if shift is None else x + shift[:, None, None]


def prologue(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str | None, alpha: float | None
) -> Tensor:
    """activation(scale * x + shift) in x's dtype."""
    return activate(affine(x, scale, shift), activation or "none", alpha or 0.0).to(x.dtype)


def epilogue(
    y: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, activation: str, alpha: float
) -> Tensor:
    """activation(scale * y + shift + residual) in y's dtype; residual (N, K, P, Q) or None."""
    z = affine(y, scale, shift)
    return activate(z if residual is None else z + residual, activation, alpha).to(y.dtype)
