"""What no other test sees, read from the library's machine code.

The inner loops of the micro-kernels keep their accumulators in registers: a spilled one costs a store and a load
per multiplication. And what every processor runs has no instruction that only some of them know.
"""

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import cnnkern

LIBRARY = Path(cnnkern.__file__).with_name("libcnnkern_cpu.so")

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
MULTIPLY_ADD = re.compile(r"vfn?m(add|sub)|vdpbf16ps")
VECTOR = re.compile(r"%[xyz]mm")


class Instruction(NamedTuple):
    address: int
    mnemonic: str
    operands: str


Function = list[Instruction]


def parse(listing: str) -> dict[str, Function]:
    """objdump's text as a list of instructions per demangled function name."""
    functions: dict[str, Function] = {}
    current: Function = []
    for line in listing.splitlines():
        if heading := FUNCTION.match(line):
            current = functions.setdefault(heading[1], [])
        elif found := INSTRUCTION.match(line):
            current.append(Instruction(int(found[1], 16), found[2], found[3]))
    return functions


def innermost_loops(function: Function) -> Iterator[Function]:
    """The bodies of backward jumps that have no other backward jump inside."""
    jumps = [i for i in function if i.mnemonic.startswith("j") and re.match(r"[0-9a-f]+ <", i.operands)]
    loops = [(int(i.operands.split()[0], 16), i.address) for i in jumps]
    loops = [(start, end) for start, end in loops if function[0].address <= start <= end]
    for start, end in loops:
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops):
            yield [i for i in function if start <= i.address <= end]


def spills(function: Function) -> list[str]:
    """Vector accesses to the stack in the innermost loops that multiply and add."""
    has_frame_pointer = any(i.mnemonic == "mov" and i.operands == "%rsp,%rbp" for i in function[:10])
    stack = re.compile(r"\(%r[sb]p" if has_frame_pointer else r"\(%rsp")
    return [
        f"{i.address:x}: {i.mnemonic} {i.operands}"
        for loop in multiplying_loops(function)
        for i in loop
        if VECTOR.search(i.operands) and stack.search(i.operands)
    ]


def multiplying_loops(function: Function) -> list[Function]:
    """The innermost loops with a fused multiply-add on vectors and no call: a tile's rare endings are functions."""
    return [
        loop
        for loop in innermost_loops(function)
        if any(MULTIPLY_ADD.match(i.mnemonic) for i in loop) and not any(i.mnemonic.startswith("call") for i in loop)
    ]


@pytest.fixture(scope="module")
def functions() -> dict[str, Function]:
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(LIBRARY)]
    return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


LOOP = """
0000000000001000 <tile>:
    1000:\tvxorps %xmm0,%xmm0,%xmm0
    1004:\tvfmadd231ps (%rax),%zmm1,%zmm0
    100a:\tvmovaps {slot},%zmm2
    1012:\tdec    %rcx
    1015:\tjne    1004 <tile+0x4>
    1017:\tvmovaps 0x40(%rsp),%zmm3
"""


@pytest.mark.parametrize(("slot", "expected"), [("0x40(%rsp)", 1), ("0x40(%rbp)", 0), ("0x40(%rdx)", 0)])
def test_a_spill_is_seen_in_the_loop_only(slot: str, expected: int) -> None:
    assert len(spills(parse(LOOP.format(slot=slot))["tile"])) == expected


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 machine code")
@pytest.mark.parametrize(
    ("tile", "isa"),
    [
        ("brgemm_tile<", "avx2"),
        ("brgemm_tile<", "avx512"),
        ("brgemm_tile<", "avx512_bf16"),
        ("wgrad_tile<", "avx2"),
        ("wgrad_tile<", "avx512"),
        ("group_tile<float, float, .*Taps<3,", "avx2"),
        ("group_tile<float, float, .*Taps<3,", "avx512"),
        ("depthwise_wgrad_tile<float, ", "avx2"),
        ("depthwise_wgrad_tile<float, ", "avx512"),
    ],
)
def test_inner_loops_have_no_spills(functions: dict[str, Function], tile: str, isa: str) -> None:
    tiles = {name: f for name, f in functions.items() if re.search(rf"\b{isa}::{tile}", name)}
    assert tiles, f"no {isa}::{tile} in {LIBRARY.name}"
    assert [name for name, f in tiles.items() if not multiplying_loops(f)] == []
    assert {name: found for name, f in tiles.items() if (found := spills(f))} == {}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 machine code")
def test_wide_registers_stay_in_their_namespace(functions: dict[str, Function]) -> None:
    wide = re.compile("%[yz]mm")
    common = {name: f for name, f in functions.items() if "avx" not in name}
    assert "cnnkern::ConvProblem::parse" in " ".join(common)
    assert [name for name, f in common.items() if any(wide.search(i.operands) for i in f)] == []
