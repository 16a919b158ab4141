"""The command ``cnnkern tune``: which own kernel is the fastest for a problem on this machine, kept for dispatch.

Two races decide a problem. In the first the kernels that can compute it and are not far behind run against the one that
dispatch chooses. Its winner meets the chosen one again, and the vendor, in the second, so that a gain is told by
samples that had no part in picking the winner. On a GPU calls are timed within CUDA graphs, by the time that they keep
the GPU busy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import click
import torch
from torch import Tensor

from cnnkern import dispatch, testing
from cnnkern import tune as tuned
from cnnkern.arguments import allows_tf32
from cnnkern.backends import OWN_BACKENDS, why_no_gpu
from cnnkern.bench.allocator import keep_freed_memory
from cnnkern.bench.cli import (
    STYLES,
    Suite,
    batch_option,
    budget_option,
    chosen_cases,
    dtype_option,
    first_line,
    lines_shown,
    threads_option,
)
from cnnkern.bench.operands import Operands, draw, own_call
from cnnkern.bench.peers import best_of_vendor, vendor_call, vendor_calls
from cnnkern.bench.run import weight_of
from cnnkern.bench.suites import Case
from cnnkern.bench.timing import HOPELESS, Call, Ratio, race, seconds_of
from cnnkern.flags import TF32
from cnnkern.problem import ConvProblem

GRAPH_CALLS = 10  # in a CUDA graph, beside which its launch counts for little
TRIES = 3  # timed calls, the least of which tells whether a kernel is far behind


class WrongResultError(RuntimeError):
    """The kernel that dispatch chooses gives another result than the vendor's."""


@dataclass(frozen=True)
class Outcome:
    """What was measured of one problem."""

    problem: ConvProblem
    before: str
    """The kernel that dispatch chose."""
    fastest: str
    gain: Ratio
    """How many times faster the fastest is than the one before."""
    to_vendor: Ratio
    """How many times faster the fastest is than the vendor."""
    wrong: tuple[str, ...]
    """Kernels that had no part in it because of their results."""

    @property
    def certain(self) -> bool:
        """Whether the fastest is worth keeping."""
        return self.gain.verdict == "faster"

    def __str__(self) -> str:
        kernels = self.before if self.fastest == self.before else f"{self.before} -> {self.fastest}"
        kept = " kept" if self.certain else ""
        return f"{self.problem}  {kernels}  gain {self.gain.value:.2f}{kept}  to the vendor {self.to_vendor.value:.2f}"


def why_not(problem: ConvProblem) -> str:
    """Empty, or why a bare problem cannot be measured."""
    if problem.x_pixel_stride or problem.y_pixel_stride:
        return "pixel strides are not measured"
    top, left, bottom, right = problem.padding
    return "" if (top, left) == (bottom, right) else "the vendor pads opposite sides alike"


def flags_on(device: str) -> int:
    """The operators' flags of a call under torch's own settings."""
    return TF32 if device == "cuda" and allows_tf32() else 0


def allowed_error(problem: ConvProblem, flags: int) -> float:
    """How far two right results may be apart; TF32 rounds operands to the precision of float16."""
    rounded = replace(problem, dtype="f16") if flags & TF32 and problem.dtype == "f32" else problem
    return 2 * testing.tolerance(rounded, transformed=True)


def result_of(call: Call, device: str) -> Tensor | None:
    """What a kernel gives; None if its tile needs more than this GPU has."""
    if device == "cpu":
        return call()
    from triton import OutOfResources

    try:
        return call()
    except OutOfResources:
        return None


def timed(call: Call, device: str) -> Call:
    """What is raced for a call that has run before: itself on a CPU, a graph of GRAPH_CALLS of it on a GPU."""
    if device == "cpu":
        return call
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            output = call()

    def replay() -> Tensor:
        graph.replay()
        torch.cuda.synchronize()
        return output

    return replay


def drawn(problem: ConvProblem, device: str) -> Operands:
    """Random operands without a bias on a device."""
    on_cpu = draw(problem)
    x, w, dy = (tensor.to(device) for tensor in (on_cpu.x, on_cpu.w, on_cpu.dy))
    return Operands(x, w, dy, None)


