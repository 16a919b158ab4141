"""What no other test sees, read from the library's machine code.

The loops of the micro-kernels keep their accumulators in registers: a spilled one costs a store and a load per
multiplication. And what every processor runs has no instruction that only some of them know.
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
TARGET = re.compile(r"([0-9a-f]+) <")
MULTIPLY_ADD = re.compile(r"vfn?m(add|sub)|vdpbf16ps")
VECTOR = re.compile(r"%[xyz]mm")

TILE = re.compile(r"(?:void )?cnnkern::cpu::(\w+)::(?:\(anonymous namespace\)::)?(\w*tile|add_row)(<.*>)\(")

GEMM_KINDS = {"brgemm_tile", "combine_tile", "dot_tile", "wgrad_tile"}
ALL_KINDS = GEMM_KINDS | {"group_tile", "group_wgrad_tile", "depthwise_tile", "depthwise_wgrad_tile", "add_row"}


class Known(NamedTuple):
    """Tiles that touch the stack, how often at most, and why that stays."""

    isa: str
    tile: str
    most: int
    reason: str


PART_OF_A_VECTOR = "in the step for what is no whole vector, which no network's number of maps takes"
NO_MASK = "parts of a vector of 16-bit elements go through memory, as AVX2 masks 4 and 8 bytes only"
ROUNDING = "the constants that sums are rounded to bf16 with"
WIDENED = "16 bits are widened in a register more"
UNREAD = "a store that nothing reads"
BORDER = "in the tile at the image's border, whose branches are inside the loop"
KNOWN = (
    Known("avx2", r"dot_tile<.*, (1, 8|2, 5|4, 3)>", 4, PART_OF_A_VECTOR),
    Known("avx2", r"dot_tile<.*, (2, 6|3, 4)>", 12, PART_OF_A_VECTOR),
    Known("avx2", r"dot_tile<.*b?f16, .*>", 20, NO_MASK),
    Known("avx2", r"combine_tile<bf16, bf16, .*>", 5, ROUNDING),
    Known("avx512", r"combine_tile<bf16, bf16, .*, 8, 2, false>", 2, ROUNDING),
    Known("avx512", r"dot_tile<.*, (3, 8|12, 2)>", 4, PART_OF_A_VECTOR),
    Known("avx512", r"dot_tile<bf16, .*, 3, 8>", 8, PART_OF_A_VECTOR),
    Known("avx512_bf16", r"dot_tile<.*, (3, 8|12, 2)>", 10, PART_OF_A_VECTOR),
    Known("avx2", r"group_tile<.*, Taps<7, 2, true, 0>, .*0, true>", 2, "7 sums and 7 weights in 16 registers"),
    Known("avx2", r"group_tile<bf16, bf16, Taps<3, 2, false, 0>, .*1, true>", 1, WIDENED),
    Known("avx512", r"group_tile<double, double, Taps<3, [12], \w+, 0>, .*2, true>", 2, UNREAD),
    Known("avx512", r"depthwise_wgrad_tile<bf16, 3, [12], 2, false>", 8, BORDER),
    Known("avx512", r"add_row<bf16, 5, 5>", 2, BORDER),
    Known("avx512", r"depthwise_wgrad_tile<double, 3, [12], 2, false>", 29, UNREAD),
    Known("avx512", r"depthwise_tile<.*, false>", 9, UNREAD),
    Known("avx2", r"depthwise_tile<.*, false>", 14, BORDER),
    Known("avx2", r"depthwise_wgrad_tile<.*, 3, [12], 2, false>", 30, BORDER),
    Known("avx2", r"depthwise_wgrad_tile<bf16, 3, 1, 2, true>", 8, WIDENED),
    Known("avx2", r"add_row<b?f16, .*>", 60, NO_MASK),
)


class Instruction(NamedTuple):
    address: int
    mnemonic: str
    operands: str


Function = list[Instruction]


class Block(NamedTuple):
    """Instructions that run one after another, and the indices of the blocks that may follow."""

    instructions: Function
    next: list[int]

    def multiplies(self) -> bool:
        return any(MULTIPLY_ADD.match(i.mnemonic) for i in self.instructions)

    def calls(self) -> bool:
        return any(i.mnemonic.startswith("call") for i in self.instructions)


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


def basic_blocks(function: Function) -> list[Block]:
    """A function cut at its jumps and at what they jump to."""
    position = {instruction.address: at for at, instruction in enumerate(function)}
    jumps = {at: i for at, i in enumerate(function) if i.mnemonic.startswith(("j", "ret"))}
    targets = {at: position.get(int(to[1], 16)) for at, i in jumps.items() if (to := TARGET.match(i.operands))}
    starts = sorted({0} | {at + 1 for at in jumps} | {to for to in targets.values() if to is not None})
    index = {start: block for block, start in enumerate(starts)}
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(function)], strict=True):
        last = end - 1
        falls_through = last not in jumps or not jumps[last].mnemonic.startswith(("jmp", "ret"))
        following = [targets.get(last), end if falls_through else None]
        blocks.append(Block(function[start:end], [index[to] for to in following if to in index]))
    return blocks


def loops(blocks: list[Block]) -> list[set[int]]:
    """The blocks of each natural loop: those from which a jump back to its first block can be reached."""
    before: list[list[int]] = [[] for _ in blocks]
    for at, block in enumerate(blocks):
        for to in block.next:
            before[to].append(at)
    bodies: dict[int, set[int]] = {}
    for jump, header in back_edges(blocks):
        body, open_blocks = bodies.setdefault(header, {header}), [jump]
        while open_blocks:
            if (block_index := open_blocks.pop()) not in body:
                body.add(block_index)
                open_blocks += before[block_index]
    return list(bodies.values())


def back_edges(blocks: list[Block]) -> Iterator[tuple[int, int]]:
    """Edges to a block that is still open in a depth-first walk."""
    still_open, seen = {0}, {0}
    walk = [(0, iter(blocks[0].next))]
    while walk:
        at, following = walk[-1]
        for to in following:
            if to in still_open:
                yield at, to
            elif to not in seen:
                still_open.add(to)
                seen.add(to)
                walk.append((to, iter(blocks[to].next)))
                break
        else:
            still_open.remove(at)
            walk.pop()


def multiplying_loops(function: Function, innermost: bool = True) -> list[Function]:
    """The instructions of each loop that multiplies and adds, without those of loops inside and without calls.

    ``innermost``: no loop that has another such loop inside. A tile's rare endings are functions that it calls.
    """
    blocks = basic_blocks(function)
    found = [body for body in loops(blocks) if any(blocks[at].multiplies() for at in body)]
    bodies = [body - set().union(*(inner for inner in found if inner < body)) for body in found]
    if innermost:
        bodies = [body for body in found if not any(inner < body for inner in found)]
    kept = [[blocks[at] for at in sorted(body) if not blocks[at].calls()] for body in bodies]
    return [[i for block in body for i in block.instructions] for body in kept if any(b.multiplies() for b in body)]


def spills(function: Function, innermost: bool = True) -> list[str]:
    """Vector accesses to the stack in the loops that multiply and add."""
    has_frame_pointer = any(i.mnemonic == "mov" and i.operands == "%rsp,%rbp" for i in function[:10])
    stack = re.compile(r"\(%r[sb]p" if has_frame_pointer else r"\(%rsp")
    return [
        f"{i.address:x}: {i.mnemonic} {i.operands}"
        for loop in multiplying_loops(function, innermost)
        for i in loop
        if VECTOR.search(i.operands) and stack.search(i.operands)
    ]


def tiles(functions: dict[str, Function], isa: str) -> dict[str, Function]:
    """The micro-kernels of an instruction set, by names without namespaces and arguments."""
    named = [
        (found, function) for name, function in functions.items() if (found := TILE.match(name)) and found[1] == isa
    ]
    return {re.sub(r"cnnkern::cpu::\w+::", "", found[2] + found[3]): function for found, function in named}


def stack_accesses(name: str, tile: Function) -> list[str]:
    """A tile's spills; of dot_tile also those around its inner loop, in the step for part of a vector."""
    return spills(tile, innermost=not name.startswith("dot_tile"))


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
    ("isa", "kinds"), [("avx2", ALL_KINDS), ("avx512", ALL_KINDS), ("avx512_bf16", GEMM_KINDS)]
)  # generic has no fused multiply-add, and nobody's speed depends on it
def test_tiles_keep_their_sums_in_registers(functions: dict[str, Function], isa: str, kinds: set[str]) -> None:
    found = tiles(functions, isa)
    assert {name.split("<")[0] for name in found} >= kinds
    assert [name for name, tile in found.items() if not multiplying_loops(tile)] == []
    touching = {name: accesses for name, tile in found.items() if (accesses := stack_accesses(name, tile))}
    known = [entry for entry in KNOWN if entry.isa == isa]
    allowed = {name: max((k.most for k in known if re.fullmatch(k.tile, name)), default=0) for name in touching}
    assert {name: accesses for name, accesses in touching.items() if len(accesses) > allowed[name]} == {}
    assert [entry for entry in known if not any(re.fullmatch(entry.tile, name) for name in touching)] == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 machine code")
def test_wide_registers_stay_in_their_namespace(functions: dict[str, Function]) -> None:
    wide = re.compile("%[yz]mm")
    common = {name: f for name, f in functions.items() if "avx" not in name}
    assert "cnnkern::ConvProblem::parse" in " ".join(common)
    assert [name for name, f in common.items() if any(wide.search(i.operands) for i in f)] == []
