"""Tensors that begin anywhere in their storage: no CPU kernel may ask for more than an element's alignment."""

import pytest

from cnnkern import _C, testing
from cnnkern.problem import DIRECTIONS, DTYPES, ConvProblem

# Each kernel computes one of these at least.
SHAPES = (
    "n1c40h7w9-k36r3s3-p1",  # dense
    "n1c26h7w9-k27r5s5-p2",
    "n2c3h9w11-k20r7s7-u2-p3",  # a stem
    "n1c17h5w9-k19r1s1",  # pointwise
    "n1c40h1w3-k36r1s1",  # of few pixels
    "n1c40h7w9-k3r3s3-p1",  # few output maps
    "n1c40h7w9-k40r3s3-p1-g40",  # depthwise
    "n1c40h9w9-k40r5s5-p2-g40",
    "n1c40h9w9-k40r7s7-p3-g40",
    "n1c64h6w7-k64r3s3-p1-g4",  # 16 maps a group
)


@pytest.mark.parametrize("kernel", [name for name in _C.kernels() if "_reference_" not in name])
def test_any_storage_offset(kernel: str) -> None:
    direction = next(name for name in DIRECTIONS if f"_{name}_" in kernel)
    dtype = next(name for name in DTYPES if f"_{name}_" in kernel)
    problems = [f"{direction}-{dtype}-{shape}" for shape in SHAPES]
    problem = next(problem for problem in problems if not _C.why_not(kernel, problem))
    for offset in range(16):
        testing.check(ConvProblem.parse(problem), kernel, fill="integers", offset=offset)
