"""What the functions of :mod:`cnnkern.functional` ask about their arguments before they call an operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _is_any_autocast_enabled, _is_tracing
from torch._subclasses import FakeTensor
from torch.compiler import is_compiling
from torch.nn import Parameter

from cnnkern.backends import why_no_gpu
from cnnkern.problem import ACTIVATIONS, DTYPE_NAMES

Size = int | tuple[int, ...] | list[int]

PLAIN = (Tensor, Parameter, FakeTensor)
_DEFAULT_ALPHA = {"leaky_relu": 0.01, "elu": 1.0}


def alpha_of(activation: str, alpha: float | None) -> float:
    """The activation's alpha, with its default filled in; 0 where it has none. Raises ValueError if it is wrong."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: it is one of {', '.join(ACTIVATIONS)}")
    if alpha is None:
        return _DEFAULT_ALPHA.get(activation, 0.0)
    if alpha < 0 or (alpha and activation not in _DEFAULT_ALPHA):
        raise ValueError(f"alpha={alpha} with activation {activation!r}: only leaky_relu and elu have one, not below 0")
    return float(alpha)


def why_not_own(input: Tensor, *others: Tensor | None) -> str:
    """Empty, or why a call on these tensors is torch's to answer. It is asked in each call, so it asks little.

    Sizes and dtypes that do not fit together are left to the operator. Raises RuntimeError for operands on several
    devices, as torch does (and for the meta device does not: it reads memory that is not there).
    """
    if type(input) not in PLAIN:
        return f"input is a {type(input).__name__}"
    on_cpu = input.is_cpu
    if not on_cpu and (reason := _why_not_on(input)):
        return reason
    if input.dtype not in DTYPE_NAMES:
        return f"there is no kernel for {input.dtype}"
    if input.layout is not torch.strided:
        return f"there is no kernel for layout {input.layout}"
    for other in others:
        if other is None:
            continue
        if type(other) not in PLAIN:
            return f"an operand is a {type(other).__name__}"
        if other.is_cpu is not on_cpu or (not on_cpu and other.device != input.device):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{input.device} and {other.device}!"
            )
    return ""


@torch.compiler.assume_constant_result
def allows_tf32() -> bool:
    """Whether convolutions on a GPU may multiply float32 as TF32; a graph keeps what was so when it was traced."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def is_common(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a convolution of these is the operator's to compute, as far as can be told at once.

    That is so for 4-d tensors of torch's own in eager mode, where nothing traces or casts.
    """
    return (
        type(input) is Tensor
        and type(weight) in PLAIN
        and (bias is None or type(bias) in PLAIN)
        and not (is_compiling() or _is_tracing() or _is_any_autocast_enabled())
        and (input.is_cpu or not why_not_own(input, weight, bias))
        and input.dim() == 4
    )


def _why_not_on(input: Tensor) -> str:
    """Empty, or why there is no kernel for tensors where this one is, which is not on the CPU."""
    if input.is_cuda:
        reason = why_no_gpu(input.device)
        return reason and f"there is no kernel for a tensor on a GPU: {reason}"
    return "" if input.is_meta else f"there is no kernel for device type {input.device.type}"


def geometry_of(
    weight: Tensor, stride: Size, padding: Size | str, dilation: Size, groups: int
) -> tuple[int, ...] | None:
    """The nine numbers that the operators take; None if torch is to say what is wrong."""
    if weight is None:
        return None
    if type(stride) is type(padding) is type(dilation) is tuple and len(stride) == len(padding) == len(dilation) == 2:
        (stride_h, stride_w), (vertical, horizontal), (dilation_h, dilation_w) = stride, padding, dilation
        return stride_h, stride_w, vertical, horizontal, vertical, horizontal, dilation_h, dilation_w, groups
    steps, spread = pair(stride), pair(dilation)
    if steps is None or spread is None:
        return None
    if isinstance(padding, str):
        sides = _named_padding(padding, weight, steps, spread)
    else:
        both = pair(padding)
        sides = both and both + both
    return sides and (*steps, *sides, *spread, groups)


def pair(value: Any) -> tuple[Any, Any] | None:
    """A size as torch takes it, one number or two, as two; None if it is neither."""
    if type(value) is tuple and len(value) == 2:
        return value
    if isinstance(value, int | torch.SymInt) and type(value) is not bool:
        return value, value
    if isinstance(value, tuple | list) and len(value) in (1, 2):
        return value[0], value[-1]
    return None


def _named_padding(
    name: str, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    if name == "valid":
        return 0, 0, 0, 0
    if name != "same" or stride != (1, 1) or weight.dim() != 4:
        return None
    vertical, horizontal = (d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True))
    return vertical // 2, horizontal // 2, vertical - vertical // 2, horizontal - horizontal // 2


def in_transform() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp, ...) is running."""
    return _are_functorch_transforms_active()


def emits_aten() -> bool:
    """Whether the call must be one of torch's own operators.

    So it is where it is written down for another runtime (torch.export, torch.jit.trace), and in a compiled graph
    inside a transform of torch.func, where torch does not differentiate other operators.
    """
    if is_compiling():
        # What is_exporting() returns; that itself is True in every compiled graph up to torch 2.11.
        return torch.compiler._is_exporting_flag or in_transform()
    return _is_tracing()


def autocasts(input: Any) -> bool:
    """Whether torch's autocasting is on for a call with this input, which may be anything."""
    if not _is_any_autocast_enabled():
        return False
    return torch.is_autocast_enabled("cuda" if getattr(input, "is_cuda", False) else "cpu")


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors as torch's autocasting hands them to a convolution; the first has the device that counts."""
    device = tensors[0].device.type if isinstance(tensors[0], Tensor) else "cpu"
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or tensor.device.type != device:
            return tensor
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    return tuple(map(cast, tensors))