def measure(problem: ConvProblem, device: str, budget: float) -> Outcome:
    """Races the kernels on a bare problem for about ``budget`` seconds.

    Raises dispatch.NoKernelError if there is none, and WrongResultError.
    """
    flags = flags_on(device)
    before = dispatch.choose(problem, flags, device=device)
    operands = drawn(problem, device)
    truth = vendor_call(problem, operands)().double()
    own: dict[str, Call] = {}
    wrong = []
    for candidate in dispatch.candidates(problem, flags, device=device):
        if candidate.why_not or candidate.kernel not in tuned.kernels(device):
            continue
        call = own_call(problem, operands, candidate.kernel, flags)
        result = result_of(call, device)
        if result is None:
            continue
        error = testing.error(result, truth)
        if error <= allowed_error(problem, flags):
            own[candidate.kernel] = timed(call, device)
        else:
            wrong.append(f"{candidate.kernel} is off by {error:.1e}")
    if before not in own:
        raise WrongResultError("; ".join(wrong))
    vendor: dict[str, Call] = {}
    for name, call in vendor_calls(problem, operands).items():
        call()
        vendor[name] = timed(call, device)
    fastest = winner(own, before, budget / 2)
    finalists, peer = race({name: own[name] for name in (before, fastest)}, vendor, budget / 2)
    best = min(finalists, key=lambda finalist: finalist.median)
    gain, to_vendor = Ratio.of(best.samples, finalists[0].samples), Ratio.of(best.samples, peer.samples)
    return Outcome(problem, before, best.name, gain, to_vendor, tuple(wrong))


def winner(own: dict[str, Call], before: str, budget: float) -> str:
    """The name of the fastest, for another race against the one before."""
    least = {name: min(seconds_of(call) for _ in range(TRIES)) for name, call in own.items()}
    near = [name for name in own if name != before and least[name] <= HOPELESS * min(least.values())]
    if not near:
        return before
    others, chosen = race({name: own[name] for name in near}, {before: own[before]}, budget)
    return min(chosen, *others, key=lambda contender: contender.median).name


def measure_all(problems: list[ConvProblem], device: str, budget: float, show: Callable[[str, str], None]) -> bool:
    """Measures and keeps, problem by problem, in about ``budget`` seconds, and tells ``show`` of each.

    Returns whether every result was right.
    """
    keep_freed_memory()
    deadline = time.perf_counter() + budget
    weights = [weight_of(Case(problem, ())) for problem in problems]
    all_right = True
    with torch.inference_mode(), best_of_vendor():
        for position, problem in enumerate(problems):
            left = deadline - time.perf_counter()
            reason = why_not(problem) or ("" if left > 0 else f"the {budget:g} seconds were spent")
            if reason:
                show(f"{problem}  not measured: {reason}", "yellow")
                continue
            try:
                outcome = measure(problem, device, left * weights[position] / sum(weights[position:]))
            except dispatch.NoKernelError as error:
                show(f"{problem}  not measured: {first_line(str(error))}", "yellow")
                continue
            except WrongResultError as error:
                all_right = False
                show(f"{problem}  WRONG: {error}", "red")
                continue
            if outcome.certain:
                tuned.keep(device, {problem: outcome.fastest})
            all_right = all_right and not outcome.wrong
            show("\n".join([str(outcome), *outcome.wrong]), "red" if outcome.wrong else STYLES[outcome.gain.verdict])
    return all_right


@click.command()
@click.argument("what", metavar="SUITE|PROBLEM", type=Suite())
@click.option("--device", type=click.Choice(list(OWN_BACKENDS)), default="cpu", help="Where the tensors are.")
@dtype_option
@batch_option
@threads_option
@budget_option(210)
def tune(
    what: str | ConvProblem, device: str, dtypes: Sequence[str], batches: Sequence[int], threads: int | None,
    budget: float,
) -> None:  # fmt: skip
    """Measures which kernel is the fastest for each problem, and keeps it for later calls on this machine.

    SUITE|PROBLEM is a suite or a network as of `cnnkern bench`, or a problem string. Layouts, prologues and epilogues
    are left out of the problems: a choice serves them all.
    """
    if reason := tuned.why_not_kept() or (why_no_gpu() if device == "cuda" else ""):
        raise click.ClickException(reason)
    if threads:
        torch.set_num_threads(threads)
    problems = list(dict.fromkeys(tuned.bare(case.problem) for case in chosen_cases(what, (), dtypes, batches)))
    with lines_shown(len(problems)) as show:
        all_right = measure_all(problems, device, budget, show)
    click.echo(f"tuned choices: {tuned.describe()}")
    if not all_right:
        sys.exit(1)
