"""torch.nn.functional's convolution and its neighbours, on cnnkern's kernels.

Every function takes what torch's function of the same name takes and gives what it gives. Calls that the package has no
kernel for are torch's to compute (and counted: :func:`cnnkern.dispatch.fallback_counts`), calls that are wrong are
torch's to refuse, so that errors are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# By name, as they are now: a caller may put this module's functions in the place of torch's.
from torch.nn.functional import adaptive_avg_pool2d as torch_adaptive_avg_pool2d
from torch.nn.functional import avg_pool2d as torch_avg_pool2d
from torch.nn.functional import channel_shuffle as torch_channel_shuffle
from torch.nn.functional import conv2d as torch_conv2d
from torch.nn.functional import max_pool2d as torch_max_pool2d
from torch.nn.functional import max_pool2d_with_indices as torch_max_pool2d_with_indices

from cnnkern import autograd, autograd_tools, composed, dispatch, ops
from cnnkern.arguments import (
    Size,
    allows_tf32,
    alpha_of,
    autocast,
    autocasts,
    emits_aten,
    geometry_of,
    in_transform,
    is_common,
    pair,
    why_not_own,
)
from cnnkern.backends import OWN_BACKENDS
from cnnkern.dispatch import Kernels, Settings
from cnnkern.flags import DETERMINISTIC, ONLY, TF32
from cnnkern.ops import Constants
from cnnkern.problem import DTYPE_NAMES


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    kernel: str | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.conv2d`: same arguments, result, errors and autocasting.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (K, C / groups, R, S).
        bias: (K,) or None.
        stride, padding, dilation: pixels, one number or (vertical, horizontal); padding also "same" or "valid".
        groups: divides C and K.
        kernel: name of the kernel to run; RuntimeError if it cannot.

    Returns (N, K, P, Q) or (K, P, Q), in channels_last if input or weight is.
    """
    if is_common(input, weight, bias):
        settings = dispatch.settings(kernel)
        geometry = geometry_of(weight, stride, padding, dilation, groups)
        if settings.backend is None and geometry is not None:
            try:
                return autograd.conv2d(input, weight, bias, geometry, _flags(settings, input), settings.kernels)
            except (RuntimeError, TypeError):
                pass  # what follows says what is wrong, or hands the call over
    return _conv2d(input, weight, bias, stride, padding, dilation, groups, kernel)


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Size | str, dilation: Size, groups: int,
    kernel: str | None,
) -> Tensor:  # fmt: skip
    """:func:`conv2d` of anything, anywhere."""
    if autocasts(input):
        input, weight, bias = autocast(input, weight, bias)
    call: tuple[Any, ...] = (input, weight, bias, stride, padding, dilation, groups)
    settings = dispatch.settings(kernel)
    if settings.backend == "vendor" or emits_aten():
        return torch_conv2d(*call)
    if reason := why_not_own(input, weight, bias):
        return _handed_over(reason, settings, call)
    geometry = geometry_of(weight, stride, padding, dilation, groups)
    if geometry is None or not weight.numel() or (bias is not None and bias.dtype != input.dtype):
        return _handed_over("its arguments are unusual", settings, call)
    if input.dim() == 3:
        return conv2d(input.unsqueeze(0), *call[1:], kernel=kernel).squeeze(0)
    flags, kernels = _flags(settings, input), _kernels(settings, input)
    if torch.compiler.is_compiling():
        constants = Constants(geometry, flags, *kernels)
        return autograd.registered_fprop(input, weight, None, bias, None, constants, "none", 0.0)
    try:
        return autograd.conv2d(input, weight, bias, geometry, flags, kernels)
    except (RuntimeError, TypeError) as error:
        refusal = error
    return _refused(refusal, settings, call)


