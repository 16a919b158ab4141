"""pytest-benchmark suite: every CPU kernel on one typical layer of each family that it computes.

`make bench-kernels` runs it; `--benchmark-compare` and `--benchmark-histogram` are pytest-benchmark's.
"""

import pytest
import torch

from cnnkern import dispatch
from cnnkern.backends import KernelName
from cnnkern.bench.operands import draw, own_call
from cnnkern.native import _C
from cnnkern.problem import ConvProblem

LAYERS = {
    "pointwise": "n1c256h14w14-k1024r1s1",  # ResNet-50, stage 3
    "dense 3x3": "n1c128h28w28-k128r3s3-p1",  # ResNet-50, stage 2
    "strided 3x3": "n1c128h56w56-k128r3s3-u2-p1",  # ResNet-50, first of stage 2
    "depthwise": "n1c512h14w14-k512r3s3-p1-g512",  # MobileNetV1
    "grouped": "n1c256h28w28-k256r3s3-p1-g32",  # ResNeXt-50, stage 2
    "stem": "n1c3h224w224-k64r7s7-u2-p3",  # ResNet-50
}


def grid():
    cases = []
    for kernel in map(KernelName.parse, _C.kernels()):
        if kernel.family == "reference":
            continue  # plain loops, for answers and not for speed
        problems = {layer: f"{kernel.direction}-{kernel.dtype}-{sizes}" for layer, sizes in LAYERS.items()}
        cases += [
            pytest.param(str(kernel), problem, id=f"{kernel}-{layer}", marks=pytest.mark.benchmark(group=problem))
            for layer, problem in problems.items()
            if not _C.why_not(str(kernel), problem)
        ]
    return cases


@pytest.mark.benchmark(max_time=0.2)
@pytest.mark.parametrize(("name", "text"), grid())
def test_kernel(benchmark, name, text):
    problem = ConvProblem.parse(text)
    call = own_call(problem, draw(problem), name)
    with torch.inference_mode(), dispatch.use(fallback="raise"):
        output = benchmark(call)
    benchmark.extra_info["gflops"] = problem.flops / benchmark.stats["median"] / 1e9
    assert output.isfinite().all()
