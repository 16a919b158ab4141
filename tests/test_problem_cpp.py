"""Problem strings as the compiled part reads and writes them: csrc/conv_problem.cpp."""

import random
from typing import Any

import pytest

from cnnkern import _C
from cnnkern.problem import ACTIVATIONS, DIRECTIONS, DTYPES, ConvProblem, Epilogue, Prologue


def random_problem(rng: random.Random) -> ConvProblem:
    """A valid problem in which every field has its default value now and then, and another one else."""
    groups = rng.choice((1, 1, 3, 8))
    c, k = groups * rng.randint(1, 9), groups * rng.randint(1, 9)
    r, s = rng.randint(1, 5), rng.randint(1, 5)
    dilation = rng.choice(((1, 1), (2, 2), (1, 3)))

    def activation() -> dict[str, Any]:
        name = rng.choice(ACTIVATIONS)
        alpha = rng.choice((0.0, 0.01, 1.0, -0.2, 1e-05, 1 / 3)) if name in ("leaky_relu", "elu") else 0.0
        return {"activation": name, "alpha": alpha}

    def flag() -> bool:
        return rng.random() < 0.5

    return ConvProblem(
        n=rng.randint(0, 99),
        c=c,
        h=rng.randint(dilation[0] * r, 300),
        w=rng.randint(dilation[1] * s, 300),
        k=k,
        r=r,
        s=s,
        stride=rng.choice(((1, 1), (2, 2), (1, 2))),
        padding=rng.choice(((0, 0, 0, 0), (1, 1, 1, 1), (1, 2, 1, 2), (0, 1, 2, 3), (3, 2, 3, 1))),
        dilation=dilation,
        groups=groups,
        x_pixel_stride=rng.choice((0, c + 1)),
        y_pixel_stride=rng.choice((0, k + 32)),
        prologue=Prologue(scale=flag(), shift=flag(), **activation()),
        epilogue=Epilogue(scale=flag(), shift=flag(), residual=flag(), **activation()),
        direction=rng.choice(DIRECTIONS),
        dtype=rng.choice(list(DTYPES)),
        x_layout=rng.choice(("nhwc", "nchw")),
        y_layout=rng.choice(("nhwc", "nchw")),
        w_layout=rng.choice(("krsc", "kcrs")),
    )


def test_python_and_cpp_write_and_read_the_same_strings() -> None:
    rng = random.Random(0)
    for _ in range(500):
        problem = random_problem(rng)
        text = str(problem)
        assert _C.parse(text) == text
        assert str(ConvProblem.parse(text)) == text
        assert _C.output_size(text) == (problem.p, problem.q)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("fprop-f32-n1c8h9w9-k8r3s3-u1x1-p0-l1-g1-x:nhwc-w:krsc-act:none", "fprop-f32-n1c8h9w9-k8r3s3"),
        ("dgrad-f64-n1c8h9w9-k8r3s3-p1x1x1x1-u2x2", "dgrad-f64-n1c8h9w9-k8r3s3-u2-p1"),
        ("wgrad-bf16-n1c8h9w9-k8r3s3-p1x2x1x2-xs8-ys8", "wgrad-bf16-n1c8h9w9-k8r3s3-p1x2"),
        ("fprop-f16-n1c8h9w9-k8r3s3-act:elu:1.0000-shift", "fprop-f16-n1c8h9w9-k8r3s3-shift-act:elu:1"),
        ("fprop-f32-n1c8h9w9-k8r3s3-act:leaky_relu:0.00001", "fprop-f32-n1c8h9w9-k8r3s3-act:leaky_relu:1e-05"),
    ],
)
def test_other_spellings_become_the_canonical_one(text: str, canonical: str) -> None:
    assert _C.parse(text) == canonical
    assert str(ConvProblem.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"),
        ("fprop-f32-n1c1h1w1", "expected at least"),
        ("forward-f32-n1c1h1w1-k1r1s1", "'forward'"),
        ("fprop-f8-n1c1h1w1-k1r1s1", "'f8'"),
        ("fprop-f32-n1c1h1-k1r1s1", "'n1c1h1'"),
        ("fprop-f32-n1c1h1w1x-k1r1s1", "'n1c1h1w1x'"),
        ("fprop-f32-n1c1h1w99999999999999999999-k1r1s1", "'n1c1h1w99999999999999999999'"),
        ("fprop-f32-n1c1h1w1-k1r1", "'k1r1'"),
        ("fprop-f32-n1c1h9w9-k1r1s1-u2x2x2", "'u2x2x2'"),
        ("fprop-f32-n1c1h9w9-k1r1s1-p1x2x3", "'p1x2x3'"),
        ("fprop-f32-n1c1h9w9-k1r1s1-p-1", "'p-1'"),
        ("fprop-f32-n1c1h9w9-k1r1s1-u2-u2", "'u2': given twice"),
        ("fprop-f32-n1c1h9w9-k1r1s1-z3", "'z3'"),
        ("fprop-f32-n1c1h9w9-k1r1s1-scaled", "'scaled'"),
        ("fprop-f32-n1c1h9w9-k1r1s1-x:hwc", "'x:hwc'"),
        ("fprop-f32-n1c1h9w9-k1r1s1-act:gelu", "'act:gelu'"),
        ("fprop-f32-n1c1h9w9-k1r1s1-act:elu:one", "'act:elu:one'"),
        ("fprop-f32-n1c4h9w9-k4r1s1-g3", "groups 3"),
        ("fprop-f32-n1c4h9w9-k4r1s1-g0", "groups is not positive"),
        ("fprop-f32-n1c4h9w9-k4r1s1-u0", "the stride is not positive"),
        ("fprop-f32-n1c4h9w9-k0r1s1", "no filters"),
        ("fprop-f32-n1c4h2w9-k4r3s3-p0x9", "extent 3x3"),
        ("fprop-f32-n1c4h9w9-k4r1s1-xs3", "pixel stride of x"),
    ],
)
def test_a_wrong_string_raises_an_error_that_names_the_fault(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        _C.parse(text)
