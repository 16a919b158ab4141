"""The CUDA kernels as the compiler leaves them: nothing spilled, tensor cores and wide accesses where they are meant.

Results are checked on the host (tests/test_simt.py) and, where there is one, on a GPU (tests/gpu).
"""

import functools
import re
from pathlib import Path

import pytest

from cnnkern.backends import cuda
from cnnkern.bench import resources

pytestmark = pytest.mark.skipif(not cuda.LIBRARY.exists(), reason="the CUDA kernels were not built: there is no nvcc")
README = Path(__file__).parents[1] / "csrc/cuda/README.md"


@pytest.fixture(scope="module")
def usages():
    return resources.usages()


def test_nothing_is_spilled(usages):
    assert usages
    assert [usage for usage in usages if usage.stack_bytes] == []


def test_the_table_is_that_of_the_library():
    listed = README.read_text().split("<!-- resources: begin -->")[1].split("<!-- resources: end -->")[0]
    assert listed.strip() == resources.table()


TENSOR_CORES = (
    "^(implicit_gemm|implicit_gemm_wgrad|matrix_product|grouped|grouped_wgrad|direct_.*|separable_fprop)<bf16, "
)


@pytest.mark.parametrize(
    ("architecture", "kernels", "instruction"),
    [
        ("sm_80", TENSOR_CORES, r"HMMA\.1(68)?"),
        ("sm_80", r"^(grouped|grouped_wgrad|direct_wgrad|separable_fprop)<bf16", r"LDGSTS\.E\.BYPASS\.128"),
        ("sm_80", r"^(grouped|separable_fprop|direct_wgrad)<bf16", "LDSM"),
        ("sm_80", r"^direct_fprop<float", r"HMMA\.1688\.F32\.TF32"),
        ("sm_80", r"^direct_(ffma|fprop)<", r"STG\.E\.128"),
        ("sm_80", r"^depthwise_sweep<float, Sweep<3", r"LDG\.E\.128"),
        ("sm_80", r"^depthwise_sweep<bf16, Sweep<3", r"STG\.E\.64"),  # 4 maps: 8 would leave too few registers
        ("sm_80", r"^(max_pool|avg_pool).*<bf16, 8>", r"LDG\.E\.128"),
        ("sm_90a", "ImplicitGemmTile", "HGMMA"),
        ("sm_90a", "ImplicitGemmTile", r"UTMALDG\.4D\.IM2COL"),
        ("sm_90a", "ImplicitGemmTile", "UTMASTG"),
        ("sm_90a", "ImplicitGemmTile", r"USETMAXREG\.TRY_ALLOC"),  # else ptxas leaves setmaxnreg out
        ("sm_90a", "ImplicitGemmTile", r"USETMAXREG\.DEALLOC"),
    ],
)
def test_instructions(architecture, kernels, instruction):
    found = {name: counts for name, counts in instructions(architecture).items() if re.search(kernels, name)}
    assert found
    missing = [name for name, counts in found.items() if not any(re.match(instruction, code) for code in counts)]
    assert missing == []


def test_the_filters_gradient_on_hopper():
    """Its kernels bear the name of those for sm_80."""
    found = [counts for name, counts in instructions("sm_90a").items() if name.startswith("implicit_gemm_wgrad<")]
    hopper = [counts for counts in found if any(code.startswith("HGMMA") for code in counts)]
    assert hopper
    for part in ("IM2COL", "USETMAXREG.TRY_ALLOC", "USETMAXREG.DEALLOC"):
        assert all(any(part in code for code in counts) for counts in hopper)


@functools.cache
def instructions(architecture):
    return resources.instructions(architecture)
