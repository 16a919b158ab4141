"""The choice of kernels, what forces it, and what is told about it."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import cnnkern
from cnnkern import ConvProblem, dispatch, testing
from cnnkern import functional as CF
from cnnkern.backends import Candidate, KernelName
from cnnkern.native import _C

DENSE = "fprop-f32-n1c64h14w14-k64r3s3-p1"


@pytest.fixture
def no_fallbacks():
    dispatch.clear_fallback_counts()
    yield
    dispatch.clear_fallback_counts()


@pytest.fixture
def listed(monkeypatch):
    """Replaces all kernels by the candidates that a test names."""

    class Listed:
        name = device = "cpu"
        asked: tuple[Candidate, ...] = ()

        def candidates(self, problem, flags):
            return self.asked

    backend = Listed()
    monkeypatch.setattr(dispatch, "BACKENDS", (backend,))
    return backend


FIRST, SECOND = "cpu_direct_fprop_f32_nhwc_6x64__avx512", "cpu_im2col_fprop_f32_nhwc_6x64__avx512"
TRANSFORMED = "cpu_winograd_fprop_f32_nhwc_6x64__avx512"


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ([Candidate(FIRST), Candidate(SECOND)], FIRST),
        ([Candidate(FIRST, "cannot"), Candidate(SECOND)], SECOND),
        ([Candidate(FIRST, "", "slow"), Candidate(SECOND)], SECOND),
        ([Candidate(FIRST, "", "slow"), Candidate(SECOND, "", "slower")], FIRST),
        ([Candidate(FIRST, "", "slow"), Candidate(SECOND, "cannot")], FIRST),
    ],
)
def test_the_first_that_can_and_would_is_chosen(listed, asked, chosen):
    listed.asked = asked
    assert dispatch.choose(ConvProblem.parse(DENSE)) == chosen


def test_no_kernel_is_an_error_with_every_reason(listed):
    listed.asked = [Candidate(FIRST, "it is Tuesday"), Candidate(SECOND, "the moon is full")]
    with pytest.raises(dispatch.NoKernelError) as caught:
        dispatch.choose(ConvProblem.parse(DENSE))
    for part in (DENSE, FIRST, "it is Tuesday", SECOND, "the moon is full"):
        assert part in str(caught.value)


def test_strict_leaves_out_what_rounds_otherwise(listed):
    listed.asked = [Candidate(TRANSFORMED), Candidate(SECOND)]
    assert dispatch.choose(ConvProblem.parse(DENSE)) == TRANSFORMED
    assert dispatch.choose(ConvProblem.parse(DENSE), flags=1) == SECOND


def test_the_choice_is_one_of_the_compiled_kernels_and_never_the_reference():
    for problem in testing.random_problems(100, seed=3):
        name = dispatch.choose(problem)
        assert KernelName.parse(name).family != "reference"
        assert _C.why_not(name, str(problem)) == ""


def test_the_memo_asks_once():
    x, w = torch.randn(1, 5, 6, 7), torch.randn(3, 5, 3, 3)
    _C.clear_memo()
    for _ in range(3):
        CF.conv2d(x, w)
    (entry,) = [text for text in _C.memo() if text.startswith("fprop-f32-n1c5h6w7-k3r3s3")]
    assert _C.memo()[entry] == dispatch.choose(ConvProblem.of(x, w))


def test_a_named_kernel_runs_and_another_cannot():
    x, w = torch.randn(1, 8, 6, 6), torch.randn(4, 8, 3, 3)
    truth = nn.functional.conv2d(x.double(), w.double())
    problem = ConvProblem.of(x, w)
    for name, why_not, _ in _C.candidates(str(problem)):
        if why_not:
            with pytest.raises(RuntimeError, match=name):
                CF.conv2d(x, w, kernel=name)
        else:
            assert testing.error(CF.conv2d(x, w, kernel=name), truth) < testing.tolerance(problem)


def test_a_named_kernel_is_for_its_direction(no_fallbacks):
    x, w = torch.randn(1, 8, 6, 6, requires_grad=True), torch.randn(4, 8, 3, 3)
    dgrad = next(name for name, why_not, _ in _C.candidates("dgrad-f32-n1c8h6w6-k4r3s3") if not why_not)
    wrong = next(name for name, why_not, _ in _C.candidates("dgrad-f32-n1c8h6w6-k4r3s3") if why_not)
    with cnnkern.use(kernel=dgrad):
        y = CF.conv2d(x, w)
    y.sum().backward()
    with cnnkern.use(kernel=wrong):
        y = CF.conv2d(x, w)
    with pytest.raises(RuntimeError, match=wrong):
        y.sum().backward()


def test_unknown_kernels_and_settings_are_refused():
    x, w = torch.randn(1, 8, 6, 6), torch.randn(4, 8, 3, 3)
    with pytest.raises(ValueError, match="is no kernel's name"):
        CF.conv2d(x, w, kernel="fastest")
    with pytest.raises(ValueError, match="cpu_direct_fprop_f32_nhwc_1x1__avx2"):
        CF.conv2d(x, w, kernel="cpu_direct_fprop_f32_nhwc_1x1__avx2")
    for wrong in ({"backend": "tpu"}, {"fallback": "maybe"}, {"kernel": "fastest"}):
        with pytest.raises(ValueError, match=r"fastest|tpu|maybe"), cnnkern.use(**wrong):
            pass


def test_use_nests_and_is_the_threads_own():
    seen = []
    with cnnkern.use(strict=True):
        with cnnkern.use(backend="reference"):
            thread = threading.Thread(target=lambda: seen.append(dispatch.settings()))
            thread.start()
            thread.join()
            assert (dispatch.settings().backend, dispatch.settings().flags) == ("reference", 1)
        assert (dispatch.settings().backend, dispatch.settings().flags) == (None, 1)
    assert seen == [dispatch.settings()]
    assert dispatch.settings().flags == 0


def test_reference_and_vendor_are_used_when_asked_for():
    x, w = torch.randn(1, 8, 6, 6, requires_grad=True), torch.randn(4, 8, 3, 3, requires_grad=True)
    given = torch.randn(1, 4, 4, 4)

    def gradients():
        return torch.autograd.grad(CF.conv2d(x, w), (x, w), given)

    truth = torch.autograd.grad(nn.functional.conv2d(x.double(), w.double()), (x, w), given.double())
    for backend in ("cpu", "vendor", "reference"):
        with cnnkern.use(backend=backend):
            torch.testing.assert_close(gradients(), truth, rtol=1e-4, atol=1e-4)
    with cnnkern.use(backend="vendor"):
        assert type(CF.conv2d(x, w).grad_fn).__name__ == "ConvolutionBackward0"
    with cnnkern.use(backend="reference"):  # it accumulates in float64, so no other kernel gives its bits by chance
        by_name = CF.conv2d(x, w, kernel="cpu_reference_fprop_f32_nhwc_any__generic")
        assert torch.equal(CF.conv2d(x, w), by_name)


def test_strict_and_deterministic_are_in_the_flags_and_reach_the_backward(monkeypatch):
    seen = []
    choose = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda p, flags: seen.append((p.direction, flags)) or choose(p, flags))
    x, w = torch.randn(1, 3, 9, 5, requires_grad=True), torch.randn(2, 3, 3, 3, requires_grad=True)
    _C.clear_memo()
    torch.use_deterministic_algorithms(True)
    try:
        with cnnkern.use(strict=True):
            y = CF.conv2d(x, w)
    finally:
        torch.use_deterministic_algorithms(False)
    y.sum().backward()
    assert sorted(seen) == [("dgrad", 3), ("fprop", 3), ("wgrad", 3)]


def test_fallbacks_are_counted_by_reason(no_fallbacks):
    x, w = torch.ones(1, 2, 4, 4, dtype=torch.int32), torch.ones(3, 2, 3, 3, dtype=torch.int32)
    for _ in range(2):
        CF.conv2d(x, w)
    assert dispatch.fallback_counts() == {"there is no kernel for torch.int32": 2}
    assert "2 x there is no kernel for torch.int32" in str(cnnkern.info())


def test_fallback_warns_once_for_each_reason(no_fallbacks):
    x, w = torch.ones(1, 2, 4, 4, dtype=torch.int32), torch.ones(3, 2, 3, 3, dtype=torch.int32)
    with cnnkern.use(fallback="warn"):
        with pytest.warns(UserWarning, match="there is no kernel for torch.int32"):
            CF.conv2d(x, w)
        CF.conv2d(x, w)  # a second warning would be an error: pytest.warns is closed


def test_fallback_can_be_forbidden(no_fallbacks):
    x, w = torch.ones(1, 2, 4, 4, dtype=torch.int32), torch.ones(3, 2, 3, 3, dtype=torch.int32)
    with cnnkern.use(fallback="raise"), pytest.raises(dispatch.FallbackError, match=r"torch\.int32"):
        CF.conv2d(x, w)
    assert dispatch.fallback_counts() == {}


def test_ordinary_calls_do_not_fall_back(no_fallbacks):
    with cnnkern.use(fallback="raise"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            layer = cnnkern.Conv2d(4, 6, 3, padding="same", groups=2, dtype=dtype)
            layer(torch.randn(2, 4, 5, 5, dtype=dtype, requires_grad=True)).sum().backward()
    assert dispatch.fallback_counts() == {}


class TestExplain:
    def test_problem(self):
        told = cnnkern.explain(DENSE)
        assert told.kernel == dispatch.choose(ConvProblem.parse(DENSE))
        assert {candidate.kernel for candidate in told.candidates} >= {name for name, _, _ in _C.candidates(DENSE)}
        text = str(told)
        for candidate in told.candidates:
            assert candidate.kernel in text
            assert candidate.why_not in text
        assert told.copies == ()
        assert str(cnnkern.explain(ConvProblem.parse(DENSE))) == text

    def test_copies_of_other_layouts(self):
        told = cnnkern.explain("fprop-f32-n1c8h6w6-k8r3s3-x:nchw-w:kcrs-y:nchw")
        assert [copy.split()[0] for copy in told.copies] == ["y", "x", "w"]
        told = cnnkern.explain("wgrad-f32-n1c8h6w6-k8r3s3-w:kcrs")
        assert told.copies == ("dw is computed in krsc and copied to kcrs",)

    def test_module_and_call_agree(self):
        layer, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5)
        told = cnnkern.explain(layer, x)
        assert str(told) == str(cnnkern.explain(layer, (2, 4, 5, 5)))
        assert str(told) == str(cnnkern.explain(CF.conv2d, x, layer.weight, layer.bias, padding=1))
        assert told.problem.epilogue.shift
        assert cnnkern.explain(layer, x, direction="wgrad").problem.direction == "wgrad"

    def test_model(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1, stride=2, padding_mode="reflect"))
        told = cnnkern.explain(model, (1, 3, 8, 8))
        assert [(one.problem.k, one.problem.h) for one in told] == [(4, 8), (5, 6)]

    def test_fused_call(self):
        x, w = torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3)
        told = cnnkern.explain(CF.fused_conv2d, x, w, residual=torch.randn(1, 6, 3, 3), activation="leaky_relu")
        assert str(told.problem).endswith("residual-act:leaky_relu:0.01")

    def test_settings(self):
        with cnnkern.use(backend="reference"):
            assert "reference" in cnnkern.explain(DENSE).kernel
        with cnnkern.use(kernel=SECOND):
            told = cnnkern.explain(DENSE)
        assert told.kernel == SECOND
        assert told.reason.startswith("it is asked for by name")
        unable = next(name for name, why_not, _ in _C.candidates(DENSE) if why_not)
        with cnnkern.use(kernel=unable):
            assert _C.why_not(unable, DENSE) in cnnkern.explain(DENSE).reason

    def test_wrong_subjects(self):
        with pytest.raises(TypeError, match="takes a problem"):
            cnnkern.explain(3)
        with pytest.raises(ValueError, match=r"torch\.int32"):
            cnnkern.explain(CF.conv2d, torch.ones(1, 2, 4, 4, dtype=torch.int32), torch.ones(1, 2, 3, 3))


def in_new_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


CALL = "import torch, cnnkern; cnnkern.functional.conv2d(torch.randn(1, 3, 5, 5), torch.randn(2, 3, 3, 3))"


def test_environment_settings():
    printed = in_new_process(
        "import cnnkern; print(cnnkern.dispatch.settings())",
        CNNKERN_BACKEND="reference",
        CNNKERN_STRICT="1",
        CNNKERN_FALLBACK="raise",
    )
    assert "backend='reference', fallback='raise', flags=1" in printed
    assert "CNNKERN_FALLBACK" not in in_new_process("import cnnkern", CNNKERN_FALLBACK="")
    refused = in_new_process("import cnnkern", CNNKERN_FALLBACK="never")
    assert "CNNKERN_FALLBACK='never': it is one of raise, warn, vendor" in refused
    assert "CNNKERN_ISA=sse9: unknown" in in_new_process("import cnnkern", CNNKERN_ISA="sse9")


def test_debug_prints_each_problem_once():
    printed = in_new_process(f"{CALL}; {CALL.split('; ')[1]}", CNNKERN_DEBUG="1")
    (line,) = [line for line in printed.splitlines() if line.startswith("cnnkern: ")]
    assert line.startswith("cnnkern: fprop-f32-n1c3h5w5-k2r3s3-x:nchw-w:kcrs-y:nchw -> cpu_")


class TestCommandLine:
    @pytest.fixture
    def run(self):
        from click.testing import CliRunner

        from cnnkern.cli import main

        return lambda *arguments: CliRunner().invoke(main, arguments)

    def test_info(self, run):
        result = run("info")
        assert result.exit_code == 0
        assert torch.__version__ in result.output
        assert "backend cuda" in result.output

    def test_explain(self, run):
        assert run("explain", DENSE).output == f"{cnnkern.explain(DENSE)}\n"
        result = run("explain", "fprop-f32")
        assert result.exit_code == 2
        assert "n#c#h#w#" in result.output

    def test_a_command_without_its_dependencies_says_what_to_install(self, run, monkeypatch):
        from cnnkern import cli

        monkeypatch.setattr(cli._Commands, "elsewhere", {"bench": "cnnkern.not_installed"})
        assert run("--help").exit_code == 0
        result = run("bench", "--suite", "targets")
        assert result.exit_code == 1
        assert "pip install 'cnnkern[bench]'" in result.output

    def test_all_commands_are_listed(self, run):
        for command in ("info", "explain", "bench", "tune"):
            assert command in run("--help").output
