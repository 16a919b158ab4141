"""Every kernel's name is a word of the grammar, and says what the kernel is for."""

from itertools import product

import pytest

from cnnkern.backends import BACKENDS, KernelName
from cnnkern.native import _C
from cnnkern.problem import DIRECTIONS, DTYPES

NAMES = [name for backend in BACKENDS for name in backend.kernels()]


def test_names_are_unique():
    assert len(NAMES) == len(set(NAMES))


def test_every_compiled_kernel_is_in_a_backend():
    assert set(_C.kernels()) <= set(NAMES)


def test_every_name_is_read_and_printed_back():
    for name in NAMES:
        assert str(KernelName.parse(name)) == name


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_backends_hold_their_own(backend):
    families = {KernelName.parse(name).family for name in backend.kernels()}
    assert ("reference" in families) is (backend.name == "reference")
    assert ("aten" in families) is (backend.name == "vendor")


def test_compiled_kernels_name_a_usable_instruction_set():
    isas = {KernelName.parse(name).isa for name in _C.kernels()}
    assert isas <= {*_C.isas(), "generic"}
    assert _C.isas()[-1] == "generic"


@pytest.mark.parametrize(
    "family", ["reference", "direct", "im2col", "implicit_gemm", "pointwise", "depthwise", "grouped"]
)
def test_families_have_every_direction_and_dtype(family):
    found = {(parts.direction, parts.dtype) for parts in map(KernelName.parse, _C.kernels()) if parts.family == family}
    assert found == set(product(DIRECTIONS, DTYPES))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "cpu_direct_fprop_f32_nhwc_6x64",  # no instruction set
        "cpu_direct_fwd_f32_nhwc_6x64__avx2",  # another word for the direction
        "cpu_magic_fprop_f32_nhwc_6x64__avx2",
        "tpu_direct_fprop_f32_nhwc_6x64__avx2",
        "cpu_direct_fprop_float_nhwc_6x64__avx2",
        "cpu_direct_fprop_f32_nhwc_6y64__avx2",
        "cpu_direct_fprop_f32_nhwc_6x64__avx2 ",
    ],
)
def test_other_words_are_refused(name):
    with pytest.raises(ValueError, match="is no kernel's name"):
        KernelName.parse(name)
