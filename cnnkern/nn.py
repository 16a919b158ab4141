"""Modules: torch.nn's convolutions, and the blocks built from them, on cnnkern's kernels.

Every module here has torch.nn's parameters under torch.nn's names, so a state_dict goes both ways.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from cnnkern import batch_norm
from cnnkern.arguments import alpha_of, autocasts, in_transform
from cnnkern.composed import activate
from cnnkern.functional import (
    channel_shuffle,
    conv2d,
    depthwise_separable_conv2d,
    fused_conv2d,
    joined,
    shuffled_conv2d,
)

# torch.fx records a call of these as one node, as it does for torch.nn.functional's.
for _name in ("channel_shuffle", "conv2d", "depthwise_separable_conv2d", "fused_conv2d", "shuffled_conv2d"):
    torch.fx.wrap(_name)

# And torch.jit.script compiles a call of these as torch's operator.
torch.jit._builtins._register_builtin(conv2d, "aten::conv2d")
torch.jit._builtins._register_builtin(channel_shuffle, "aten::channel_shuffle")

_Size = int | tuple[int, int]
_TRAINED_FUSED = (torch.float32, torch.bfloat16, torch.float16)


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` computed by :func:`cnnkern.functional.conv2d`.

    Arguments, attributes, shapes, errors and state_dict are those of nn.Conv2d: input (N, C, H, W) or (C, H, W),
    output (N, K, P, Q) or (K, P, Q), in channels_last where the input or the weight is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Conv2d; parameters are read from where nn.Module keeps them, for as attributes they take long to find.

        A normalisation, a parametrization or a replica keeps them elsewhere.
        """
        if torch.jit.is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        else:  # said, for what stands after an `if` TorchScript compiles in any case
            parameters: dict[str, Any] = self._parameters
            if "weight" in parameters and "bias" in parameters:
                return self._conv_forward(input, parameters["weight"], parameters["bias"])
            return self._conv_forward(input, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode == "zeros":
            return conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        padded = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)

    def _get_name(self) -> str:
        return "cnnkern.Conv2d"


class LazyConv2d(nn.LazyConv2d):
    """:class:`torch.nn.LazyConv2d` that becomes a :class:`cnnkern.Conv2d` at the first call."""

    cls_to_become = Conv2d


class ConvBNReLU2d(nn.Module):
    """activation(bn(conv(x))): one fused kernel where batch normalisation has fixed statistics (eval mode).

    The scale and shift that the kernel applies are folded from ``bn`` at each call: nothing is cached, so running
    statistics and parameters may change at any time. In training mode, or where a hook sits on ``conv`` or ``bn``, the
    three layers run one after another. Gradients are right in both modes.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as nn.Conv2d.
        bias: whether ``conv`` has a bias; batch normalisation makes it redundant.
        eps, momentum: as nn.BatchNorm2d.
        activation: a name that :func:`cnnkern.functional.fused_conv2d` takes.
        alpha: the slope of "leaky_relu", the alpha of "elu"; None for fused_conv2d's defaults.

    Input (N, C, H, W), output (N, K, P, Q). ``bn`` is a real nn.BatchNorm2d, so
    nn.SyncBatchNorm.convert_sync_batchnorm works on the block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size | str = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        activation: str = "relu",
        alpha: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **placement)
        self.bn = nn.BatchNorm2d(out_channels, eps, momentum, **placement)
        self.activation = activation
        self.alpha = alpha
        alpha_of(activation, alpha)  # raises ValueError for an activation or alpha that there is not

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        return conv_bn_act(self.conv, self.bn, input, self.activation, alpha=self.alpha)

    def extra_repr(self) -> str:
        """The activation, for the block's repr."""
        return f"activation={self.activation}" + ("" if self.alpha is None else f", alpha={self.alpha}")


class DepthwiseSeparableConv2d(nn.Module):
    """A depthwise convolution followed by a 1x1 convolution, in one kernel where no gradient is needed.

    Args:
        in_channels, out_channels: C and K.
        kernel_size, stride, padding, dilation: of the depthwise part, as nn.Conv2d.
        bias: whether both parts have a bias.

    Input (N, C, H, W), output (N, K, P, Q). The parts are the modules ``depthwise`` and ``pointwise``; where a hook
    sits on one of them they run one after the other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size | str = 0,
        dilation: _Size = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        self.depthwise = Conv2d(
            in_channels, in_channels, kernel_size, stride, padding, dilation, in_channels, bias, **placement
        )
        self.pointwise = Conv2d(in_channels, out_channels, 1, bias=bias, **placement)

    def forward(self, input: Tensor) -> Tensor:
        """(N, K, P, Q) of (N, C, H, W)."""
        depthwise, pointwise = self.depthwise, self.pointwise
        if _hooked(depthwise) or _hooked(pointwise):
            return pointwise(depthwise(input))
        return depthwise_separable_conv2d(
            input,
            depthwise.weight,
            pointwise.weight,
            depthwise.bias,
            pointwise.bias,
            depthwise.stride,
            depthwise.padding,
            depthwise.dilation,
        )


class ChannelShuffle(nn.ChannelShuffle):
    """:class:`torch.nn.ChannelShuffle` on cnnkern's kernel: (N, C, H, W) in, the same out, the layout kept."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.ChannelShuffle."""
        return channel_shuffle(input, self.groups)


