"""Every depthwise and grouped CPU kernel, forced by name, on the small problems that it can compute.

Integer operands make every sum exact, so a kernel has to equal the plain loops of the reference kernel bit for bit;
normal ones are held to the error of direct convolution in float64.
"""

import pytest
import torch

from cnnkern import _C, composed, functional, ops, testing
from cnnkern.problem import ACTIVATIONS, DTYPES, ConvProblem

KERNELS = [name for name in _C.kernels() if name.split("_")[1] in ("depthwise", "grouped")]

# What each line is there for. A vector holds 2 to 16 maps, a tile 7 pixels of one or two rows.
SHAPES = (
    "n1c1h1w1-k1r1s1",  # the least there is
    "n2c16h7w7-k16r3s3-p1-g16",  # whole tiles and vectors, in every instruction set
    "n1c17h14w15-k17r3s3-p1-g17",  # a last vector that overlaps, a last tile of one pixel
    "n2c40h9w16-k40r3s3-u2-p1-g40",  # stride 2, odd and even sizes
    "n1c24h8w8-k24r3s3-u2-p0x2x1x0-g24",  # uneven padding
    "n1c16h3w3-k16r3s3-p3-g16",  # outputs that see padding only
    "n1c16h9w30-k16r3s3-p1-g16-xs20-ys24",  # x and y as slices of wider buffers
    "n3c144h5w5-k144r3s3-p1-g144",  # several blocks of maps
    "n1c20h10w10-k20r5s5-p2-g20",
    "n1c20h11w9-k20r5s5-u2-p2-g20",
    "n1c18h8w9-k18r7s7-p3-g18",
    "n1c18h13w12-k18r7s7-u2-p3-g18",
    "n2c3h5w6-k3r3s3-p1-g3",  # fewer maps than a vector
    "n1c18h6w5-k18r2s4-p0x1x1x2-g18",  # other filters
    "n1c16h9w9-k16r3s3-u3x2-p2-l2x1-g16",  # unequal strides and dilations
    "n1c32h7w7-k32r3s3-p1-g8",  # 4 maps a group
    "n2c20h9w8-k20r3s3-u2-p1-g5",  # 4, a last vector that overlaps
    "n2c24h9w15-k24r3s3-p1-g3",  # 8
    "n1c16h9w9-k16r3s3-u2-p0x1x1x0-g2",  # 8
    "n1c48h8w7-k48r3s3-p1-g3",  # 16
    "n1c32h9w8-k32r3s3-u2-p1-g2",  # 16
    "n1c96h5w7-k96r3s3-p1-g3-xs100-ys98",  # 32
    "n1c64h6w9-k64r3s3-u2-p2-g2",  # 32
    "n1c1024h3w4-k1024r3s3-p1-g32",  # pixels a multiple of 4096 bytes apart
    "n1c6h6w6-k4r3s3-p1-g2",  # unequal sizes of groups
    "n2c8h6w6-k24r3s3-p1-g8",  # three filters per map
    "n1c60h5w5-k21r1s1-g3",  # pointwise
    "n1c12h6w7-k42r3s1-u2x1-p1x0-l1x2-g2",  # groups that share vectors
)

EPILOGUES = ("-scale-shift-act:relu6", "-residual", "-scale-shift-residual-act:silu", "-shift-act:leaky_relu:0.25")


def computable(kernel: str, shapes: tuple[str, ...] = SHAPES) -> list[ConvProblem]:
    """The problems of ``shapes``, in the kernel's direction and dtype, that it can compute: at least one."""
    _, _, direction, dtype, _ = kernel.split("_", 4)
    problems = [f"{direction}-{dtype}-{shape}" for shape in shapes]
    found = [ConvProblem.parse(problem) for problem in problems if not _C.why_not(kernel, problem)]
    assert found, f"{kernel} can compute none of the problems"
    return found


@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_on_integers(kernel: str) -> None:
    for problem in computable(kernel):
        given = testing.operands(problem, fill="integers")
        reference = f"cpu_reference_{problem.direction}_{problem.dtype}_nhwc_any__generic"
        assert torch.equal(testing.run(problem, given, kernel), testing.run(problem, given, reference)), problem


@pytest.mark.parametrize("kernel", KERNELS)
def test_close_to_float64(kernel: str) -> None:
    for problem in computable(kernel):
        testing.check(problem, kernel)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_fprop_" in name])
def test_epilogues(kernel: str) -> None:
    for problem in computable(kernel, tuple(shape + epilogue for shape in SHAPES[1::2] for epilogue in EPILOGUES)):
        testing.check(problem, kernel)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_wgrad_" in name])
def test_bias_gradient(kernel: str) -> None:
    for problem in computable(kernel):
        given = testing.operands(problem, fill="integers")
        _, db = ops.WGRAD(given.dy, given.x, problem.w_size, problem.geometry, True, True, *ops.NO_PROLOGUE, 0, kernel)
        assert torch.equal(db, given.dy.double().sum((0, 2, 3)).to(db.dtype)), problem


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_wgrad_f32_" in name])
def test_weight_gradient_is_deterministic(kernel: str) -> None:
    for problem in computable(kernel):
        given = testing.operands(problem)
        assert torch.equal(testing.run(problem, given, kernel), testing.run(problem, given, kernel)), problem


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_f32_nhwc_7x3x3_" in name])
def test_images_larger_than_the_caches(kernel: str) -> None:
    shapes = (
        "n1c64h270w260-k64r3s3-p1-g64",
        "n1c40h330w340-k40r3s3-p1-g40",  # pixels of which every second is not aligned
        "n1c64h270w260-k64r3s3-u2-p1-g64",
        "n1c64h270w260-k64r3s3-p1-g16",
    )
    for problem in computable(kernel, shapes):
        testing.check(problem, kernel)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_follow_torch(activation: str, dtype: str) -> None:
    """Values and NaN propagation of the vectorised activations, seen through an identity convolution."""
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-6, 88.0, -88.0, 104.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    values = torch.cat([torch.linspace(-20, 20, 4096 - len(special)), special]).to(DTYPES[dtype])
    x = values.reshape(1, 1, 64, 64).expand(1, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    w = torch.ones(16, 1, 1, 1, dtype=x.dtype)
    alpha = 0.5 if activation in ("leaky_relu", "elu") else None
    for isa in _C.isas():
        kernel = f"cpu_depthwise_fprop_{dtype}_nhwc_any__{isa}"
        if kernel not in KERNELS:
            continue
        y = functional.fused_conv2d(x, w, groups=16, activation=activation, alpha=alpha, kernel=kernel)
        truth = composed.activate(x.double(), activation, alpha or 0.0).to(x.dtype)
        torch.testing.assert_close(y, truth, rtol=8 * torch.finfo(x.dtype).eps, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "_grouped_fprop_f32_" in name])
def test_one_group_is_refused(kernel: str) -> None:
    assert "group" in _C.why_not(kernel, "fprop-f32-n1c16h8w8-k16r3s3-p1")
