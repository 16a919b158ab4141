"""The C++ tests of tests/cpp, built in the tree that built the package and run by ctest."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[1] / "build" / sys.implementation.cache_tag


@pytest.fixture(scope="module")
def cmake() -> Path:
    """The CMake of the build tree, whose ctest lies beside it, with the tests built."""
    cache = TREE / "CMakeCache.txt"
    if not cache.exists():
        pytest.skip("the package was not built in this checkout")
    cmake = Path(re.search(r"^CMAKE_COMMAND:INTERNAL=(.*)$", cache.read_text(), re.MULTILINE)[1])
    run(cmake, "-DCNNKERN_TESTS=ON", TREE)
    run(cmake, "--build", TREE, "--target", "cnnkern_tests", "cnnkern_race_tests", "--parallel", "2")
    return cmake


def run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["threads", "thread_limit", "races"])
def test_cpp(cmake: Path, name: str) -> None:
    run(cmake.with_name("ctest"), "--test-dir", TREE, "--output-on-failure", "--no-tests=error", "-R", f"^{name}$")