def fused_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    alpha: float | None = None,
    input_scale: Tensor | None = None,
    input_shift: Tensor | None = None,
    input_activation: str = "none",
    input_alpha: float | None = None,
    kernel: str | None = None,
) -> Tensor:
    """activation(scale * (conv2d(t, weight) + bias) + shift + residual) in one kernel.

    t = input_activation(input_scale * input + input_shift) is what the convolution reads, padded with zeros.

    Args:
        input, weight, bias, stride, padding, dilation, groups, kernel: as :func:`conv2d`.
        scale, shift: (K,), in input's dtype or float32; a folded batch normalisation, for example.
        residual: of the result's shape and dtype.
        activation: none, relu, relu6, leaky_relu, elu, hardswish, silu, sigmoid or tanh.
        alpha: slope below 0 of leaky_relu (0.01 if None), alpha of elu (1 if None); not negative.
        input_scale, input_shift: (C,), as scale and shift; input_activation and input_alpha as activation and alpha.

    Returns what :func:`conv2d` returns. Differentiable in all tensors; where a gradient is needed, what is done to the
    input, and silu and hardswish, run as operators of their own. Raises ValueError for an activation or alpha that
    there is not, and :func:`conv2d`'s errors.
    """
    alpha, input_alpha = alpha_of(activation, alpha), alpha_of(input_activation, input_alpha)
    if autocasts(input):
        input, weight, residual = autocast(input, weight, residual)
    tensors = (input, weight, bias, scale, shift, residual, input_scale, input_shift)
    settings = dispatch.settings(kernel)
    own = not (settings.backend == "vendor" or emits_aten() or why_not_own(*tensors)) and input.dim() == 4
    geometry = geometry_of(weight, stride, padding, dilation, groups) if own else None
    through = input_activation != "none" or input_scale is not None or input_shift is not None
    prologue = (input_scale, input_shift, input_activation, input_alpha) if through else ops.NO_PROLOGUE
    if through and (geometry is None or in_transform() or autograd.needs_graph(*tensors)):
        input, prologue, through = composed.prologue(input, *prologue), ops.NO_PROLOGUE, False
    if geometry is None:
        y = conv2d(input, weight, bias, stride, padding, dilation, groups, kernel=kernel)
        return composed.epilogue(y, scale, shift, residual, activation, alpha)
    shift = _shift_of(bias, scale, shift)
    constants = Constants(geometry, _flags(settings, input), *_kernels(settings, input))
    operands = (input, weight, scale, shift, residual, constants)
    after = activation in autograd.FROM_INPUT and autograd.needs_graph(*tensors)
    fused = ("none", 0.0) if after else (activation, alpha)
    try:
        if torch.compiler.is_compiling():
            y = autograd.registered_fprop(*operands, *fused, prologue)
        elif through:
            y = autograd.fprop_with_prologue(*operands, *fused, prologue)
        else:
            y = autograd.fprop(*operands, *fused)
        return composed.activate(y, activation, alpha) if after else y
    except RuntimeError as error:
        refusal = error
    # Raises if it is the convolution that is wrong.
    torch_conv2d(input, weight, None, stride, padding, dilation, groups)
    raise refusal


def depthwise_separable_conv2d(
    input: Tensor,
    dw_weight: Tensor,
    pw_weight: Tensor,
    dw_bias: Tensor | None = None,
    pw_bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    *,
    kernel: str | None = None,
) -> Tensor:
    """A depthwise convolution and the 1x1 convolution of its result, in one kernel where no gradient is needed.

    Args:
        input: (N, C, H, W) or (C, H, W).
        dw_weight: (C, 1, R, S); dw_bias: (C,) or None.
        pw_weight: (K, C, 1, 1); pw_bias: (K,) or None.
        stride, padding, dilation: of the depthwise part, as :func:`conv2d`.
        kernel: name of the fused kernel to run; RuntimeError where it cannot.

    Returns (N, K, P, Q) or (K, P, Q). Errors are those of the two convolutions.
    """
    if autocasts(input):
        input, dw_weight, pw_weight, dw_bias, pw_bias = autocast(input, dw_weight, pw_weight, dw_bias, pw_bias)
    tensors = (input, dw_weight, pw_weight, dw_bias, pw_bias)
    settings = dispatch.settings()
    composed = (
        settings.backend in ("vendor", "reference")
        or emits_aten()
        or in_transform()
        or autograd.needs_graph(*tensors)
        or why_not_own(*tensors)
        or (input.dim(), dw_weight.dim(), pw_weight.dim()) != (4, 4, 4)
        or dw_weight.shape[:2] != (input.shape[1], 1)
        or pw_weight.shape[1:] != (input.shape[1], 1, 1)
    )
    geometry = None if composed else geometry_of(dw_weight, stride, padding, dilation, dw_weight.shape[0])
    refusal: Exception = dispatch.NoKernelError(f"{kernel} cannot compute this call: it takes two convolutions")
    if geometry is not None:
        operands = (input, dw_weight, None, dw_bias, "none", 0.0, pw_weight, None, pw_bias, "none", 0.0)
        rest = (geometry, _flags(settings, input), kernel)
        try:
            return _call(autograd_tools.depthwise_separable, ops.DEPTHWISE_SEPARABLE, *operands, *rest)
        except RuntimeError as error:
            refusal = error
    between = conv2d(input, dw_weight, dw_bias, stride, padding, dilation, dw_weight.shape[0])
    y = conv2d(between, pw_weight, pw_bias)
    if kernel is not None:
        raise refusal
    return y


