"""Every Triton convolution kernel, forced by name, on the problems that it can compute, against the float64 oracle.

Each runs in its smallest tile, in which a small problem has several tiles, and a tail in every direction.
"""

from dataclasses import replace

import pytest
import torch

from cnnkern import gpu, testing
from cnnkern.backends.triton import listed
from cnnkern.problem import ConvProblem

SMALLEST = {}
for name, (kernel, config) in listed().items():
    if config == kernel.configs[-1]:
        SMALLEST[name] = kernel

# What each line is there for. They are small: the interpreter takes two milliseconds for a step of a tile.
SHAPES = (
    "n1c1h1w1-k1r1s1",  # the least there is
    "n2c16h4w4-k16r3s3-p1",  # the everyday 3x3, whole tiles
    "n1c17h3w5-k19r3s3-p1",  # a tail in every dimension
    "n1c3h9w11-k5r5s5-u2-p2",  # a stem: 3 maps, a larger filter, unequal sides
    "n2c40h3w4-k33r1s1",  # pointwise, several blocks of the sum
    "n1c8h1w3-k16r1s1",  # pointwise in whole vectors
    "n2c40h5w4-k24r1s1",  # and in several tiles
    "n1c8h5w6-k24r1s1-u2",  # pointwise with a stride
    "n1c5h6w4-k7r2s4-p0x1x1x2",  # even filters, uneven padding as of "same"
    "n1c6h9w9-k4r3s3-u2x3-p2x1-l2x3",  # unequal strides, padding and dilation
    "n1c4h3w3-k4r3s3-p3",  # pixels of output that see padding only
    "n1c5h7w7-k6r3s3-p1-u3",  # a stride of the filter's size
    "n1c6h5w5-k5r2s2-u3",  # pixels of x that no filter reads
    "n1c4h7w8-k4r3s3-p2-l2-u2",  # a dilation that the stride divides
    "n2c7h4w4-k7r3s3-p1-g7",  # depthwise
    "n1c17h5w5-k17r3s3-p1-u2-g17",  # depthwise with a stride and a tail
    "n1c2h5w6-k2r9s7-p4x3-g2",  # a large depthwise filter
    "n1c3h6w6-k3r5s5-p4-l2-g3",  # depthwise, dilated
    "n1c8h4w4-k16r3s3-p1-g8",  # a multiplier of 2
    "n1c16h4w4-k16r3s3-p1-g4",  # 4 maps a group
    "n1c32h3w5-k64r3s3-p1-u2-g4",  # 8 maps in and 16 out, with a stride
    "n2c12h3w3-k8r3s3-u2-p1-g4",  # few and odd maps a group
    "n1c8h4w5-k8r3s3-p1-x:nchw-w:kcrs-y:nchw",  # NCHW throughout
    "n1c9h4w4-k11r3s3-p1-xs16-ys20",  # x and y as slices of wider buffers
)
HALVES = (
    "-scale-shift-act:relu",
    "-residual-act:elu:0.5",
    "-scale-shift-residual-act:hardswish",
    "-shift-act:silu-xscale-xshift-xact:relu",
    "-act:tanh-xshift-xact:leaky_relu:0.25",
)
GRID = [ConvProblem.parse(f"fprop-f32-{shape}") for shape in SHAPES]


def computable(name, problems):
    """Those of the problems, in the kernel's direction and dtype, that it can compute: at least one."""
    kernel, dtype = SMALLEST[name], name.split("_nhwc_")[0].rsplit("_", 1)[1]
    own = [replace(problem, direction=kernel.direction, dtype=dtype) for problem in problems]
    found = [problem for problem in own if not kernel.why_not(problem)]
    assert found, f"{name} can compute none of the problems"
    return found


@pytest.mark.parametrize("name", SMALLEST)
def test_exact_on_integers(name):
    for problem in computable(name, GRID)[:: 1 if "_f32_" in name else 3]:
        testing.check(problem, name, fill="integers", operators=gpu)


@pytest.mark.parametrize("name", SMALLEST)
def test_close_to_float64(name):
    for problem in computable(name, GRID)[::3]:
        testing.check(problem, name, operators=gpu)


@pytest.mark.parametrize("name", [name for name in SMALLEST if "_dgrad_" not in name])
def test_prologue_and_epilogue(name):
    halves = HALVES if "_fprop_" in name else ("-xscale-xact:relu", "-xshift-xact:sigmoid")
    for problem in computable(name, GRID)[1::9]:
        for half in halves:
            testing.check(ConvProblem.parse(str(problem) + half), name, operators=gpu)


@pytest.mark.parametrize("name", [name for name in SMALLEST if "_wgrad_" in name])
def test_bias_gradient(name):
    torch.set_default_dtype(torch.float64)  # of what is allocated in between, no dtype is left to the user
    try:
        for problem in computable(name, GRID)[::3]:
            given = testing.operands(problem, fill="integers")
            rest = (True, True, None, None, None, None, 0, name)
            _, db = gpu.conv2d_wgrad(given.dy, given.x, problem.w_size, problem.geometry, *rest)
            assert torch.equal(db, given.dy.double().sum((0, 2, 3)).to(db.dtype)), problem
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", [name for name in SMALLEST if "_fprop_f32_" in name or "_dgrad_f32_" in name])
def test_nan_and_infinity_stay_where_they_are(name):
    """Padding is not multiplied: a NaN or an infinity shows in what sees it and in nothing else."""
    for problem in computable(name, GRID)[::3]:
        given = testing.operands(problem, fill="integers")
        read = given.x if problem.direction == "fprop" else given.dy
        read[0, 0, 0, 0], read[-1, -1, -1, -1] = torch.nan, torch.inf
        result, truth = testing.run(problem, given, name, operators=gpu), testing.oracle(problem, given)
        assert torch.equal(result.isnan(), truth.isnan()), problem
        assert torch.equal(result.isinf(), truth.isinf()), problem


@pytest.mark.parametrize("name", [name for name in SMALLEST if "_f32_" in name])
def test_gaps_between_rows(name):
    """x and dy are every other row of taller images."""
    problem = computable(name, GRID)[-1]
    given = testing.operands(problem, fill="integers")
    given = replace(given, x=every_other_row(given.x), dy=every_other_row(given.dy))
    result, truth = testing.run(problem, given, name, operators=gpu), testing.oracle(problem, given)
    assert torch.equal(result, truth.to(result.dtype)), problem


def every_other_row(tensor):
    n, c, h, w = tensor.shape
    tall = torch.full((n, c, 2 * h, w), torch.nan).contiguous(memory_format=torch.channels_last)
    return tall[:, :, ::2].copy_(tensor)


@pytest.mark.parametrize("name", [name for name in SMALLEST if "_f32_" in name])
def test_larger_tiles(name):
    """One problem in each config of the kernel."""
    kernel = SMALLEST[name]
    problem = computable(name, GRID)[-1]
    for other, entry in listed().items():
        if entry[0] is kernel and "_f32_" in other:
            testing.check(problem, other, fill="integers", operators=gpu)


def test_the_kernel_chosen_is_right():
    for problem in GRID:
        for direction in ("fprop", "dgrad", "wgrad"):
            testing.check(replace(problem, direction=direction), fill="integers", operators=gpu)