def conv_bn_act(
    conv: nn.Conv2d,
    bn: nn.Module | None,
    input: Tensor,
    activation: str = "none",
    residual: Tensor | None = None,
    *,
    alpha: float | None = None,
    input_bn: nn.Module | None = None,
    input_activation: str = "none",
    beside: Tensor | None = None,
    shuffle: int = 1,
) -> Tensor:
    """activation(bn(conv(input_activation(input_bn(input)))) + residual), fused where statistics are fixed (eval mode).

    What a model calls on convolutions and batch normalisations that it names itself. The scale and shift that the
    kernel applies are folded at each call: nothing is cached. Where a normalisation takes the batch's statistics, or a
    hook expects to see one of the modules called, they run one after another; on a GPU a plain convolution and
    nn.BatchNorm2d in training are fused too (:mod:`cnnkern.batch_norm`). Gradients are right in every case.

    Args:
        conv: a convolution, (N, C, H, W) to (N, K, P, Q).
        bn: nn.BatchNorm2d or nn.SyncBatchNorm over the K maps, or None.
        input: (N, C, H, W).
        activation, alpha, input_activation: as :func:`cnnkern.functional.fused_conv2d`.
        residual: (N, K, P, Q), added before the activation, or None.
        input_bn: as ``bn``, over the C maps of the input.
        beside, shuffle: as :func:`cnnkern.functional.shuffled_conv2d`, which does it where there is neither a residual
            nor something done to the input.

    Returns (N, K, P, Q), and the maps of beside. Raises ValueError for an activation or alpha that there is not.
    """
    if input_bn is None and input_activation == "none" and _trains_fused(conv, bn, input):
        return _train_fused(conv, bn, input, activation, alpha, residual, beside, shuffle)
    if _hooked(conv) or conv.padding_mode != "zeros" or _runs_itself(bn) or _runs_itself(input_bn):
        input = input if input_bn is None else input_bn(input)
        y = conv(activate(input, input_activation, alpha_of(input_activation, None)))
        y = y if bn is None else bn(y)
        y = activate(y if residual is None else y + residual, activation, alpha_of(activation, alpha))
        return joined(y, beside, shuffle)
    scale, shift = _folded(bn)
    call = (input, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    how: dict[str, Any] = {"scale": scale, "shift": shift, "activation": activation, "alpha": alpha}
    if shuffle > 1 and residual is None and input_bn is None and input_activation == "none":
        return shuffled_conv2d(*call, shuffle=shuffle, beside=beside, **how)
    input_scale, input_shift = _folded(input_bn)
    how |= {"input_scale": input_scale, "input_shift": input_shift, "input_activation": input_activation}
    return joined(fused_conv2d(*call, residual=residual, **how), beside, shuffle)


def fold_batch_norm(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The (scale, shift), each of K elements, with which bn(y) is scale * y + shift in eval mode.

    Computed in float32 where the statistics are of lower precision (Ioffe and Szegedy, arXiv 1502.03167).
    Differentiable with respect to the weight and bias of ``bn``. Raises ValueError where there are no running
    statistics.
    """
    mean, variance = bn.running_mean, bn.running_var
    if mean is None or variance is None:
        raise ValueError(f"{bn} has no running statistics to fold")
    accumulate = torch.promote_types(variance.dtype, torch.float32)
    scale = torch.rsqrt(variance.to(accumulate) + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight
    offset = mean * scale
    return scale, -offset if bn.bias is None else bn.bias - offset


def _trains_fused(conv: nn.Conv2d, bn: nn.Module | None, input: Tensor) -> bool:
    """Whether the kernels of a layer in training take this one: what they leave out, torch's layers do."""
    return (
        type(input) is Tensor
        and input.is_cuda
        and type(bn) is nn.BatchNorm2d
        and bn.training
        and bn.momentum is not None  # a cumulative average asks the GPU how many batches there were
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and input.dim() == 4
        and input.dtype == conv.weight.dtype
        and input.dtype in _TRAINED_FUSED
        and input.numel() > 0
        and not (_hooked(conv) or _hooked(bn) or autocasts(input) or in_transform() or torch.compiler.is_compiling())
        and forward_ad._current_level < 0
        and not batch_norm.why_missing(input.device)
    )


def _train_fused(
    conv: nn.Conv2d, bn: Any, input: Tensor, activation: str, alpha: float | None, residual: Tensor | None,
    beside: Tensor | None, shuffle: int,
) -> Tensor:  # fmt: skip
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    shape = (conv.stride, conv.padding, conv.dilation, conv.groups)
    how = {"eps": bn.eps, "momentum": bn.momentum, "activation": activation, "alpha": alpha, "residual": residual}
    how |= {"beside": beside, "shuffle": shuffle}
    return batch_norm.conv_bn_act(
        input, conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var, *shape, **how
    )


def _runs_itself(bn: Any) -> bool:
    """Whether a normalisation must be called: for the batch's statistics, or because a hook waits for the call."""
    return bn is not None and (bn.training or bn.running_mean is None or _hooked(bn))


def _folded(bn: Any) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if bn is None else fold_batch_norm(bn)


def _hooked(module: nn.Module) -> bool:
    """Whether a hook expects to see the module called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
