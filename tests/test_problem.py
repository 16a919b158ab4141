"""ConvProblem: its text and its sizes in Python. test_problem_cpp.py holds the two languages together."""

import pytest
import torch
import torch.nn.functional as F

from cnnkern import ConvProblem, Epilogue, testing
from cnnkern.native import _C

CANONICAL = [
    "fprop-f32-n1c1h1w1-k1r1s1",
    "fprop-f32-n1c64h56w56-k64r3s3-p1",
    "dgrad-bf16-n16c3h224w224-k64r7s7-u2-p3",
    "wgrad-f16-n2c8h9w7-k8r3s5-u2x1-p1x2-l1x2-g8",
    "fprop-f64-n1c4h6w6-k4r2s2-p0x0x1x1-g2-x:nchw-w:kcrs-y:nchw",
    "fprop-f32-n1c4h6w6-k6r1s1-xs16-ys24",
    "fprop-f32-n1c4h6w6-k6r3s3-scale-shift-residual-act:relu",
    "fprop-f32-n1c4h6w6-k6r3s3-act:leaky_relu:0.01",
    "fprop-f32-n1c4h6w6-k6r3s3-act:elu:1e-05",
    "fprop-f32-n1c4h6w6-k6r3s3-xs16-scale-act:relu-xscale-xshift-xact:leaky_relu:0.01",
]

# What is written, and the token that the error must name.
WRONG = {
    "": "cannot read ''",
    "sideways-f32-n1c1h1w1-k1r1s1": "sideways",
    "fprop-f8-n1c1h1w1-k1r1s1": "f8",
    "fprop-f32-n1c1h1-k1r1s1": "n1c1h1",
    "fprop-f32-n1c1h1w1": "n#c#h#w#-k#r#s#",
    "fprop-f32-n1c1h1w1-k1r1s1-zoom": "zoom",
    "fprop-f32-n1c1h1w1-k1r1s1-p1x1x1": "p1x1x1",
    "fprop-f32-n1c1h1w1-k1r1s1-u1x": "u1x",
    "fprop-f32-n1c1h4w4-k1r1s1-p1-p2": "p2",
    "fprop-f32-n1c1h1w1-k1r1s1-act:softplus": "act:softplus",
    "fprop-f32-n1c4h4w4-k4r3s3-g3": "groups 3",
    "fprop-f32-n1c4h2w4-k4r3s3": "larger than the padded input",
    "fprop-f32-n1c4h4w4-k4r3s3-u0": "stride",
    "fprop-f32-n1c4h4w4-k4r3s3-xs3": "pixel stride of x",
}


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_text_is_its_own_round_trip(text):
    assert str(ConvProblem.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("fprop-f32-n1c4h6w6-k4r3s3-p1x1x1x1-u1x1-l1-g1", "fprop-f32-n1c4h6w6-k4r3s3-p1"),
        ("fprop-f32-n1c4h6w6-k4r3s3-g2-p1x2x1x2", "fprop-f32-n1c4h6w6-k4r3s3-p1x2-g2"),
        ("fprop-f32-n1c4h6w6-k4r3s3-xs4-ys4-x:nhwc", "fprop-f32-n1c4h6w6-k4r3s3"),
    ],
)
def test_defaults_are_left_out(text, canonical):
    assert str(ConvProblem.parse(text)) == canonical


def test_random_problems_are_read_back_and_have_the_size_that_cpp_gives_them():
    for problem in testing.random_problems(200, seed=1):
        assert ConvProblem.parse(str(problem)) == problem
        assert _C.output_size(str(problem)) == (problem.p, problem.q)


@pytest.mark.parametrize("text", WRONG)
def test_errors_name_what_is_wrong(text):
    with pytest.raises(ValueError, match=WRONG[text]):
        ConvProblem.parse(text)


@pytest.mark.parametrize(
    ("alpha", "text"), [(0.01, "0.01"), (0.1 + 0.2, "0.3"), (1 / 3, "0.33333334"), (1e-30, "1e-30")]
)
def test_alpha_is_written_as_the_shortest_float(alpha, text):
    assert str(ConvProblem(epilogue=Epilogue("elu", alpha=alpha))).endswith(f"-act:elu:{text}")


def test_output_size_is_torchs():
    for problem in testing.random_problems(100, seed=2, dtype="f32"):
        top, left, bottom, right = problem.padding
        x = F.pad(torch.empty(problem.x_size), (left, right, top, bottom))
        y = F.conv2d(x, torch.empty(problem.w_size), None, problem.stride, 0, problem.dilation, problem.groups)
        assert y.shape == problem.y_size


def test_problem_of_tensors():
    x = torch.empty(2, 8, 9, 7).to(memory_format=torch.channels_last)
    w = torch.empty(6, 4, 3, 3, dtype=torch.float32)
    problem = ConvProblem.of(x, w, (2, 1, 1, 1, 1, 1, 1, 1, 2), direction="wgrad")
    assert str(problem) == "wgrad-f32-n2c8h9w7-k6r3s3-u2x1-p1-g2-w:kcrs"


def test_problems_are_keys():
    one, same = (ConvProblem.parse(CANONICAL[1]) for _ in range(2))
    assert {one: "kernel"}[same] == "kernel"


@pytest.mark.parametrize(("direction", "gemm_k"), [("fprop", 4 * 9), ("dgrad", 6 * 9), ("wgrad", 2 * 5 * 5)])
def test_gemm_k_counts_the_products_of_one_result(direction, gemm_k):
    problem = ConvProblem(2, 8, 5, 5, 12, 3, 3, padding=(1, 1, 1, 1), groups=2, direction=direction)
    assert problem.gemm_k == gemm_k


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="softplus"):
        Epilogue("softplus")
