"""The operators on CUDA tensors: tensors -> ConvProblem -> kernel -> launch, as csrc/cpu/conv.cpp does on the CPU.

A kernel is chosen once per problem, alignment and flags, beneath the operator, so that a compiled graph does not depend
on the batch. Nothing here waits for the GPU or measures, so calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from cnnkern import composed, dispatch
from cnnkern.backends import KernelName, cuda, triton
from cnnkern.flags import GPU, TF32, UNALIGNED
from cnnkern.operands import Operands, evenly_spaced, pixel_stride
from cnnkern.ops import NO_PROLOGUE, gives_channels_last, memory_format
from cnnkern.problem import DTYPE_NAMES, ConvProblem, Epilogue, Prologue

_PREPARE: dict[str, Callable[[str, ConvProblem, int], Callable[[Operands], None]]] = {
    "cuda": cuda.PreparedCall,
    "triton": triton.prepared,
}


def conv2d_fprop(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None,
    geometry: Sequence[int], activation: str, alpha: float, x_scale: Tensor | None, x_shift: Tensor | None,
    x_activation: str | None, x_alpha: float | None, flags: int, kernel: str | None,
) -> Tensor:  # fmt: skip
    """y, channels_last if x or w is, as in torch."""
    _check_alike(x, w=w)
    channels_last = gives_channels_last(x, w)
    x = evenly_spaced(x)
    problem = _problem(
        "fprop", x.shape, w.shape, x.dtype, tuple(geometry), _gap(x), 0,
        Prologue(x_activation or "none", x_scale is not None, x_shift is not None, x_alpha or 0.0),
        Epilogue(activation, scale is not None, shift is not None, residual is not None, alpha),
    )  # fmt: skip
    y = _nhwc_empty(problem.y_size, x)
    scale, shift = _per_map(scale, problem.k, x, "scale"), _per_map(shift, problem.k, x, "shift")
    x_scale, x_shift = _per_map(x_scale, problem.c, x, "x_scale"), _per_map(x_shift, problem.c, x, "x_shift")
    if residual is not None:
        _check_alike(x, residual=residual)
        _check_size(residual, problem.y_size, "residual")
    if x.numel() and y.numel():
        _run(
            problem, flags, kernel, x=x, w=_krsc(w), y=y, scale=scale, shift=shift,
            residual=None if residual is None else _in_vectors(residual), x_scale=x_scale, x_shift=x_shift,
        )  # fmt: skip
    else:
        y = composed.epilogue(y.zero_(), scale, shift, residual, activation, alpha)
    return _laid_out(y, channels_last)


def conv2d_fprop_plain(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: Sequence[int], flags: int, kernel: str | None
) -> Tensor:
    """conv(x, w) + bias, of what torch's convolution takes."""
    if not w.numel() or (bias is not None and (bias.dtype != x.dtype or bias.device != x.device)):
        raise RuntimeError("w has no elements, or bias another dtype or device than x")
    return conv2d_fprop(x, w, None, bias, None, geometry, "none", 0.0, *NO_PROLOGUE, flags, kernel)


def conv2d_dgrad(
    dy: Tensor, w: Tensor, x_size: Sequence[int], geometry: Sequence[int], channels_last: bool, flags: int,
    kernel: str | None,
) -> Tensor:  # fmt: skip
    """dx."""
    _check_alike(dy, w=w)
    dy = evenly_spaced(dy)
    problem = _problem("dgrad", tuple(x_size), w.shape, dy.dtype, tuple(geometry), 0, _gap(dy), Prologue(), Epilogue())
    _check_size(dy, problem.y_size, "dy")
    dx = _nhwc_empty(problem.x_size, dy)
    if dx.numel():
        _run(problem, flags, kernel, x=dx, w=_krsc(w), y=dy)
    return _laid_out(dx, channels_last)


