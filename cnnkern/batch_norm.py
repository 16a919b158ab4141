"""A layer in training: convolution, batch normalisation by the batch's own statistics, residual, activation.

On CUDA tensors: the convolution's epilogue leaves the statistics, so that its result z is read once to write y, and the
backward pass computes what it needs from z anew. The result is that of torch's three layers. Kernels are those of the
backend that :mod:`cnnkern.gpu_tools` takes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

from cnnkern import autograd, autograd_tools, dispatch, gpu, gpu_tools
from cnnkern.arguments import Size, allows_tf32, alpha_of, geometry_of
from cnnkern.backends import OWN_BACKENDS, cuda, triton
from cnnkern.composed import activate
from cnnkern.flags import ONLY, TF32
from cnnkern.functional import joined
from cnnkern.operands import Layer, Operands, evenly_spaced
from cnnkern.ops import Constants, gives_channels_last
from cnnkern.problem import Epilogue, Prologue, suggests_channels_last


def why_missing(device: torch.device) -> str:
    """Empty, or why no kernels of such a layer can run on the device, with the present settings."""
    backend = dispatch.settings().backend
    if backend not in (None, *OWN_BACKENDS["cuda"]):
        return f"the backend is {backend}"
    by_cuda = gpu_tools.tools(ONLY.get(backend or "", 0)).BACKEND == "cuda"
    return (cuda if by_cuda else triton).why_missing(device)


def conv_bn_act(
    x: Tensor, w: Tensor, gamma: Tensor | None, beta: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1, *,
    eps: float = 1e-5, momentum: float = 0.1, activation: str = "relu", alpha: float | None = None,
    residual: Tensor | None = None, beside: Tensor | None = None, shuffle: int = 1,
) -> Tensor:  # fmt: skip
    """activation(batch_norm(conv2d(x, w)) + residual), in training; differentiable to any order, in all its tensors.

    Args:
        x, w: (N, C, H, W) and (K, C / groups, R, S), on a GPU, of one dtype: float32, bfloat16 or float16.
        gamma, beta: (K,) of any float dtype, or None for 1 and 0.
        running_mean, running_var: (K,), both or neither; they are moved by ``momentum`` towards the batch's mean and
            unbiased variance.
        stride, padding, dilation, groups: as :func:`torch.nn.functional.conv2d`.
        eps: added to the variance.
        momentum: for a cumulative average, 1 / (the number of batches so far, this one included).
        activation, alpha: as :func:`cnnkern.functional.fused_conv2d`.
        residual: (N, K, P, Q), in x's dtype, or None.
        beside, shuffle: as :func:`cnnkern.functional.shuffled_conv2d`; one pass over memory where beside has K maps.

    Returns y (N, K, P, Q), and the maps of beside, in the convolution's layout. Raises ValueError where a map has one
    value, whose variance would be zero, or the arguments do not fit together, and RuntimeError where no kernel can
    compute the convolution.
    """
    geometry = geometry_of(w, stride, padding, dilation, groups)
    if geometry is None:
        raise ValueError(f"stride={stride}, padding={padding}, dilation={dilation}: each is one number or two")
    if (running_mean is None) is not (running_var is None):
        raise ValueError("running_mean and running_var are given together")
    running = None if running_mean is None else (running_mean, running_var)
    if x.dtype != w.dtype:
        raise ValueError(f"x is {x.dtype}, w is {w.dtype}")
    rest = geometry, running, momentum, eps, activation, alpha_of(activation, alpha), _flags(x)
    maps = w.shape[0] * (1 if beside is None else 2)
    if maps % shuffle or (beside is not None and (beside.shape[1], beside.dtype) != (w.shape[0], x.dtype)):
        return joined(_ConvBNAct.apply(x, w, gamma, beta, residual, None, 1, *rest), beside, shuffle)
    return _ConvBNAct.apply(x, w, gamma, beta, residual, beside, shuffle, *rest)


class _ConvBNAct(Function):
    """conv_bn_act of settled arguments."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, gamma: Tensor | None, beta: Tensor | None, residual: Tensor | None,
        beside: Tensor | None, shuffle: int, geometry: tuple[int, ...], running: tuple[Tensor, Tensor] | None,
        momentum: float, eps: float, activation: str, alpha: float, flags: int,
    ) -> Tensor:  # fmt: skip
        layer = Layer(gamma, beta, eps, activation, alpha)
        z, stats = _convolved(x, w, geometry, flags)
        _check(z, layer, running, residual=residual, beside=beside)
        n, maps, p, q = z.shape
        y = gpu._nhwc_empty((n, maps if beside is None else 2 * maps, p, q), z)
        given = (_even(residual), y, layer, running, momentum, _even(beside), shuffle)
        moments = gpu_tools.tools(flags).normalise(z, stats, *given)
        for tensor in running or ():
            torch.autograd.graph.increment_version(tensor)

        kept = None if activation == "none" else residual
        ctx.save_for_backward(x, w, gamma, beta, kept, z, moments)
        ctx.rest = geometry, eps, activation, alpha, flags, shuffle
        return gpu._laid_out(y, gives_channels_last(x, w) and (beside is None or suggests_channels_last(beside)))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, dy)
        x, w, gamma, beta, residual, z, moments = ctx.saved_tensors
        geometry, eps, activation, alpha, flags, shuffle = ctx.rest
        needs_x, needs_w, needs_gamma, needs_beta, needs_residual, needs_beside = ctx.needs_input_grad[:6]
        layer = Layer(gamma, beta, eps, activation, alpha)
        dz = torch.empty_like(z)
        dgamma = torch.empty_like(gamma) if needs_gamma else None
        dbeta = torch.empty_like(beta) if needs_beta else None
        dresidual = torch.empty_like(z) if needs_residual else None
        dbeside = torch.empty_like(z) if needs_beside else None
        given = (evenly_spaced(dy), z, _even(residual), moments, layer)
        gpu_tools.tools(flags).normalise_backward(*given, dz, dgamma, dbeta, dresidual, dbeside, shuffle)

        dx = dw = None
        channels_last = gives_channels_last(x, w)
        if needs_x:
            dx = gpu.conv2d_dgrad(dz, w, x.shape, geometry, channels_last, flags, None)
        if needs_w:
            rest = (False, channels_last, None, None, None, None, flags, None)
            dw, _ = gpu.conv2d_wgrad(dz, x, w.shape, geometry, *rest)
        return dx, dw, dgamma, dbeta, dresidual, dbeside, *(None,) * 8


