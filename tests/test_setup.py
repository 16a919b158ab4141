"""What an installation depends on: the torch that is found, the number of compilers, and errors with their fix."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cnnkern_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_source_is_listed() -> None:
    listed = "".join((ROOT / name).read_text() for name in ("CMakeLists.txt", "csrc/cuda/sources.cmake"))
    sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.c[pu]*")]
    assert sources
    assert [source for source in sources if source not in listed] == []


def test_torch_is_looked_for_outside_of_an_isolated_build(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch-99.0.dist-info").mkdir()
    (tmp_path / "torch-99.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outside = setup.find_torch()
    assert outside.version != "99.0"
    assert (Path(outside.directory) / "include").is_dir()


def test_torch_is_required_pinned_where_there_is_none(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "find_torch", lambda: None)
    assert [r for r in setup.build_requirements() if r.startswith("torch==")]


@pytest.mark.parametrize(("memory", "jobs"), [(1.0, 1), (2.9, 2), (1000.0, 4)])
def test_jobs_are_bounded_by_memory_and_cores(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, memory: float, jobs: int
) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(setup, "free_memory_gb", lambda: memory)
    monkeypatch.setattr(setup.os, "sched_getaffinity", lambda pid: range(4))
    assert setup.build_jobs() == jobs


def test_max_jobs_wins(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "free_memory_gb", lambda: 0.1)
    monkeypatch.setenv("MAX_JOBS", "7")
    assert setup.build_jobs() == 7


def no_memory(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(setup, "free_memory_gb", lambda: 0.4)
    return setup.build_jobs


def no_compiler(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    return setup.check_compiler


def no_cmake(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    monkeypatch.setattr(setup, "find_tool", lambda name, minimum: None)
    return lambda: setup.checked_tool("cmake", setup.MIN_CMAKE)


def old_torch(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    monkeypatch.setattr(setup, "find_torch", lambda: setup.Torch("2.9.1+cpu", "/somewhere"))
    return setup.checked_torch


@pytest.mark.parametrize(
    ("broken", "message", "fix"),
    [
        (no_memory, "0.4 GB are free", "MAX_JOBS=1"),
        (no_compiler, "no C++ compiler", "apt install g++"),
        (no_cmake, "no cmake", f"{sys.executable} -m pip install cmake"),
        (old_torch, "2.9.1+cpu", f"{sys.executable} -m pip install --upgrade torch"),
    ],
)
def test_an_error_is_one_sentence_with_its_fix(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[ModuleType, pytest.MonkeyPatch], Callable[[], object]],
    message: str,
    fix: str,
) -> None:
    step = broken(setup, monkeypatch)
    with pytest.raises(SystemExit) as failure:
        step()
    text = str(failure.value).strip()
    assert message in text
    assert fix in text
    assert "\n" not in text
