"""Batch normalisation by the statistics of all processes' images, on the CPU too, where torch's refuses tensors.

Each process sends (count, mean, M2) of its part, M2 being the sum of squared deviations, and merges what all sent in
the order of their ranks (Chan, Golub and LeVeque 1983): every process has the same bits, and no digits are lost to a
large mean as in a sum of squares.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

PIXELS = (0, 2, 3)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d` whose batch, in training, is that of all processes of the default group.

    Parameters, buffers, eval mode and errors are nn.BatchNorm2d's. In training every process has to call it, with any
    number of images. Gradients of weight and bias are of the process's own part: DistributedDataParallel averages
    them like all others.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) of (N, C, H, W)."""
        batch_statistics = self.training or self.running_mean is None
        if not batch_statistics or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        y, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.training and self.running_mean is not None:
            self._follow(mean, variance * (count / (count - 1)))
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics towards the batch's mean and unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def convert_sync_batch_norm(model: nn.Module) -> nn.Module:
    """Has every nn.BatchNorm2d in ``model`` use the statistics of all processes, and returns the model.

    On the CPU the modules stay the objects that they are and get the class :class:`SyncBatchNorm2d`, those inside
    :class:`cnnkern.ConvBNReLU2d` too; on a GPU this is ``nn.SyncBatchNorm.convert_sync_batchnorm``.
    """
    if any(parameter.is_cuda for parameter in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return model


def merge(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, M2) of a whole from those of its parts (parts, 3, C), in their order; parts may be empty."""
    count, mean, m2 = parts[0]
    for part_count, part_mean, part_m2 in parts[1:]:
        both = (count + part_count).clamp_min(1)
        delta = part_mean - mean
        m2 = m2 + part_m2 + delta.square() * (count * part_count / both)
        mean = mean + delta * (part_count / both)
        count = count + part_count
    return count, mean, m2


class _Normalise(Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance over all processes' x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count, mean, m2 = merge(_gather(_moments(wide)))
        if count[0] < 2:
            raise ValueError(f"expected more than one value per map in training, and all have {tuple(x.shape)}")
        variance = m2 / count
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return (wide * _per_map(scale) + _per_map(shift)).to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        dy = dy.to(mean.dtype)
        normal = (x.to(mean.dtype) - _per_map(mean)) * _per_map(inverse)
        sums = torch.stack([dy.sum(PIXELS), (dy * normal).sum(PIXELS)])
        dbias, dweight = sums
        mean_dy, mean_dy_normal = _gather(sums).sum(0) / count
        scale = inverse if weight is None else inverse * weight
        dx = (dy - _per_map(mean_dy) - normal * _per_map(mean_dy_normal)) * _per_map(scale)
        dx = dx.to(x.dtype)
        if weight is None:
            return dx, None, None, None
        return dx, dweight.to(weight.dtype), dbias.to(weight.dtype), None


def _moments(x: Tensor) -> Tensor:
    """(3, C): count, mean and M2 of each map."""
    count = x.numel() // x.shape[1]
    if count == 0:
        return x.new_zeros(3, x.shape[1])
    variance, mean = torch.var_mean(x, PIXELS, correction=0)
    return torch.stack([torch.full_like(mean, count), mean, variance * count])


def _gather(values: Tensor) -> Tensor:
    """(processes, ...): what every process has, in the order of their ranks."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def _per_map(values: Tensor) -> Tensor:
    return values[:, None, None]
