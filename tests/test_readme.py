"""What the README says that a program can check."""

import re
from pathlib import Path

import pytest

import cnnkern
from cnnkern.backends import cuda
from cnnkern.info import kernel_table

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_table_of_kernels_is_that_of_the_lists() -> None:
    pytest.importorskip("triton", reason="the table has Triton's kernels")
    listed = README.split("<!-- kernels: begin -->")[1].split("<!-- kernels: end -->")[0]
    if not cuda.LIBRARY.exists():
        listed = re.sub(r"; cuda [a-z0-9 ]+\b", "", listed)
    assert listed.strip() == kernel_table()


def test_the_layer_table_is_what_the_command_prints() -> None:
    assert f"```\n{cnnkern.summary('alexnet')}\n```" in README
