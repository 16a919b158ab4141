"""What several architectures are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnnkern import functional
from cnnkern.composed import activate
from cnnkern.functional import joined
from cnnkern.nn import ChannelShuffle, Conv2d, ConvBNReLU2d, DepthwiseSeparableConv2d, _hooked, conv_bn_act

_FUSED = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}

# branch(input, residual, activation) is activation(f(input) + residual), residual None for none.
Branch = Callable[..., Tensor]


class Layers(nn.Sequential):
    """nn.Sequential in which a convolution and the batch normalisation and activation after it are one call.

    So is a channel shuffle, if another module follows. Called with a residual, (N, K, P, Q), it gives
    activation(layers(input) + residual), and with beside and shuffle channel_shuffle(cat([beside, layers(input)], 1),
    shuffle), also in that call. Then the last module is a convolution, its normalisation, or Layers.
    """

    def forward(
        self, input: Tensor, residual: Tensor | None = None, activation: str = "none", *,
        beside: Tensor | None = None, shuffle: int = 1,
    ) -> Tensor:  # fmt: skip
        """(N, K, P, Q) of (N, C, H, W), and the maps of beside."""
        *steps, last = _steps(self)
        for step in steps:
            input = step.run(input, None, "none", None, step.shuffle)
        return last.run(input, residual, activation, beside, shuffle)


class _Step(NamedTuple):
    module: nn.Module
    bn: nn.Module | None
    activation: str
    shuffle: int
    """Groups of the channel shuffle that follows; 1 for none."""

    def run(
        self, input: Tensor, residual: Tensor | None, activation: str, beside: Tensor | None, shuffle: int
    ) -> Tensor:  # fmt: skip
        if isinstance(self.module, Conv2d):
            last = activation if self.activation == "none" else self.activation
            return conv_bn_act(self.module, self.bn, input, last, residual, beside=beside, shuffle=shuffle)
        if isinstance(self.module, Layers):
            return self.module(input, residual, activation, beside=beside, shuffle=shuffle)
        if isinstance(self.module, Separable):
            return joined(self.module(input, residual, activation), beside, shuffle)
        y = self.module(input)
        return joined(activate(y if residual is None else y + residual, activation, 0.0), beside, shuffle)


def _steps(modules: Iterable[nn.Module]) -> Iterator[_Step]:
    rest = list(modules)[::-1]
    while rest:
        module, bn, activation, shuffle = rest.pop(), None, "none", 1
        if isinstance(module, Conv2d):
            if rest and isinstance(rest[-1], _BatchNorm):
                bn = rest.pop()
            if rest and type(rest[-1]) in _FUSED and not _hooked(rest[-1]):
                activation = _FUSED[type(rest.pop())]
        after = rest[-1] if len(rest) > 1 else None
        mergeable = isinstance(module, Conv2d | Layers) and not _hooked(module)
        if mergeable and isinstance(after, ChannelShuffle) and not _hooked(after):
            shuffle = after.groups
            rest.pop()
        yield _Step(module, bn, activation, shuffle)


def conv_bn(
    c_in: int,
    c_out: int,
    kernel: int,
    stride: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
    *,
    padding: int | None = None,
    groups: int = 1,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
) -> Layers:
    """Convolution ("0"), batch normalisation ("1") and unless None an activation ("2"); padded to keep the size."""
    padding = kernel // 2 if padding is None else padding
    conv = Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    return Layers(conv, norm(c_out), *([act()] if act else []))


def named_conv_bn(
    c_in: int, c_out: int, kernel: int | tuple[int, int], stride: int = 1, padding: Any = None, **options: Any
) -> ConvBNReLU2d:
    """Convolution ("conv"), batch normalisation ("bn", eps 0.001) and ReLU; padded to keep the size unless told."""
    if padding is None:
        padding = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else kernel // 2
    return ConvBNReLU2d(c_in, c_out, kernel, stride, padding, **{"eps": 1e-3, **options})


def conv_relu(c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int | None = None, groups: int = 1) -> list:
    """Convolution with a bias, and ReLU; padded to keep the size unless told."""
    padding = kernel // 2 if padding is None else padding
    return [Conv2d(c_in, c_out, kernel, stride, padding, groups=groups), nn.ReLU(inplace=True)]


class Separable(DepthwiseSeparableConv2d):
    """act(bn(pointwise(depthwise(input_act(x))))), padded to keep the size but for the stride.

    In eval mode activations and normalisation are done where the two convolutions read and write.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, *, input_act: str = "none", act: str = "none",
        eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps)
        self.input_act = input_act
        self.act = act

    def forward(self, input: Tensor, residual: Tensor | None = None, activation: str = "none") -> Tensor:
        """(N, K, P, Q) of (N, C, H, W); with a residual as :class:`Layers`."""
        x = conv_bn_act(self.depthwise, None, input, input_activation=self.input_act)
        return conv_bn_act(self.pointwise, self.bn, x, activation if self.act == "none" else self.act, residual)


