"""The CUDA kernels as the compiler leaves them: nothing spilled, tensor cores and wide accesses where they are meant.

Results are checked on the host (tests/test_simt.py) and, where there is one, on a GPU (tests/gpu).
"""

import re
from pathlib import Path

import pytest

from cnnkern.backends import cuda
from cnnkern.bench import resources

pytestmark = pytest.mark.skipif(not cuda.LIBRARY.exists(), reason="the CUDA kernels were not built: there is no nvcc")
README = Path(__file__).parents[1] / "csrc/cuda/README.md"
# Bytes of stack that are known, by the beginning of a kernel's name.
SPILLED: dict[str, int] = {}


@pytest.fixture(scope="module")
def usages():
    return resources.usages()


def test_nothing_is_spilled(usages):
    assert usages
    known = {name: SPILLED[start] for name in {u.kernel for u in usages} for start in SPILLED if name.startswith(start)}
    assert [u for u in usages if u.stack_bytes > known.get(u.kernel, 0)] == []


def test_the_table_is_that_of_the_library():
    listed = README.read_text().split("<!-- resources: begin -->")[1].split("<!-- resources: end -->")[0]
    assert listed.strip() == resources.table()


@pytest.mark.parametrize(
    ("architecture", "kernels", "instruction"),
    [
        ("sm_80", r"gemm.*bf16", r"HMMA\.16816"),
        ("sm_80", r"gemm.*bf16", r"LDGSTS\.E\.BYPASS\.128"),
        ("sm_80", r"gemm.*bf16", r"LDSM"),
        ("sm_80", r"grouped.*bf16", r"HMMA\.16816"),
        ("sm_90a", r"sm90.*bf16", r"HGMMA"),
        ("sm_90a", r"sm90.*bf16", r"UTMALDG.*IM2COL"),
        ("sm_80", r"depthwise_sweep.*bf16", r"LDG\.E\.128"),
        ("sm_80", r"depthwise_sweep.*bf16", r"STG\.E\.128"),
    ],
)
def test_instructions(architecture, kernels, instruction):
    found = {name: counts for name, counts in instructions(architecture).items() if re.search(kernels, name)}
    assert found
    missing = [name for name, counts in found.items() if not any(re.match(instruction, code) for code in counts)]
    assert missing == []


_counts = {}


def instructions(architecture):
    if architecture not in _counts:
        _counts[architecture] = resources.instructions(architecture)
    return _counts[architecture]
