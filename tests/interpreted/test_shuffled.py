"""A channel shuffle, and the maps that stand beside a convolution's, as addresses of what the kernels write."""

import pytest
import torch
import torch.nn.functional as F

from cnnkern import functional, gpu_tools, models, ops, testing
from cnnkern.batch_norm import conv_bn_act
from cnnkern.operands import Operands
from cnnkern.problem import DTYPES, ConvProblem
from cnnkern.testing import error
from cnnkern.triton_kernels.kernel_list import KERNELS
from cnnkern.triton_kernels.launch import run

SHUFFLING = [kernel for kernel in KERNELS if kernel.shuffles]
CASES = (
    # problem, groups of the shuffle, with others beside
    ("n2c9h3w2-k12r1s1-scale-shift-act:relu", 3, False),  # the first 1x1 of ShuffleNet's first unit, dense
    ("n1c24h3w4-k36r1s1-g3-shift-act:relu", 3, False),  # and of the others, grouped
    ("n1c16h4w4-k24r3s3-p1-g4", 2, False),  # groups of the convolution and of the shuffle have nothing in common
    ("n2c11h3w3-k17r1s1-g1-scale-shift-act:relu", 2, True),  # the last 1x1 of the second version's unit
    ("n1c12h4w4-k20r3s3-p1-u2-g4-act:silu", 5, True),
    ("n1c6h3w3-k8r1s1-g2-ys32", 1, True),  # a concatenation alone
    ("n1c18h5w4-k18r3s3-p1-g18-scale-shift-act:relu", 3, False),  # depthwise, down the rows
    ("n1c8h5w3-k8r9s1-p4x0-g8", 2, True),  # and pixel by pixel
)


def normal(*size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


def joined(y, beside, shuffle):
    return F.channel_shuffle(y if beside is None else torch.cat([beside, y], 1), shuffle)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kernel", SHUFFLING, ids=[kernel.family for kernel in SHUFFLING])
def test_exact_on_integers(kernel, dtype):
    """Every kernel that says it shuffles, in its smallest tile; what is not written stays NaN."""
    for text, shuffle, with_others in CASES:
        problem = ConvProblem.parse(f"fprop-{dtype}-{text}")
        if kernel.why_not(problem):
            continue
        given = testing.operands(problem, fill="integers")
        beside = given.dy if with_others else None
        n, maps, p, q = problem.y_size
        result = torch.full((n, p, q, 2 * maps if with_others else maps), torch.nan, dtype=DTYPES[dtype])
        result = result.permute(0, 3, 1, 2)
        w = given.w.contiguous(memory_format=torch.channels_last)
        operands = Operands(given.x, w, result[:, :maps], given.scale, given.shift, beside=beside, shuffle=shuffle)
        run(kernel.launches(problem, operands, kernel.configs[-1]))
        y = testing.oracle(problem, given)
        truth = joined(y, None if beside is None else beside.double(), shuffle).to(result.dtype)
        if problem.epilogue.activation == "silu":
            torch.testing.assert_close(result, truth)
        else:
            assert torch.equal(result, truth), problem


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("beside", [0, 12, 6])
def test_the_operator(groups, beside):
    """By one kernel or, beside another number of maps, several; of a slice and of NCHW. Strides are the fake's."""
    w, wide = normal(12, 12 // groups, 3, 3), normal(2, 20, 5, 4)
    others = normal(2, beside, 5, 4, seed=1) if beside else None
    geometry = (1, 1, 1, 1, 1, 1, 1, 1, groups)
    for x in (wide[:, 3:15], wide[:, 3:15].contiguous()):
        tensors = x, w, None, normal(12, 1, 1, 1).flatten(), others
        y = gpu_tools.conv2d_shuffled(*tensors, geometry, "relu", 0.0, 3, 0)
        truth = F.conv2d(x.double(), w.double(), normal(12, 1, 1, 1).flatten().double(), 1, 1, 1, groups).relu()
        torch.testing.assert_close(y, joined(truth, None if others is None else others.double(), 3).float())
        fake = ops.CONV2D_SHUFFLED(*(t if t is None else t.to("meta") for t in tensors), geometry, "relu", 0.0, 3, 0)
        assert y.stride() == fake.stride()


def test_it_takes_one_launch(monkeypatch):
    """A kernel that shuffles is chosen for every convolution before a shuffle in the two networks."""
    seen = []
    monkeypatch.setattr(gpu_tools, "_run", lambda problem, *_, **__: seen.append(problem))
    for name in ("shufflenet_v1", "shufflenet_v2_x1_0"):
        model = models.create(name).eval()
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(functional, "_fuses", lambda *_: True)
            patch.setattr(ops, "CONV2D_SHUFFLED", gpu_tools.conv2d_shuffled)
            model(torch.zeros(1, 3, 64, 64).to(memory_format=torch.channels_last))
        assert len(seen) == 16, name  # one of each unit
        seen.clear()


@pytest.mark.parametrize("beside", [0, 8, 4])
def test_in_training(beside):
    """Batch normalisation writes what is shuffled and reads its gradient there, to the second order."""
    given = [normal(3, 4, 5, 4), normal(8, 4, 1, 1), normal(8, 1, 1, 1).flatten() + 2, normal(8, 1, 1, 1).flatten()]
    given += [normal(3, beside, 5, 4, seed=1)] if beside else []

    def results(layer, dtype):
        tensors = [tensor.to(dtype).requires_grad_() for tensor in given]
        y = layer(*tensors[:4], tensors[4] if beside else None)
        dy = normal(*y.shape, seed=2).to(dtype)
        first = torch.autograd.grad(y, tensors, dy, retain_graph=True)
        graph = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in graph), tensors)
        return y.detach(), *first, *second

    def of_torch(x, w, gamma, beta, others):
        return joined(F.batch_norm(F.conv2d(x, w), None, None, gamma, beta, True).tanh(), others, 2)

    def own(x, w, gamma, beta, others):
        return conv_bn_act(x, w, gamma, beta, None, None, activation="tanh", beside=others, shuffle=2)

    for mine, truth in zip(results(own, torch.float32), results(of_torch, torch.float64), strict=True):
        assert mine.shape == truth.shape
        assert error(mine, truth) < 1e-4
