"""A batch-normalised layer in training on a real GPU, forward and backward, against torch in float64."""

import pytest
import torch
import torch.nn.functional as F

from cnnkern import batch_norm
from cnnkern.testing import error

ROUNDINGS = 16  # of sums of some hundred terms of either sign, in units of their last place
TF32 = 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 32])
def test_a_layer_in_training(groups, dtype):
    x = torch.randn(4, 64, 15, 15, device="cuda")
    w = torch.randn(64, 64 // groups, 3, 3, device="cuda") / (9 * 64 / groups) ** 0.5
    x, w, residual = (t.to(dtype).to(memory_format=torch.channels_last) for t in (x, w, torch.randn_like(x)))
    operands = x, w, torch.rand(64, device="cuda") + 0.5, torch.randn(64, device="cuda"), residual
    given = [tensor.clone().requires_grad_() for tensor in operands]
    wide = [tensor.double().requires_grad_() for tensor in operands]
    running = [torch.zeros(64, device="cuda"), torch.ones(64, device="cuda")]
    moved = [tensor.double() for tensor in running]
    y = batch_norm.conv_bn_act(*given[:4], *running, 1, 1, 1, groups, activation="sigmoid", residual=given[4])
    z = F.conv2d(wide[0], wide[1], None, 1, 1, 1, groups)
    wanted = torch.sigmoid(F.batch_norm(z, *moved, wide[2], wide[3], training=True) + wide[4])
    dy = torch.randn_like(y)
    found, truths = torch.autograd.grad(y, given, dy), torch.autograd.grad(wanted, wide, dy.double())
    for one, other in zip((y, *running, *found), (wanted, *moved, *truths), strict=True):
        assert error(one.detach(), other.detach()) <= ROUNDINGS * max(torch.finfo(dtype).eps, TF32)