def shuffled_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    shuffle: int,
    beside: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "none",
    alpha: float | None = None,
) -> Tensor:
    """channel_shuffle(cat([beside, y], 1), shuffle) of :func:`fused_conv2d`'s y.

    Both of ShuffleNet's units have it (arXiv 1707.01083 and 1807.11164). On a GPU, where no gradient is needed, the
    convolution's kernel writes each map where it ends up, and those of ``beside`` too.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as :func:`conv2d`.
        scale, shift, activation, alpha: as :func:`fused_conv2d`.
        shuffle: the groups that the maps are shuffled into; 1 leaves them in order.
        beside: (N, any, P, Q) in input's dtype, or None.

    Returns (N, K, P, Q), with beside (N, any + K, P, Q). Errors are those of the functions that it stands for.
    """
    if autocasts(input):
        input, weight, beside = autocast(input, weight, beside)
    tensors = (input, weight, bias, scale, shift, beside)
    geometry = geometry_of(weight, stride, padding, dilation, groups) if _fuses(*tensors) else None
    if geometry is not None:
        flags = _flags(dispatch.settings(), input)
        epilogue = (activation, alpha_of(activation, alpha))
        operands = (input, weight, scale, _shift_of(bias, scale, shift), beside, geometry, *epilogue)
        try:
            return _call(autograd_tools.conv2d_shuffled, ops.CONV2D_SHUFFLED, *operands, shuffle, flags)
        except RuntimeError:
            pass  # the functions say what is wrong with the call
    how: dict[str, Any] = {"scale": scale, "shift": shift, "activation": activation, "alpha": alpha}
    y = fused_conv2d(input, weight, bias, stride, padding, dilation, groups, **how)
    return joined(y, beside, shuffle)


def joined(y: Tensor, beside: Tensor | None, shuffle: int) -> Tensor:
    """channel_shuffle(cat([beside, y], 1), shuffle), without what there is nothing to do for."""
    y = y if beside is None else torch.cat([beside, y], 1)
    return y if shuffle == 1 else channel_shuffle(y, shuffle)


