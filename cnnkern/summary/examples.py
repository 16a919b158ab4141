"""The lectures' worked examples, each as layers that are counted: what a form costs and what another one saves.

Convolutions here have no biases, as in the lectures' arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cnnkern.summary.record import Summary, summary

Size = tuple[int, ...]  # C, H, W; or other numbers that are written together


@dataclass(frozen=True)
class Example:
    """The forms that are compared, and sentences on them; prints as tables."""

    forms: tuple[Summary, ...]
    facts: tuple[str, ...]

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.forms), "\n".join(self.facts)])

    __repr__ = __str__


class Branches(nn.ModuleDict):
    """Modules on the same input, their outputs side by side along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, sum of K, P, Q) of (N, C, H, W)."""
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, without a bias."""
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)


def counted(title: str, model: nn.Module, input: Sequence[int]) -> Summary:
    """The summary of a form under its title."""
    return replace(summary(model, input, biases=False), name=title)


def inception(
    input: Size = (256, 28, 28), naive: bool = False, maps: Size = (128, 192, 96), reduce: int = 64
) -> Example:
    """The Inception module (Szegedy et al., arXiv 1409.4842, figure 2).

    ``maps`` of 1x1, 3x3 and 5x5; unless ``naive``, 1x1 convolutions to ``reduce`` maps before the 3x3 and the 5x5 and
    after the pool.
    """
    c, (one, three, five) = input[0], maps
    pool = nn.MaxPool2d(3, 1, 1)
    if naive:
        branches = {"1x1": conv(c, one, 1), "3x3": conv(c, three, 3), "5x5": conv(c, five, 5), "pool": pool}
    else:
        branches = {
            "1x1": conv(c, one, 1),
            "3x3": nn.Sequential(conv(c, reduce, 1), conv(reduce, three, 3)),
            "5x5": nn.Sequential(conv(c, reduce, 1), conv(reduce, five, 5)),
            "pool": nn.Sequential(pool, conv(c, reduce, 1)),
        }
    found = counted("Inception, naive" if naive else "Inception, with dimension reduction", Branches(branches), input)
    layers = [layer for layer in found.layers if layer.kind == "conv"]
    terms = " + ".join(f"{layer.flops / 1e6:.1f}" for layer in layers)
    output = one + three + five + (c if naive else reduce)
    facts = [
        f"output {input[1]}x{input[2]}x{output}",
        f"convolutions: {terms} = {found.total('conv').flops / 1e6:.0f}M multiply-adds",
    ]
    if not naive and input == (256, 28, 28) and maps == (128, 192, 96) and reduce == 64:
        twice = found.total("conv").flops + max(layer.flops for layer in layers if layer.module.startswith("3x3"))
        facts.append(f'note: the lecture prints "358M ops", which counts the 3x3 twice ({twice / 1e6:.0f}M)')
    return Example((found,), tuple(facts))


def bottleneck(input: Size = (128, 100, 100), filters: int = 256, kernel: int = 5, reduce: int = 32) -> Example:
    """A convolution, and the same one on the few maps that a 1x1 convolution leaves."""
    c = input[0]
    direct = counted(f"{kernel}x{kernel}", conv(c, filters, kernel), input)
    narrow = nn.Sequential(conv(c, reduce, 1), conv(reduce, filters, kernel))
    through = counted(f"{kernel}x{kernel} through {reduce} maps", narrow, input)
    fact = (
        f"weights: {c}*{kernel}*{kernel}*{filters} = {direct.parameters:,} against "
        f"{c}*{reduce} + {reduce}*{kernel}*{kernel}*{filters} = {through.parameters:,}"
    )
    return Example((direct, through), (fact,))


def separable(input: Size = (512, 14, 14), filters: int = 512, kernel: int = 3) -> Example:
    """A convolution, and a depthwise one followed by a 1x1 (Howard et al., arXiv 1704.04861, section 3.1)."""
    c = input[0]
    full = counted(f"{kernel}x{kernel}", conv(c, filters, kernel), input)
    split = nn.Sequential(conv(c, c, kernel, groups=c), conv(c, filters, 1))
    parts = counted(f"depthwise {kernel}x{kernel} and 1x1", split, input)
    ratio = parts.total().flops / full.total().flops
    return Example(
        (full, parts), (f"multiply-adds: 1/{filters} + 1/{kernel}^2 = {ratio:.4f} of the full convolution's",)
    )


def stack(input: Size = (64, 56, 56), layers: int = 3) -> Example:
    """3x3 convolutions in a row, and the one that sees as much (Simonyan and Zisserman, arXiv 1409.1556, 2.3)."""
    c, kernel = input[0], 2 * layers + 1
    small = counted(f"{layers} of 3x3", nn.Sequential(*(conv(c, c, 3) for _ in range(layers))), input)
    large = counted(f"{kernel}x{kernel}", conv(c, c, kernel), input)
    fact = (
        f"both see {kernel}x{kernel} pixels; weights: {layers * 9}C^2 = {small.parameters:,} against "
        f"{kernel**2}C^2 = {large.parameters:,}"
    )
    return Example((small, large), (fact,))


def stage(input: Size = (64, 224, 224)) -> Example:
    """VGG's rule: twice the maps after each pool, so that a convolution costs the same in each stage.

    With 2C maps of H x W a 3x3 convolution takes 36HWC^2 multiply-adds.
    """
    c, h, w = input
    before = counted("before a pool", conv(c, c, 3), input)
    after = counted("after it", conv(2 * c, 2 * c, 3), (2 * c, h // 2, w // 2))
    fact = (
        f"multiply-adds: 36*{h}*{w}*{c // 2}^2 = {36 * h * w * (c // 2) ** 2:,}: {before.total().flops:,} before and "
    )
    return Example((before, after), (f"{fact}{after.total().flops:,} after",))


def one_conv(input: Size, filters: int, kernel: int, stride: int = 1, padding: int = 0) -> Example:
    """The output size and the weights of a convolution."""
    layer = nn.Conv2d(input[0], filters, kernel, stride, padding, bias=False)
    found = counted("convolution", layer, input)
    sizes = " x ".join(f"({size} - {kernel} + 2*{padding})/{stride} + 1" for size in input[1:])
    p, q = found.layers[0].size_out
    return Example(
        (found,),
        (
            f"output: floor of {sizes} = {p}x{q}, {filters} maps",
            f"weights: {kernel}*{kernel}*{input[0]}*{filters} = {math.prod(layer.weight.shape):,}",
        ),
    )


EXAMPLES: dict[str, Callable[..., Example]] = {
    "bottleneck": bottleneck,
    "conv": one_conv,
    "inception": inception,
    "separable": separable,
    "stack": stack,
    "stage": stage,
}
