"""Builds the compiled part of cnnkern by CMake; everything else about the package is in pyproject.toml.

The torch whose headers are used is the one of the interpreter that runs pip, also when pip builds in isolation: that
interpreter is asked from outside of the isolation. Only where it has no torch is one required for the build.

The CUDA kernels are built where there is nvcc and that torch is one for CUDA. CNNKERN_CUDA=1 demands them, 0 leaves
them out; CNNKERN_CUDA_ARCHS="80;90a" says for which GPUs, which else are those of this machine, or 8.0 and 9.0.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MIN_TORCH = (2, 10)
MIN_CMAKE = (3, 22)
MIN_NVCC = (12, 5)  # cudaGetDriverEntryPointByVersion
MIN_CAPABILITY = 80
GB_PER_JOB = 1  # the largest file takes 0.4

TORCH_PROBE = """
import importlib.metadata, importlib.util, runpy
print(importlib.metadata.version("torch"))
print(directory := importlib.util.find_spec("torch").submodule_search_locations[0])
print(runpy.run_path(directory + "/version.py").get("cuda") or "")
"""


class Torch(NamedTuple):
    """An installed torch: its version, the directory of the package, the CUDA version it is for ("" for none)."""

    version: str
    directory: str
    cuda: str = ""


def parse_version(text: str) -> tuple[int, int]:
    """The first two numbers of a version in `text`: "cmake version 3.25.1" -> (3, 25)."""
    major, minor = re.search(r"(\d+)\.(\d+)", text).groups()
    return int(major), int(minor)


def run_quietly(command: list[str], env: dict[str, str] | None = None) -> str | None:
    """Standard output of `command`, or None if it cannot be run or fails."""
    try:
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def find_torch() -> Torch | None:
    """The torch outside of an isolated build, else the one inside, else None."""
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    for env in (outside, None):
        answer = run_quietly([sys.executable, "-c", TORCH_PROBE], env)
        if answer:
            return Torch(*answer.split("\n")[:3])
    return None


def find_tool(name: str, minimum: tuple[int, int]) -> str | None:
    """Path of a build tool that runs and is new enough: the environment's own, else the one on PATH."""
    for path in (str(Path(sys.executable).with_name(name)), shutil.which(name)):
        version = run_quietly([path, "--version"]) if path else None
        if version and parse_version(version) >= minimum:
            return path
    return None


def build_requirements() -> list[str]:
    """What an isolated build lacks: the build tools, and a torch if there is none at all."""
    needed = []
    if not find_tool("cmake", MIN_CMAKE):
        needed.append("cmake>={}.{}".format(*MIN_CMAKE))
    if not find_tool("ninja", (0, 0)):
        needed.append("ninja")
    if not find_torch():
        needed += re.findall(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return needed


def free_memory_gb() -> float:
    """Memory that a build may take: what is available, within the limit of the container."""
    try:
        kilobytes = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1)
        free = int(kilobytes) * 1024
    except OSError:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()))
    return free / 2**30


def build_jobs() -> int:
    """Compilers to run at once: MAX_JOBS if set, else as many as cores and memory allow."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    memory = free_memory_gb()
    if memory < GB_PER_JOB:
        fail(
            f"compiling takes up to {GB_PER_JOB} GB of memory and {memory:.1f} GB are free: "
            "free some, or set MAX_JOBS=1 to try all the same."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, int(memory / GB_PER_JOB))


def fail(reason: str) -> None:
    """Ends the build with one sentence."""
    raise SystemExit(f"\ncnnkern cannot be built: {reason}\n")


def checked_torch() -> Torch:
    """The torch to build against; fails with the fix if it is missing or too old."""
    torch = find_torch()
    if torch is None:
        fail(f"{sys.executable} has no torch: run `{sys.executable} -m pip install torch` first.")
    if parse_version(torch.version) < MIN_TORCH:
        fail(
            f"it needs torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or later and {sys.executable} has {torch.version}: "
            f"run `{sys.executable} -m pip install --upgrade torch`."
        )
    return torch


def checked_tool(name: str, minimum: tuple[int, int]) -> str:
    """The build tool `name`; fails with the fix if it is missing."""
    path = find_tool(name, minimum)
    if path is None:
        fail(
            f"there is no {name} (version {minimum[0]}.{minimum[1]} or later): "
            f"run `{sys.executable} -m pip install {name}`."
        )
    return path


def check_compiler() -> None:
    """Fails with the fix if there is no C++ compiler."""
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler) for compiler in compilers):
        fail(
            f"there is no C++ compiler (looked for {', '.join(compilers)}): install GCC 11 or Clang 14 or later, "
            "for example by `apt install g++`, or set CXX."
        )


def cuda_options(torch: Torch) -> list[str]:
    """What CMake is told about the CUDA kernels; fails with the fix if they are demanded and cannot be built."""
    asked = os.environ.get("CNNKERN_CUDA", "")
    nvcc = find_nvcc()
    if asked == "0" or (not asked and not (nvcc and torch.cuda)):
        return ["-DCNNKERN_CUDA=OFF"]
    if not nvcc:
        fail(
            "CNNKERN_CUDA=1 and there is no nvcc of CUDA {}.{} or later: install the CUDA toolkit, "
            "or set CUDACXX to its nvcc.".format(*MIN_NVCC)
        )
    return ["-DCNNKERN_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCNNKERN_CUDA_ARCHS={cuda_architectures()}"]


def find_nvcc() -> str | None:
    """Path of CUDA's compiler, CUDACXX if set, where it is new enough."""
    path = os.environ.get("CUDACXX") or shutil.which("nvcc")
    version = re.search(r"release (\S+)", run_quietly([path, "--version"]) or "") if path else None
    return path if version and parse_version(version.group(1)) >= MIN_NVCC else None


def cuda_architectures() -> str:
    """CNNKERN_CUDA_ARCHS if set, else the GPUs of this machine, else 8.0 and 9.0."""
    if os.environ.get("CNNKERN_CUDA_ARCHS"):
        return os.environ["CNNKERN_CUDA_ARCHS"]
    answer = run_quietly(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    here = sorted({int(line.replace(".", "")) for line in (answer or "").split()})
    known = ["90a" if capability == 90 else str(capability) for capability in here if capability >= MIN_CAPABILITY]
    return ";".join(known) or "80;90a"


def run_cmake(command: list[str | Path]) -> None:
    """Runs a step of the build; what went wrong is in its own output."""
    if subprocess.run(command).returncode:
        fail("CMake or the compiler stopped with the messages above.")


class CMakeBuild(build_ext):
    """build_ext that leaves the work to CMake: all that CMakeLists.txt installs goes to the package's directory."""

    def run(self) -> None:
        """Configures, builds and installs, in the source tree if in place."""
        check_compiler()
        torch = checked_torch()
        cmake, ninja = checked_tool("cmake", MIN_CMAKE), checked_tool("ninja", (0, 0))
        import pybind11

        tree = ROOT / "build" / sys.implementation.cache_tag
        prefix = ROOT if self.inplace else Path(self.build_lib).resolve()
        jobs = build_jobs()
        print(f"cnnkern: building with {jobs} jobs against torch {torch.version} in {torch.directory}", flush=True)
        run_cmake(
            [
                cmake,
                "-S",
                ROOT,
                "-B",
                tree,
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DTORCH_DIR={torch.directory}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                *cuda_options(torch),
            ]
        )
        run_cmake([cmake, "--build", tree, "--parallel", str(jobs)])
        run_cmake([cmake, "--install", tree, "--prefix", prefix])


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("cnnkern._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
        setup_requires=build_requirements(),
    )