def conv2d_max_pool2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    pool_size: Size,
    pool_stride: Size,
    pool_padding: Size = 0,
    ceil_mode: bool = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "none",
    alpha: float | None = None,
) -> Tensor:
    """The max pool of a fused convolution: in one kernel, where there is one and no gradient is needed.

    CUDA C++ has one for stems, of up to 4 input maps, filters of 3x3 and 7x7 with stride 2 or 11x11 with stride 4, and
    windows of 3x3 with stride 2.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as :func:`conv2d`.
        scale, shift, activation, alpha: as :func:`fused_conv2d`.
        pool_size, pool_stride, pool_padding, ceil_mode: as :func:`torch.nn.functional.max_pool2d`.

    Returns what :func:`max_pool2d` returns of what :func:`fused_conv2d` returns, with their errors.
    """
    window = pair(pool_size), pair(pool_stride), pair(pool_padding)
    operands = autocast(input, weight, bias) if autocasts(input) else (input, weight, bias)
    geometry = None
    if None not in window and _fuses(*operands, scale, shift):
        geometry = geometry_of(weight, stride, padding, dilation, groups)
    if geometry is not None:
        x, w, folded = operands
        layer = (x, w, scale, _shift_of(folded, scale, shift), geometry)
        how = (activation, alpha_of(activation, alpha), *window, ceil_mode, _flags(dispatch.settings(), x))
        try:
            return _call(autograd_tools.conv2d_max_pool2d, ops.CONV2D_MAX_POOL2D, *layer, *how)
        except RuntimeError:
            pass  # the functions say what is wrong with the call
    rest: dict[str, Any] = {"scale": scale, "shift": shift, "activation": activation, "alpha": alpha}
    y = fused_conv2d(input, weight, bias, stride, padding, dilation, groups, **rest)
    return max_pool2d(y, pool_size, pool_stride, pool_padding, 1, ceil_mode)  # type: ignore[return-value]


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """:func:`torch.nn.functional.channel_shuffle` of (N, C, H, W), in input's own layout."""
    if _own_images(input) and type(groups) is int and groups > 0 and input.shape[1] % groups == 0:
        return _call(autograd_tools.channel_shuffle, ops.CHANNEL_SHUFFLE, input, groups)
    return torch_channel_shuffle(input, groups)


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`torch.nn.functional.max_pool2d`: (N, C, P, Q) in input's layout, with the indices if asked for."""
    window = _window(input, kernel_size, stride, padding, dilation)
    if window is None:
        pool: Any = torch_max_pool2d_with_indices if return_indices else torch_max_pool2d
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode)
    y, indices = _call(autograd_tools.max_pool, ops.MAX_POOL, input, *window, ceil_mode)
    return (y, indices) if return_indices else y


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.avg_pool2d`: (N, C, P, Q) in input's layout."""
    window = None if divisor_override else _window(input, kernel_size, stride, padding, 1)
    if window is None:
        return torch_avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _call(autograd_tools.avg_pool, ops.AVG_POOL, input, *window[:3], ceil_mode, count_include_pad)


def global_avg_pool2d(input: Tensor) -> Tensor:
    """The mean of each map: (N, C, 1, 1) of (N, C, H, W), as :func:`torch.nn.functional.adaptive_avg_pool2d` to 1."""
    if _own_images(input):
        return _call(autograd_tools.global_avg_pool, ops.GLOBAL_AVG_POOL, input)
    return torch_adaptive_avg_pool2d(input, 1)


def _shift_of(bias: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor | None:
    """What is added to scale * conv where a bias is added before."""
    if bias is None:
        return shift
    bias = bias if scale is None else scale * bias
    return bias if shift is None else bias + shift


def _fuses(input: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether an operator that only GPUs have a kernel of is to compute a call, and not one function after another."""
    settings = dispatch.settings()
    return (
        isinstance(input, Tensor)
        and input.is_cuda
        and input.dim() == 4
        and settings.backend in (None, *OWN_BACKENDS["cuda"])
        and settings.kernels.fprop is None
        and not (emits_aten() or in_transform() or autograd.needs_graph(input, weight, *others))
        and not why_not_own(input, weight, *others)
    )


def _flags(settings: Settings, input: Tensor) -> int:
    flags = settings.flags | (DETERMINISTIC if torch.are_deterministic_algorithms_enabled() else 0)
    if input.is_cuda:
        flags |= ONLY.get(settings.backend or "", 0)
        if allows_tf32():
            flags |= TF32
    return flags


def _kernels(settings: Settings, input: Tensor) -> Kernels:
    """The kernels to be forced."""
    if settings.backend == "reference":
        return dispatch.reference_kernels(DTYPE_NAMES[input.dtype])
    return settings.kernels


def _call(eager: Callable[..., Any], operator: Any, *args: Any) -> Any:
    """Calls the operator by its autograd.Function, or as it is in a graph, where register_autograd serves."""
    return operator(*args) if torch.compiler.is_compiling() else eager(*args)


def _handed_over(reason: str, settings: Settings, call: tuple[Any, ...]) -> Tensor:
    y = torch_conv2d(*call)
    if settings.kernels.fprop is not None:
        raise dispatch.NoKernelError(f"{settings.kernels.fprop} cannot compute this call: {reason}")
    dispatch.note_fallback(reason)
    return y


def _refused(refusal: Exception, settings: Settings, call: tuple[Any, ...]) -> Tensor:
    """What to do when the operator raised: torch says what is wrong with the call, or else computes it."""
    y = torch_conv2d(*call)
    if settings.kernels.fprop is not None:
        raise refusal
    dispatch.note_fallback(str(refusal))
    return y


def _own_images(input: Tensor) -> bool:
    return not (emits_aten() or why_not_own(input)) and input.dim() == 4


def _window(
    input: Tensor, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size
) -> tuple[tuple[int, int], ...] | None:
    """Kernel, stride, padding and dilation of a pool in full; None if the call is torch's to answer."""
    window: Any = (
        pair(kernel_size),
        pair(kernel_size if stride in (None, (), []) else stride),
        pair(padding),
        pair(dilation),
    )
    if not _own_images(input) or None in window:
        return None
    valid = all(
        k > 0 and u > 0 and 0 <= p <= k // 2 and d > 0 and d * (k - 1) < size + 2 * p
        for size, k, u, p, d in zip(input.shape[2:], *window, strict=True)
    )
    return window if valid else None
