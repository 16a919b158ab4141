"""A layer in training: convolution, batch normalisation by the batch's own statistics, residual, activation.

On CUDA tensors, by the Triton kernels: the convolution's epilogue leaves the statistics, so that its result z is read
once to write y, and the backward pass computes what it needs from z anew. The result is that of torch's three layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

from cnnkern import autograd, autograd_tools, dispatch, gpu
from cnnkern.arguments import Size, alpha_of, geometry_of
from cnnkern.backends import triton
from cnnkern.composed import activate
from cnnkern.flags import ONLY, TF32
from cnnkern.functional import joined
from cnnkern.operands import Operands, evenly_spaced
from cnnkern.ops import Constants, gives_channels_last
from cnnkern.problem import Epilogue, Prologue, suggests_channels_last

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnnkern.triton_kernels.batch_norm import Layer
    from cnnkern.triton_kernels.launch import Launch


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
    geometry = geometry_of(w, stride, padding, dilation)
    if geometry is None:
        raise ValueError(f"stride={stride}, padding={padding}, dilation={dilation}: each is one number or two")
    if (running_mean is None) is not (running_var is None):
        raise ValueError("running_mean and running_var are given together")
    running = None if running_mean is None else (running_mean, running_var)
    if x.dtype != w.dtype:
        raise ValueError(f"x is {x.dtype}, w is {w.dtype}")
    rest = (*geometry, groups), running, momentum, eps, activation, alpha_of(activation, alpha), _flags(x)
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
        from cnnkern.triton_kernels import batch_norm

        layer = batch_norm.Layer(gamma, beta, eps, activation, alpha)
        z, stats = _convolved(x, w, geometry, flags)
        pixels = z.numel() // max(z.shape[1], 1)
        _check(z, pixels, layer, running, residual=residual, beside=beside)
        launches, moments = batch_norm.finish(stats, layer, pixels, running, momentum)
        n, maps, p, q = z.shape
        y = gpu._nhwc_empty((n, maps if beside is None else 2 * maps, p, q), z)
        _run([*launches, batch_norm.normalise(z, _even(residual), y, moments, layer, _even(beside), shuffle)], z)
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
        from cnnkern.triton_kernels import batch_norm

        x, w, gamma, beta, residual, z, moments = ctx.saved_tensors
        geometry, eps, activation, alpha, flags, shuffle = ctx.rest
        needs_x, needs_w, needs_gamma, needs_beta, needs_residual, needs_beside = ctx.needs_input_grad[:6]
        layer = batch_norm.Layer(gamma, beta, eps, activation, alpha)
        dz = torch.empty_like(z)
        dgamma = torch.empty_like(gamma) if needs_gamma else None
        dbeta = torch.empty_like(beta) if needs_beta else None
        dresidual = torch.empty_like(z) if needs_residual else None
        dbeside = torch.empty_like(z) if needs_beside else None
        given = (evenly_spaced(dy), z, _even(residual), moments, layer)
        _run(batch_norm.backward(*given, dz, dgamma, dbeta, dresidual, dbeside, shuffle), z)

        dx = dw = None
        if needs_x:
            dx = gpu.conv2d_dgrad(dz, w, x.shape, geometry, gives_channels_last(x, w), flags, None)
        if needs_w:
            rest = (False, not w.is_contiguous(), None, None, None, None, flags, None)
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
    """z = conv(x, w), channels_last, and its partial statistics, from the epilogue if the kernel chosen writes them."""
    from cnnkern.triton_kernels import implicit_gemm, statistics

    x, w = evenly_spaced(x), gpu._krsc(w)
    given = (x.shape, w.shape, x.dtype, geometry, gpu._gap(x), 0, Prologue(), Epilogue())
    problem = gpu._problem("fprop", *given)
    kernel, config = triton.listed()[gpu._chosen(problem, flags | ONLY["triton"], None)]
    if kernel.family != "implicit_gemm":
        z = gpu.conv2d_fprop(x, w, None, None, None, geometry, "none", 0.0, None, None, None, None, flags, None)
        z = z.contiguous(memory_format=torch.channels_last)
        launch, stats = statistics.partials_of(z)
    else:
        z = gpu._nhwc_empty(problem.y_size, x)
        operands = Operands(x, w, z, precision="tf32" if flags & TF32 else "ieee")
        launch, stats = implicit_gemm.fprop_with_statistics(problem, operands, config)
    _run([launch], z)
    return z, stats


def _check(
    z: Tensor, pixels: int, layer: Layer, running: tuple[Tensor, Tensor] | None, **images: Tensor | None
) -> None:
    if pixels < 2:
        raise ValueError(f"expected more than one value per map in training, and the result is {tuple(z.shape)}")
    per_map = {"gamma": layer.gamma, "beta": layer.beta}
    per_map |= {} if running is None else {"running_mean": running[0], "running_var": running[1]}
    for name, tensor in per_map.items():
        if tensor is not None and (tensor.shape != z.shape[1:2] or not tensor.is_contiguous()):
            raise ValueError(f"{name} is {tuple(tensor.shape)} where there are {z.shape[1]} maps, or is not contiguous")
    for name, image in images.items():
        if image is not None and (image.shape != z.shape or image.dtype != z.dtype):
            raise ValueError(f"{name} is {tuple(image.shape)} in {image.dtype}, not {tuple(z.shape)} in {z.dtype}")


def _run(launches: Sequence[Launch], on: Tensor) -> None:
    from cnnkern.triton_kernels.launch import run

    with torch.cuda.device_of(on):
        run(launches)


def _flags(x: Tensor) -> int:
    tf32 = x.is_cuda and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return dispatch.settings().flags | (TF32 if tf32 else 0)
