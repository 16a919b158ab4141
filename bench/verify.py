"""No speedup for a wrong answer: what a kernel must pass before its time is worth printing.

Three checks:

  timed buffer   The tensor that the last timed call left (of a batch its first and last image), projected on random
                 weights over its maps, equals the same projection computed in float64, which is a convolution with
                 one map per group (R. Freivalds, "Probabilistic machines can use less running time", IFIP 1977).
  poison         A second call, with garbage in all memory that it allocates, gives the same bits.
  integers       On operands of -1, 0 and 1 every partial sum is exact, so the vendor's answer is met bit for bit: by
                 all but kernels that transform their operands, whose products are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnkern import testing
from cnnkern.bench import device
from cnnkern.bench.allocator import poisoned_memory
from cnnkern.bench.operands import Operands, draw, small_integers
from cnnkern.bench.peers import vendor_call
from cnnkern.problem import ConvProblem

TOLERANCE = 8  # in units of the rounding error expected of a projection: the largest of many such errors passes

MakeCall = Callable[[ConvProblem, Operands], Callable[[], Tensor]]


@dataclass(frozen=True)
class Verdict:
    """``error`` is the projection's largest error relative to its own root mean square; ``fault`` is empty if right."""

    error: float
    fault: str = ""


def project(tensor: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Weighted sums in float64 over the maps of each group along ``dim``; ``weights`` is (groups, maps of a group)."""
    grouped = tensor.double().unflatten(dim, weights.shape)
    shape = [*weights.shape] + [1] * (tensor.dim() - dim - 1)
    return (grouped * weights.view(shape)).sum(dim + 1)


def taps(problem: ConvProblem) -> Iterator[tuple[int, int, slice, slice]]:
    """Each filter position (r, s) with the rows and columns of the padded x that it meets."""
    for r in range(problem.r):
        for s in range(problem.s):
            top, left = r * problem.dilation[0], s * problem.dilation[1]
            rows = slice(top, top + (problem.p - 1) * problem.stride[0] + 1, problem.stride[0])
            columns = slice(left, left + (problem.q - 1) * problem.stride[1] + 1, problem.stride[1])
            yield r, s, rows, columns


def maps_last(tensor: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) to float64 (N, H, W, groups, C of a group)."""
    return tensor.double().permute(0, 2, 3, 1).unflatten(3, (groups, -1))


def padded(problem: ConvProblem, x: Tensor) -> Tensor:
    """x of :func:`maps_last` with the problem's padding."""
    top, left, bottom, right = problem.padding
    return F.pad(x, (0, 0, 0, 0, left, right, top, bottom))


def thin_fprop(problem: ConvProblem, x: Tensor, w: Tensor) -> Tensor:
    """x (N, C, H, W) with one filter a group, w (groups, C of a group, R, S), to (N, groups, P, Q) in float64."""
    x = padded(problem, maps_last(x, problem.groups))
    y = x.new_zeros(len(x), problem.p, problem.q, problem.groups)
    for r, s, rows, columns in taps(problem):
        y += (x[:, rows, columns] * w[:, :, r, s]).sum(-1)
    return y.permute(0, 3, 1, 2)


def thin_dgrad(problem: ConvProblem, dy: Tensor, w: Tensor) -> Tensor:
    """dy (N, K, P, Q) with one input map a group, w (groups, K of a group, R, S), to (N, groups, H, W) in float64."""
    dy = maps_last(dy, problem.groups)
    dx = padded(problem, dy.new_zeros(len(dy), problem.h, problem.w, problem.groups, 1)).squeeze(-1)
    for r, s, rows, columns in taps(problem):
        dx[:, rows, columns] += (dy * w[:, :, r, s]).sum(-1)
    top, left = problem.padding[:2]
    return dx[:, top : top + problem.h, left : left + problem.w].permute(0, 3, 1, 2)


def thin_wgrad(problem: ConvProblem, dy: Tensor, x: Tensor) -> Tensor:
    """dy (N, groups, P, Q) and x (N, C, H, W) to (groups, C of a group, R, S) in float64."""
    dy = dy.permute(0, 2, 3, 1)
    x = padded(problem, maps_last(x, problem.groups))
    dw = x.new_zeros(problem.groups, x.shape[-1], problem.r, problem.s)
    for r, s, rows, columns in taps(problem):
        dw[:, :, r, s] = torch.einsum("npqg,npqgc->gc", dy, x[:, rows, columns])
    return dw


def projection(problem: ConvProblem, operands: Operands, output: Tensor) -> tuple[Tensor, Tensor]:
    """The projected output and what it must be, for the images at hand."""
    groups = problem.groups
    maps = (problem.c if problem.direction == "dgrad" else problem.k) // groups
    weights = (torch.rand(groups, maps, dtype=torch.float64) + 0.5) * (torch.randint(0, 2, (groups, maps)) * 2 - 1)
    if problem.direction == "wgrad":
        return project(output, weights, 0), thin_wgrad(problem, project(operands.dy, weights, 1), operands.x)
    if problem.direction == "dgrad":
        filters = operands.w.double().unflatten(0, (groups, -1))  # (groups, K of a group, C of a group, R, S)
        return project(output, weights, 1), thin_dgrad(
            problem, operands.dy, torch.einsum("gkcrs,gc->gkrs", filters, weights)
        )
    wanted = thin_fprop(problem, operands.x, project(operands.w, weights, 0))
    if operands.bias is not None:
        wanted += project(operands.bias, weights, 0)[:, None, None]
    return project(output, weights, 1), wanted


def outer_images(operands: Operands) -> Operands:
    """The first and the last image of x and dy."""
    ends = slice(None, None, max(len(operands.x) - 1, 1))
    return replace(operands, x=operands.x[ends], dy=operands.dy[ends])


def check_timed(problem: ConvProblem, operands: Operands, output: Tensor) -> Verdict:
    """The check of the timed buffer."""
    if problem.direction != "wgrad":
        operands, output = outer_images(operands), output[:: max(len(output) - 1, 1)]
    got, wanted = projection(problem, operands, output)
    scale = wanted.square().mean().sqrt().item()
    error = (got - wanted).abs().max().item() / scale
    accumulate = torch.finfo(torch.promote_types(output.dtype, torch.float32)).eps
    allowed = TOLERANCE * (torch.finfo(output.dtype).eps + accumulate * math.sqrt(problem.gemm_k))
    if math.isfinite(error) and error <= allowed:
        return Verdict(error)
    return Verdict(error, f"the timed output is off by {error:.1e} of its root mean square, allowed are {allowed:.1e}")


def exact(problem: ConvProblem, integers: Operands) -> Tensor:
    """The vendor's answer on integers: on a GPU in float64, for which it has no algorithm that is not exact."""
    if device.kind() == "cpu":
        return vendor_call(problem, integers)()
    wide = {name: None if tensor is None else tensor.double() for name, tensor in vars(integers).items()}
    torch.backends.cudnn.benchmark = False  # its speed does not matter
    try:
        return vendor_call(problem, Operands(**wide))().to(integers.x.dtype)
    finally:
        torch.backends.cudnn.benchmark = True


def same_rounded(problem: ConvProblem, result: Tensor, wanted: Tensor) -> bool:
    """Whether a transformed kernel's result is as far from the exact one as rounding explains."""
    return testing.error(result, wanted.double()) <= testing.tolerance(problem, transformed=True)


def verify(
    problem: ConvProblem, operands: Operands, output: Tensor, make_call: MakeCall, transformed: bool = False
) -> Verdict:
    """Checks ``output``, left by the timed ``make_call(problem, operands)``, and the kernel that made it."""
    verdict = check_timed(problem, operands, output)
    if verdict.fault:
        return verdict
    with poisoned_memory():
        again = make_call(problem, operands)()
    if not torch.equal(again, output):
        return replace(verdict, fault="a second call on poisoned memory gives other values")
    integers = draw(problem, small_integers)
    result, wanted = make_call(problem, integers)(), exact(problem, integers)
    right = same_rounded(problem, result, wanted) if transformed else torch.equal(result, wanted)
    if not right:
        return replace(verdict, fault="integer data, on which every sum is exact, give other values than the vendor's")
    return verdict
