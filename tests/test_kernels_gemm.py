"""Every CPU kernel that is a GEMM, forced by name, on the problems that it can compute.

Integer operands make every sum exact, so results equal the float64 oracle bit for bit, whatever the tile and the split:
of all but Winograd's, whose products are fractions and which are held to twice the rounding of the others.
"""

from dataclasses import replace

import pytest
import torch

from cnnkern import _C, dispatch, ops, testing
from cnnkern.problem import DIRECTIONS, ConvProblem

FAMILIES = ("cpu_direct", "cpu_im2col", "cpu_implicit_gemm", "cpu_pointwise", "cpu_winograd")
KERNELS = [name for name in _C.kernels() if name.startswith(FAMILIES)]

# What each line is there for, beyond the grid that all kernels share. Tiles are 4 to 14 pixels by 8 to 64 maps.
SHAPES = (
    "n1c8h70w70-k10r3s3-p1",  # several blocks of points, several chunks of a weight gradient
    "n2c40h12w12-k130r3s3-p1",  # three panels, the last with few columns
    "n1c16h20w20-k6r9s9-p4",  # more taps than a mask has bits
    "n1c7h9w9-k5r3s3-p1",  # odd depths, which pairs of bf16 pad
    "n1c3h31w29-k24r3s3-u2-p1",  # a stem with 3 maps
    "n2c3h40w40-k64r7s7-u2-p3-xs5",  # a stem whose dy fills vectors, x as a slice
    "n1c1h16w16-k33r5s5-p2-ys40",  # one map, and y as a slice
    "n2c26h7w9-k27r5s5-p2x1",  # 5x5 filters of several vectors
    "n2c70h13w13-k66r1s1-u2-xs80",  # pointwise with a stride, x as a slice
    "n1c1024h4w4-k20r1s1",  # rows of x a multiple of 4096 bytes apart
    "n4c3h5w300-k4r1s7-p0x3",  # rows longer than a block of points
    "n1c6h5w5-k3r2s2-u3-p1",  # pixels of x that no filter reads
    "n1c37h18w20-k8r1s1",  # 8 output maps, and no whole vectors of input maps
    "n3c70h1w1-k29r1s1-xs80",  # 3 pixels, and filters that fill no tile
    "n2c33h3w3-k20r3s3-p1",  # more pixels than a tile has
    "n1c150h9w7-k70r3s3-p1-xs160-ys75",  # few pixels of many maps: Winograd's filters in blocks of their depth
)
EPILOGUES = (
    "-scale-shift-act:relu",
    "-residual-act:elu:0.5",
    "-scale-shift-residual-act:hardswish",
    "-shift-act:relu6",
)


def computable(kernel: str, problems: list[ConvProblem]) -> list[ConvProblem]:
    """Those of the problems, in the kernel's direction and dtype, that it can compute: at least one."""
    _, direction, dtype, _ = kernel.removeprefix("cpu_").replace("implicit_gemm", "implicit-gemm").split("_", 3)
    own = [replace(problem, direction=direction, dtype=dtype) for problem in problems]
    found = [problem for problem in own if not _C.why_not(kernel, str(problem))]
    assert found, f"{kernel} can compute none of the problems"
    return found


GRID = [*testing.grid(["fprop"], ["f32"]), *(ConvProblem.parse(f"fprop-f32-{shape}") for shape in SHAPES)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_on_integers(kernel: str) -> None:
    for problem in computable(kernel, [*GRID, *testing.random_problems(15, seed=len(kernel))]):
        testing.check(problem, kernel, fill="integers")


@pytest.mark.parametrize("kernel", KERNELS)
def test_close_to_float64(kernel: str) -> None:
    for problem in computable(kernel, GRID):
        testing.check(problem, kernel)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_fprop_" in name])
def test_epilogues(kernel: str) -> None:
    problems = [ConvProblem.parse(str(problem) + epilogue) for problem in GRID[1::3] for epilogue in EPILOGUES]
    for problem in computable(kernel, problems):
        testing.check(problem, kernel)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_wgrad_" in name])
def test_bias_gradient(kernel: str) -> None:
    for problem in computable(kernel, GRID):
        given = testing.operands(problem, fill="integers")
        _, db = ops.WGRAD(given.dy, given.x, problem.w_size, problem.geometry, True, True, *ops.NO_PROLOGUE, 0, kernel)
        assert torch.equal(db, given.dy.double().sum((0, 2, 3)).to(db.dtype)), problem


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_f32_" in name])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(kernel: str, threads: int) -> None:
    """Threads split panels, points or pixels; each split is exact, and the same from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for problem in computable(kernel, GRID[-len(SHAPES) :]):
            testing.check(problem, kernel, fill="integers")
            given = testing.operands(problem)
            first, second = (testing.run(problem, given, kernel) for _ in range(2))
            assert torch.equal(first, second), problem
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_fprop_f32_" in name and "winograd" not in name])
def test_nan_and_infinity_stay_where_they_are(kernel: str) -> None:
    """Padding is not multiplied: a NaN or an infinity shows in the outputs that see it and in no other."""
    for problem in computable(kernel, GRID):
        given = testing.operands(problem, fill="integers")
        given.x[0, 0, 0, 0], given.x[-1, -1, -1, -1] = torch.nan, torch.inf
        result, truth = testing.run(problem, given, kernel), testing.oracle(problem, given)
        assert torch.equal(result.isnan(), truth.isnan()), problem
        assert torch.equal(result.isinf(), truth.isinf()), problem


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "winograd_fprop" in name and "4x4" in name])
def test_what_is_not_finite_spreads_over_its_tile_and_no_further(kernel: str) -> None:
    """An input that is not finite shows in each output that sees it, and else only in the tiles of 4 x 4 that do."""
    for problem in computable(kernel, [ConvProblem.parse("fprop-f32-n2c40h18w21-k24r3s3-p1")]):
        given = testing.operands(problem, fill="integers")
        given.x[0, 3, 9, 11] = torch.nan  # seen by rows 8 to 10 and columns 10 to 12: tiles 2 by 2 and 3
        result, truth = testing.run(problem, given, kernel), testing.oracle(problem, given)
        assert result[truth.isnan()].isnan().all(), problem
        assert not result[1].isnan().any(), problem
        clean = torch.ones_like(result[0], dtype=torch.bool)
        clean[:, 8:12, 8:16] = False
        assert not result[0][clean].isnan().any(), problem


@pytest.mark.parametrize("shape", ["n1c32h30w30-k32r3s3-p1", "n2c64h28w28-k64r3s3-p1", "n2c48h35w35-k64r5s5-p2"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_chosen_kernel_is_at_most_four_times_as_far_off_as_torch(direction: str, shape: str) -> None:
    problem = ConvProblem.parse(f"{direction}-f32-{shape}")
    assert testing.is_transformed(dispatch.choose(problem)) == ((problem.r, direction) != (5, "wgrad"))
    given = testing.operands(problem)
    truth = testing.oracle(problem, given)
    assert testing.error(testing.run(problem, given), truth) <= 4 * testing.error(testing.vendor(problem, given), truth)