def _even(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else evenly_spaced(tensor)


def _differentiable_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as functions that have gradients: those of the layers one after another, computed anew."""
    x, w, gamma, beta, residual, *_ = ctx.saved_tensors
    geometry, eps, activation, alpha, flags, shuffle = ctx.rest
    dy = dy if shuffle == 1 else autograd_tools.channel_shuffle(dy, dy.shape[1] // shuffle)
    dbeside, dy = dy.tensor_split([dy.shape[1] - w.shape[0]], 1)
    z = autograd.fprop(x, w, None, None, None, Constants(geometry, flags), "none", 0.0)
    y = F.batch_norm(z, None, None, gamma, beta, training=True, eps=eps)
    y = activate(y if residual is None else y + residual, activation, alpha)
    needed = ctx.needs_input_grad[:5]
    asked = [t for t, needs in zip((x, w, gamma, beta, residual), needed, strict=True) if needs and t is not None]
    found = iter(torch.autograd.grad(y, asked, dy, create_graph=True))
    *gradients, dresidual = (
        next(found) if needs and t is not None else None
        for t, needs in zip((x, w, gamma, beta, residual), needed, strict=True)
    )
    dresidual = dy if needed[4] and residual is None else dresidual
    return *gradients, dresidual, dbeside if ctx.needs_input_grad[5] else None, *(None,) * 8


def _convolved(x: Tensor, w: Tensor, geometry: tuple[int, ...], flags: int) -> tuple[Tensor, Tensor]:
    """z = conv(x, w), channels_last, and its partial statistics."""
    tools = gpu_tools.tools(flags)
    x, w = evenly_spaced(x), gpu._krsc(w)
    given = (x.shape, w.shape, x.dtype, geometry, gpu._gap(x), 0, Prologue(), Epilogue())
    problem = gpu._problem("fprop", *given)
    z = gpu._nhwc_empty(problem.y_size, x)
    if z.numel() < 2 * max(problem.k, 1):
        raise ValueError(f"expected more than one value per map in training, and the result is {tuple(z.shape)}")
    flags |= ONLY[tools.BACKEND] | gpu._operand_flags((x, w, z))
    operands = Operands(x, w, z, precision="tf32" if flags & TF32 else "ieee")
    return z, tools.conv_with_statistics(gpu._chosen(problem, flags, None), problem, operands, flags)


def _check(z: Tensor, layer: Layer, running: tuple[Tensor, Tensor] | None, **images: Tensor | None) -> None:
    per_map = {"gamma": layer.gamma, "beta": layer.beta}
    per_map |= {} if running is None else {"running_mean": running[0], "running_var": running[1]}
    for name, tensor in per_map.items():
        if tensor is not None and (tensor.shape != z.shape[1:2] or not tensor.is_contiguous()):
            raise ValueError(f"{name} is {tuple(tensor.shape)} where there are {z.shape[1]} maps, or is not contiguous")
    for name, image in images.items():
        if image is not None and (image.shape != z.shape or image.dtype != z.dtype):
            raise ValueError(f"{name} is {tuple(image.shape)} in {image.dtype}, not {tuple(z.shape)} in {z.dtype}")


def _flags(x: Tensor) -> int:
    settings = dispatch.settings()
    return settings.flags | ONLY.get(settings.backend or "", 0) | (TF32 if x.is_cuda and allows_tf32() else 0)