class Concat(nn.ModuleList):
    """The branches' outputs side by side along the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, sum of K, P, Q) of (N, C, H, W)."""
        return torch.cat([branch(input) for branch in self], dim=1)


class MaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d on cnnkern's kernel."""

    def forward(self, input: Tensor) -> Any:
        """As nn.MaxPool2d."""
        rest = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)
        return functional.max_pool2d(input, *rest)


class AvgPool2d(nn.AvgPool2d):
    """nn.AvgPool2d on cnnkern's kernel."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.AvgPool2d."""
        rest = (self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        return functional.avg_pool2d(input, *rest, self.divisor_override)


class GlobalAvgPool2d(nn.Module):
    """The mean of each map: (N, C, 1, 1) of (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, 1, 1) of (N, C, H, W)."""
        return functional.global_avg_pool2d(input)


class SqueezeExcitation(nn.Module):
    """Each map times a gate in 0..1 computed from the means of all maps (Hu et al., arXiv 1709.01507).

    The two fully connected layers are the 1x1 convolutions ``fc1`` (followed by ReLU or ``act``) and ``fc2``.
    """

    def __init__(self, maps: int, squeezed: int, act: str = "relu", gate: Callable[[], nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.avgpool = GlobalAvgPool2d()
        self.fc1 = Conv2d(maps, squeezed, 1)
        self.fc2 = Conv2d(squeezed, maps, 1)
        self.act = act
        self.gate = gate()

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W), as the input."""
        squeezed = conv_bn_act(self.fc1, None, self.avgpool(input), self.act)
        return input * self.gate(conv_bn_act(self.fc2, None, squeezed))


def stochastic_depth(branch: Tensor, probability: float) -> Tensor:
    """The branch (N, K, P, Q) with images set to 0 at random, and the others scaled so that the mean stays.

    Of training only; each image is dropped with ``probability`` on its own (Huang et al., arXiv 1603.09382).
    """
    kept = branch.new_empty((branch.shape[0], 1, 1, 1)).bernoulli_(1 - probability)
    return branch * (kept / (1 - probability) if probability < 1 else kept)


def add_residual(
    branch: Branch, input: Tensor, residual: Tensor, activation: str = "none", drop_path: float = 0.0
) -> Tensor:
    """activation(branch(input) + residual), by the epilogue of the branch's last convolution.

    ``drop_path`` is the probability with which the branch is dropped, 0 in eval mode.
    """
    if drop_path == 0:
        return branch(input, residual, activation)
    return activate(stochastic_depth(branch(input, None, "none"), drop_path) + residual, activation, 0.0)


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Of each of several residual blocks: linear from 0 for the first to ``last`` (Huang et al., equation 4)."""
    if not 0 <= last < 1:
        raise ValueError(f"drop_path={last}: a probability from 0 to below 1")
    return [last * block / max(blocks - 1, 1) for block in range(blocks)]


def rounded(maps: float, multiple: int = 8) -> int:
    """The nearest multiple, at least one, that is not more than a tenth below ``maps``."""
    nearest = max(multiple, int(maps + multiple / 2) // multiple * multiple)
    return nearest if nearest >= 0.9 * maps else nearest + multiple


def zero_last_scale(module: nn.Module) -> None:
    """Sets the scale of the last batch normalisation in a residual branch to 0: its block starts as the identity."""
    *_, last = (norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d))
    nn.init.zeros_(last.weight)


def initialise(model: nn.Module, *classifiers: nn.Module) -> None:
    """Draws convolutions and linear layers from N(0, 2 / inputs) and zeroes biases (He et al., arXiv 1502.01852).

    ``classifiers``, whose outputs are scores, are drawn from N(0, 0.01 / inputs), so that the first scores are near 0.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        inputs = module.weight[0].numel()
        variance = 0.01 if any(module is classifier for classifier in classifiers) else 2.0
        nn.init.normal_(module.weight, std=math.sqrt(variance / inputs))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
