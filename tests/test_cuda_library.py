"""The CUDA library's C interface, which needs no GPU: lists, answers and refusals."""

import pytest
import torch

import cnnkern
from cnnkern import dispatch, testing
from cnnkern.backends import KernelName, cuda
from cnnkern.flags import GPU, ONLY, TF32
from cnnkern.problem import DIRECTIONS, ConvProblem

pytestmark = pytest.mark.skipif(not cuda.LIBRARY.exists(), reason="the CUDA kernels were not built: there is no nvcc")
BACKEND = cuda.CudaBackend()
PROBLEM = ConvProblem.parse("fprop-bf16-n2c64h14w14-k64r3s3-p1")


def able(problem, flags=0):
    return [candidate.kernel for candidate in BACKEND.candidates(problem, flags) if not candidate.why_not]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_problem_has_a_kernel(direction, dtype):
    problems = [*testing.grid([direction], [dtype]), *testing.random_problems(50, direction=direction, dtype=dtype)]
    assert [problem for problem in problems if not able(problem)] == []


def test_kernels_of_another_direction_or_dtype_are_not_asked():
    names = [KernelName.parse(candidate.kernel) for candidate in BACKEND.candidates(PROBLEM)]
    assert {(name.direction, name.dtype) for name in names} == {("fprop", "bf16")}
    assert BACKEND.candidates(ConvProblem.parse("fprop-f64-n2c64h14w14-k64r3s3-p1")) == []


def test_tf32_is_used_where_it_is_allowed():
    problem = ConvProblem.parse("fprop-f32-n2c64h14w14-k64r3s3-p1")
    assert set(able(problem)) < set(able(problem, TF32))


def test_a_backend_that_is_asked_for():
    assert dispatch.choose(PROBLEM, ONLY["cuda"], device="cuda").startswith("cuda_")
    assert dispatch.choose(PROBLEM, ONLY["triton"], device="cuda").startswith("triton_")


def test_gpus_of_one_machine_may_differ(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((8, 6), (9, 0))[index])
    monkeypatch.setattr(cuda, "_capability", cuda._capability.__wrapped__)
    on_each = [{KernelName.parse(name).isa for name in able(PROBLEM, (index + 1) << GPU)} for index in (0, 1)]
    assert on_each == [{"sm80"}, {"sm80", "sm90"}]


def test_refusals_name_the_kernel_and_the_reason():
    depthwise = next(name for name in BACKEND.kernels() if name.startswith("cuda_depthwise_fprop_bf16"))
    with pytest.raises(RuntimeError, match=f"{depthwise} cannot compute {PROBLEM}: "):
        cuda.PreparedCall(depthwise, PROBLEM, 0)
    with pytest.raises(RuntimeError, match="no CUDA kernel is named 'cuda_nothing'"):
        cuda.PreparedCall("cuda_nothing", PROBLEM, 0)


def test_every_kernel_is_the_choice_or_says_why_not():
    told = str(cnnkern.explain(str(PROBLEM), "cuda"))
    assert all(candidate.kernel in told for candidate in BACKEND.candidates(PROBLEM))
