"""What the compiler made of the CUDA kernels: registers, stack and instructions, read from the library's machine code.

`make resources` writes csrc/cuda/RESOURCES.md from it, which a test holds against the library that it finds.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click

from cnnkern.backends.cuda import LIBRARY

_USAGE = re.compile(r"Function (\S+):\n\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_ARCHITECTURE = re.compile(r"^arch = (sm_\w+)$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)")


class Usage(NamedTuple):
    """What one kernel takes of a multiprocessor; shared memory is all dynamic, and its host code's to say."""

    architecture: str  # "sm_80"
    kernel: str  # as in the source: depthwise_any<float, false>
    registers: int  # of a thread
    stack_bytes: int  # of a thread: more than 0 where registers are spilled or an array has no registers


def usages(library: Path = LIBRARY) -> list[Usage]:
    """Each kernel for each architecture."""
    found = []
    for part in _tool("-res-usage", library).split("Fatbin elf code:")[1:]:
        architecture = _ARCHITECTURE.search(part).group(1)  # type: ignore[union-attr]
        for name, registers, stack, _, local in _USAGE.findall(part):
            found.append(Usage(architecture, source_name(name), int(registers), int(stack) + int(local)))
    return found


def instructions(architecture: str, library: Path = LIBRARY) -> dict[str, Counter[str]]:
    """How often each instruction stands in each kernel."""
    counts: dict[str, Counter[str]] = {}
    for line in _tool("-sass", "-arch", architecture, library).splitlines():
        if "Function :" in line:
            counter = counts.setdefault(source_name(line.split()[-1]), Counter())
        elif match := _INSTRUCTION.match(line):
            counter[match.group(1)] += 1
    return counts


@functools.cache
def source_name(mangled: str) -> str:
    """The kernel's name without namespaces, arguments and the casts of its template's values."""
    text = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    text = re.sub(r"\(anonymous namespace\)::|cnnkern::(cuda::)?|^void ", "", text)
    text = re.sub(r"\((int|bool)\)|__nv_", "", text).replace("bfloat16", "bf16").replace("__half", "f16")
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and not depth:
            return text[:position]
    return text


def table() -> str:
    """Registers of each kernel by architecture, as Markdown."""
    found = usages()
    architectures = sorted({usage.architecture for usage in found})
    cells: dict[str, dict[str, str]] = {}
    for usage in found:
        spilled = f", {usage.stack_bytes} bytes of stack" if usage.stack_bytes else ""
        cells.setdefault(usage.kernel, {})[usage.architecture] = f"{usage.registers}{spilled}"
    rows = [
        f"| `{kernel}` | {' | '.join(by.get(architecture, '') for architecture in architectures)} |"
        for kernel, by in sorted(cells.items())
    ]
    head = f"| registers of a thread | {' | '.join(architectures)} |"
    return "\n".join([head, "|---" * (len(architectures) + 1) + "|", *rows])


def _tool(*arguments: str | Path) -> str:
    """What cuobjdump says; it comes with the CUDA toolkit, and with Triton."""
    triton = find_spec("triton")
    bundled = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    tool = shutil.which("cuobjdump") or (bundled and bundled.exists() and bundled)
    if not tool:
        raise FileNotFoundError("there is no cuobjdump: it comes with the CUDA toolkit, and with Triton")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Writes the table into OUT, between its two markers."""
    begin, end = "<!-- resources: begin -->", "<!-- resources: end -->"
    before, rest = out.read_text().split(begin)
    out.write_text(f"{before}{begin}\n\n{table()}\n\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
