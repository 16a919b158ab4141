"""Where weights start: the deviation decides whether activations shrink, keep their scale or grow with the depth.

:func:`cnnkern.training.monitoring.activation_statistics` shows it, layer by layer.
"""

from __future__ import annotations

from functools import partial

from torch import nn

INITIALISATIONS = {
    "small": partial(nn.init.normal_, std=0.01),  # Krizhevsky et al. 2012; too small for more than a few layers
    "xavier": partial(nn.init.kaiming_normal_, nonlinearity="linear"),  # 1 / sqrt(fan_in), after Glorot and Bengio 2010
    "msra": partial(nn.init.kaiming_normal_, nonlinearity="relu"),  # sqrt(2 / fan_in): He et al. 2015, arXiv 1502.01852
}


def initialise(model: nn.Module, how: str = "msra") -> nn.Module:
    """Draws the filters and matrices of ``model`` anew, with biases of 0, by one of INITIALISATIONS; returns it."""
    draw = INITIALISATIONS[how]
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model
