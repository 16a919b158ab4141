"""Kernels in threads other than the first, as autograd has them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from cnnkern import dispatch, testing
from cnnkern.backends import OWN_BACKENDS
from cnnkern.problem import DIRECTIONS, ConvProblem


@pytest.mark.parametrize("backend", OWN_BACKENDS["cuda"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("taps", ["r1s1", "r3s3-p1"])  # on tensor descriptors, and on addresses
def test_a_thread_that_has_called_nothing(taps, direction, backend):
    """It has no CUDA context until something gives it one, and memory that is at hand is allocated without."""
    problem = ConvProblem.parse(f"{direction}-bf16-n2c64h12w12-k128{taps}")
    given = testing.operands(problem, "integers")
    moved = {name: value.cuda() for name, value in vars(given).items() if isinstance(value, torch.Tensor)}
    on_gpu, kernel = replace(given, **moved), dispatch.choose(problem, 0, backend, "cuda")
    expected = testing.run(problem, on_gpu, kernel).cpu()
    torch.cuda.synchronize()
    on_gpu = replace(on_gpu, **{name: value.clone() for name, value in moved.items()})  # no address is known yet
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(testing.run, problem, on_gpu, kernel).result()
    torch.cuda.synchronize()
    assert torch.equal(result.cpu(), expected)
