"""Measures the cases of a suite, one after another: ours against the vendor, warm and cold, verified, with a ceiling.

Own kernels and the vendor are never mixed: a problem without an own kernel is reported as missing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from cnnkern import dispatch, testing
from cnnkern.backends import OWN_BACKENDS
from cnnkern.bench import device
from cnnkern.bench.allocator import keep_freed_memory
from cnnkern.bench.operands import draw, own_call
from cnnkern.bench.peers import vendor_calls
from cnnkern.bench.record import Comparison, Record, Row
from cnnkern.bench.roofline import Roofline
from cnnkern.bench.suites import Case, family
from cnnkern.bench.timing import CacheFlush, race
from cnnkern.bench.verify import MakeCall, verify
from cnnkern.problem import ConvProblem

CHECKS_SHARE = 0.3  # of a case's time, for its data and the verification
COLD_SHARE = 0.3  # of the rest
FIXED_SECONDS = 0.05  # a case's time grows with its arithmetic, from this
FAILED = "failed: "  # begins the reason for a row that is missing because of an error
FLOPS_PER_SECOND = 5e9  # that much arithmetic in a case is worth a second of budget

Progress = Callable[[Row], None]


def makers_for(problem: ConvProblem, pattern: str | None) -> dict[str, MakeCall]:
    """What makes a call of the kernel that the dispatcher chooses, or of each able own kernel that matches ``pattern``.

    It chooses among the kernels of the backend that is set, if one is. Raises dispatch.NoKernelError where no own
    kernel computes the problem.
    """
    if pattern is None:
        backend = dispatch.settings().backend
        chosen = dispatch.choose(problem, 0, backend, device.kind())
        return {chosen: partial(own_call, kernel=chosen) if backend else own_call}
    asked = [
        answer
        for name in OWN_BACKENDS[device.kind()]
        for answer in dispatch.candidates(problem, 0, name, device.kind())
    ]
    able = [candidate.kernel for candidate in asked if not candidate.why_not]
    return {name: partial(own_call, kernel=name) for name in able if re.search(pattern, name)}


def measure_case(
    case: Case, makers: dict[str, MakeCall], budget: float, flush: Callable[[], None], roof: Roofline
) -> list[Row]:
    """A row for each of the kernels that ``makers`` makes calls of, in about ``budget`` seconds."""
    problem = case.problem
    operands = draw(problem)
    own = {name: make(problem, operands) for name, make in makers.items()}
    peers = vendor_calls(problem, operands)
    racing = budget * (1 - CHECKS_SHARE)
    cold_ours, cold_peer = race(own, peers, COLD_SHARE * racing, flush)
    warm_ours, warm_peer = race(own, peers, (1 - COLD_SHARE) * racing)
    rows = []
    for warm, cold in zip(warm_ours, cold_ours, strict=True):
        verdict = verify(problem, operands, warm.output, makers[warm.name], testing.is_transformed(warm.name))
        rows.append(
            Row(
                problem=str(problem),
                family=family(problem),
                direction=problem.direction,
                dtype=problem.dtype,
                batch=problem.n,
                uses=case.uses,
                kernel=warm.name,
                warm=Comparison.of(warm, warm_peer),
                cold=Comparison.of(cold, cold_peer),
                gflops=problem.flops / warm.median / 1e9,
                roofline=roof.ceilings.seconds(problem, warm.name, cold=False) / warm.median,
                error=verdict.error,
                fault=verdict.fault or roof.why_impossible(problem, warm.name, warm.median, cold.median),
            )
        )
    return rows


def weight_of(case: Case) -> float:
    """A case's share of the time, in arbitrary units."""
    return FIXED_SECONDS + case.problem.flops / FLOPS_PER_SECOND


def measure(
    record: Record, cases: Sequence[Case], pattern: str | None, budget: float, progress: Progress, where: str = "cpu"
) -> None:
    """Fills ``record`` with the rows of the cases in about ``budget`` seconds; ``progress`` is told of each."""
    with torch.device(where), torch.inference_mode(), dispatch.use(fallback="raise"), device.plain_float32():
        _measure(record, cases, pattern, budget, progress)


def _measure(record: Record, cases: Sequence[Case], pattern: str | None, budget: float, progress: Progress) -> None:
    keep_freed_memory()
    deadline = time.perf_counter() + budget
    roof = Roofline(sorted({case.problem.dtype for case in cases}))
    flush = CacheFlush()
    weights = [weight_of(case) for case in cases]
    for position, case in enumerate(cases):
        try:
            makers = makers_for(case.problem, pattern)
        except dispatch.NoKernelError as error:
            record.missing[str(case.problem)] = str(error)
            continue
        left = deadline - time.perf_counter()
        if left <= 0:
            record.missing[str(case.problem)] = f"the {budget:g} seconds were spent"
            continue
        share = left * weights[position] / sum(weights[position:])
        try:
            rows = measure_case(case, makers, share, flush, roof) if makers else []
        except Exception as error:  # the others are worth measuring all the same
            record.missing[str(case.problem)] = f"{FAILED}{error}"
            continue
        for row in rows:
            record.rows.append(row)
            progress(row)
    record.ceilings = roof.ceilings
    record.rows = [replace(row, roofline=fraction_of(row, roof)) for row in record.rows]


def fraction_of(row: Row, roof: Roofline) -> float:
    """A warm row's fraction of the roofline as it is known in the end."""
    return roof.ceilings.seconds(ConvProblem.parse(row.problem), row.kernel, cold=False) / row.warm.own.median