def conv2d_wgrad(
    dy: Tensor, x: Tensor, w_size: Sequence[int], geometry: Sequence[int], bias: bool, channels_last: bool,
    x_scale: Tensor | None, x_shift: Tensor | None, x_activation: str | None, x_alpha: float | None, flags: int,
    kernel: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dw, and db [k] if bias, else [0]."""
    _check_alike(dy, x=x)
    x, dy = evenly_spaced(x), evenly_spaced(dy)
    problem = _problem(
        "wgrad", x.shape, tuple(w_size), x.dtype, tuple(geometry), _gap(x), _gap(dy),
        Prologue(x_activation or "none", x_scale is not None, x_shift is not None, x_alpha or 0.0), Epilogue(),
    )  # fmt: skip
    _check_size(dy, problem.y_size, "dy")
    x_scale, x_shift = _per_map(x_scale, problem.c, x, "x_scale"), _per_map(x_shift, problem.c, x, "x_shift")
    dw = _nhwc_empty(problem.w_size, dy)
    db = dy.new_empty(problem.k if bias else 0, dtype=torch.float32)
    if dw.numel() and dy.numel() and x.numel():
        dbias = db if bias else None
        _run(problem, flags, kernel, x=x, w=dw, y=dy, x_scale=x_scale, x_shift=x_shift, dbias=dbias)
    else:
        dw.zero_()
        db.zero_()
    return _laid_out(dw, channels_last), db.to(dy.dtype)


def conv2d_backward(
    dy: Tensor, x: Tensor, w: Tensor, geometry: Sequence[int], bias: bool, flags: int, dgrad_kernel: str | None,
    wgrad_kernel: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dw and db; dy is copied to NHWC once."""
    dy = evenly_spaced(dy)
    channels_last = gives_channels_last(x, w)
    dx = conv2d_dgrad(dy, w, x.shape, geometry, channels_last, flags, dgrad_kernel)
    rest = (bias, channels_last, None, None, None, None, flags, wgrad_kernel)
    return dx, *conv2d_wgrad(dy, x, w.shape, geometry, *rest)


def _run(problem: ConvProblem, flags: int, name: str | None, shuffle: int = 1, **tensors: Tensor | None) -> None:
    precision = "tf32" if flags & TF32 else "ieee"
    operands = Operands(**tensors, shuffle=shuffle, precision=precision)  # type: ignore[arg-type]
    _prepared(problem, flags | _operand_flags(tensors.values()), name)(operands)


def _operand_flags(tensors: Iterable[Tensor | None]) -> int:
    """The flags of tensors: on which GPU they are, and whether one does not begin at a multiple of 16 bytes."""
    present = [tensor for tensor in tensors if tensor is not None]
    aligned = all(tensor.data_ptr() % 16 == 0 for tensor in present)
    return (present[0].get_device() + 1) << GPU | (0 if aligned else UNALIGNED)


@functools.lru_cache(maxsize=1 << 16)
def _prepared(problem: ConvProblem, flags: int, name: str | None) -> Callable[[Operands], None]:
    """The memo: the call of the named kernel, or of the one that dispatch chooses."""
    kernel = _chosen(problem, flags, name)
    return _PREPARE[KernelName.parse(kernel).backend](kernel, problem, flags)


@functools.lru_cache(maxsize=1 << 16)
def _chosen(problem: ConvProblem, flags: int, name: str | None) -> str:
    if name is None:
        return dispatch.choose(problem, flags, device="cuda")
    asked = dispatch.candidates(problem, flags, device="cuda")
    why_not = next((candidate.why_not for candidate in asked if candidate.kernel == name), "it is for another call")
    if why_not:
        raise RuntimeError(f"{name} cannot compute {problem}: {why_not}")
    return name


def clear_memo() -> None:
    """Forgets all decisions."""
    _prepared.cache_clear()
    _chosen.cache_clear()


@functools.lru_cache(maxsize=1 << 16)
def _problem(
    direction: str, x_size: tuple[int, ...], w_size: tuple[int, ...], dtype: torch.dtype, geometry: tuple[int, ...],
    x_pixel_stride: int, y_pixel_stride: int, prologue: Prologue, epilogue: Epilogue,
) -> ConvProblem:  # fmt: skip
    if dtype not in DTYPE_NAMES:
        raise RuntimeError("expected float32, float64, bfloat16 or float16")
    stride_h, stride_w, top, left, bottom, right, dilation_h, dilation_w, groups = geometry
    (n, c, h, w), (k, _, r, s) = x_size, w_size
    problem = ConvProblem(
        n, c, h, w, k, r, s, (stride_h, stride_w), (top, left, bottom, right), (dilation_h, dilation_w), groups,
        x_pixel_stride, y_pixel_stride, prologue, epilogue, direction, DTYPE_NAMES[dtype],
    )  # fmt: skip
    if problem.why_invalid:
        raise RuntimeError(problem.why_invalid)
    if w_size[1] != c // groups:
        raise RuntimeError(f"w has {w_size[1]} maps a filter where x has {c // groups} a group")
    return problem


def _check_alike(first: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.dim() != 4 or first.dim() != 4:
            raise RuntimeError(f"expected 4 dimensions, and {name} has {other.dim()} beside {first.dim()}")
        if other.dtype != first.dtype or other.device != first.device:
            raise RuntimeError(f"{name} is {other.dtype} on {other.device} beside {first.dtype} on {first.device}")


def _check_size(tensor: Tensor, size: Sequence[int], name: str) -> None:
    if tuple(tensor.shape) != tuple(size):
        raise RuntimeError(f"{name} has sizes {tuple(tensor.shape)} where {tuple(size)} are expected")


def _per_map(vector: Tensor | None, maps: int, like: Tensor, name: str) -> Tensor | None:
    """A vector of the epilogue or prologue as kernels read it."""
    if vector is None:
        return None
    if vector.shape != (maps,):
        raise RuntimeError(f"{name} has sizes {tuple(vector.shape)} and is no vector of {maps}")
    if vector.dtype not in (torch.float32, like.dtype) or vector.device != like.device:
        raise RuntimeError(f"{name} is {vector.dtype} on {vector.device} beside {like.dtype} on {like.device}")
    return vector.contiguous()


def _in_vectors(residual: Tensor) -> Tensor:
    """The residual, of whose pixel stride a problem says nothing, so that it can be read in whatever vectors y can."""
    even = evenly_spaced(residual)
    gaps_fit = pixel_stride(even) * even.element_size() % 16 == 0
    return even if gaps_fit else even.contiguous(memory_format=torch.channels_last)


def _gap(tensor: Tensor) -> int:
    """The pixel stride of an evenly spaced tensor as a problem has it: 0 where pixels follow each other."""
    stride = pixel_stride(tensor)
    return 0 if stride == tensor.shape[1] else stride


def _krsc(w: Tensor) -> Tensor:
    return w.contiguous(memory_format=torch.channels_last)


def _nhwc_empty(size: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _laid_out(tensor: Tensor, channels_last: bool) -> Tensor:
    return tensor.contiguous(memory_format=memory_format(channels_last))


_OPERATORS = {
    "conv2d_fprop": conv2d_fprop,
    "conv2d_fprop.plain": conv2d_fprop_plain,
    "conv2d_dgrad": conv2d_dgrad,
    "conv2d_wgrad": conv2d_wgrad,
    "conv2d_backward": conv2d_backward,
}
for _name, _implementation in _OPERATORS.items():
    torch.library.impl(f"cnnkern::{_name}", "CUDA", _implementation)  # type: ignore[call-overload]
