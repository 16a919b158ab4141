"""The CUDA kernels without a GPU: the same sources run on the CPU, on the GPU made of fibers of tests/simt.

Results are compared with the formula (csrc/cuda/driver.cpp). Races, reads of unwritten shared memory and divergence are
errors there, and AddressSanitizer and UndefinedBehaviorSanitizer watch the rest.
"""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cnnkern.problem import DIRECTIONS, ConvProblem, Epilogue, Prologue
from cnnkern.testing import grid, random_problems

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "simt"
DTYPES = ("f32", "bf16", "f16")
TESTS = ("simt_test", "sm90_test")
LEAST = 3  # problems that every kernel accepts

# What the driver is told besides the problems: every kernel meets each of these that it accepts.
VARIANTS = {
    "integers": (),
    "backwards": ("--seed", "1", "--tf32"),
    "unaligned": ("--seed", "2", "--offset", "1", "--narrow"),
    "real": ("--seed", "3", "--offset", "16", "--real", "--tf32"),
}

# Of sizes that vectors and tiles need, beside those of cnnkern.testing.
SHAPES = (
    "n1c8h5w7-k8r3s3-p1",  # dense, the least that vectors can have
    "n3c64h6w5-k40r1s1",  # pointwise
    "n1c136h5w5-k72r1s1",
    "n1c648h3w2-k40r1s1",  # few pixels and a long sum, which is split
    "n2c16h5w3-k16r1s1-ys24",
    "n2c32h7w9-k64r1s1-u2",  # with a stride
    "n2c40h9w8-k72r3s3-p1",  # tiles and a tail of maps
    "n1c40h8w8-k16r3s3-u2-p1",  # a stride: four parities of a gradient
    "n1c16h9w7-k24r5s2-u2x1-p2x0x1x1-l1x2",  # unequal in everything
    "n16c16h10w10-k16r2s2-u2-l2",  # more pixels of x that no tap meets than there are of y
    "n5c64h3w3-k136r3s3-p1",  # more maps than pixels
    "n1c24h6w6-k32r3s3-p1-xs40-ys48",  # slices of wider buffers, aligned
    "n2c3h21w19-k64r7s7-u2-p3",  # stems
    "n1c3h27w27-k64r11s11-u4-p2",
    "n1c3h21w23-k40r11s11-u4-p2x1x1x2",
    "n2c3h10w9-k64r3s3-p1",
    "n1c4h5w7-k72r3s3-p1x0x1x2",
    "n1c4h13w13-k16r3s3-u2-p1",
    "n1c1h16w16-k6r5s5-p2",
    "n2c16h9w9-k16r3s3-p1-g16",  # depthwise: filters, strides and the rest
    "n1c64h11w13-k64r3s3-u2-p1-g64",
    "n1c40h12w9-k40r5s5-p2-g40",
    "n1c24h15w15-k24r5s5-u2-p2-g24",
    "n1c72h9w17-k72r7s7-p3-g72",
    "n1c16h17w17-k16r7s7-u2-p3-g16",
    "n1c8h9w9-k8r2s3-u1x2-p0x1x1x2-l2-g8",
    "n1c8h20w20-k8r3s3-p1-g8-xs16-ys24",
    "n2c32h7w6-k32r3s3-p1-g8",  # grouped: 4, 8, 16 and 32 maps a group
    "n1c64h8w7-k64r3s3-p1-g8",
    "n1c64h9w9-k64r3s3-u2-p1-g4",
    "n1c64h6w6-k64r3s3-p1-g2",
    "n1c32h6w5-k32r3s3-p1x0-g8",
    "n1c40h5w6-k40r3s3-p1-g5",
    "n2c48h4w5-k48r3s3-p1-g3",
    "n1c96h5w5-k96r3s3-p1-g3",
    "n1c128h5w5-k64r1s1-g4",
)
FUSED = (
    "-act:relu",
    "-scale-shift",
    "-scale-shift-residual-act:relu6",
    "-shift-act:leaky_relu:0.5",
    "-xscale-xshift-xact:relu",
    "-scale-shift-residual-act:silu-xscale-xshift-xact:relu",
)


def toolkit() -> bool:
    """Whether there are headers of a CUDA toolkit."""
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    if shutil.which("nvcc"):
        return True
    return any((place / "include" / "cuda_bf16.h").exists() for place in places)


pytestmark = [
    pytest.mark.skipif(not toolkit(), reason="there are no headers of a CUDA toolkit: no nvcc and no /usr/local/cuda"),
    pytest.mark.timeout(1500),
]


@pytest.fixture(scope="module")
def built() -> Path:
    """The directory of simt_driver and simt_test, compiled with sanitizers."""
    ninja = ("-G", "Ninja") if shutil.which("ninja") else ()
    options = (
        "-DCNNKERN_CPU=OFF",
        "-DCNNKERN_SIMT=ON",
        "-DCNNKERN_SANITIZE=address,undefined",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    subprocess.run(("cmake", "-S", ROOT, "-B", BUILD, *ninja, *options), check=True, stdout=subprocess.DEVNULL)
    build = ("cmake", "--build", BUILD, "--parallel", str(os.cpu_count()), "--target", "simt_driver", *TESTS)
    subprocess.run(build, check=True)
    return BUILD / "tests" / "simt"


def drive(built: Path, lines: Sequence[str], *options: str) -> list[tuple[str, str, str]]:
    """Kernel, problem and verdict of each case that the lines (a problem each, and maybe a kernel) make."""
    if not lines:
        return []

    def part(share: Sequence[str]) -> list[tuple[str, str, str]]:
        program = (built / "simt_driver", *options)
        done = subprocess.run(program, input="\n".join(share), capture_output=True, text=True)
        cases = [line.split(" ", 2) for line in done.stdout.splitlines()]
        verdicts = [(case[0], case[1], case[2] if len(case) > 2 else "") for case in cases]
        if done.returncode not in (0, 1) or done.stderr:  # a sanitizer has ended it, in the last case
            verdicts[-1:] = [(*(verdicts[-1][:2] if verdicts else ("", "")), f"died: {done.stderr[:4000]}")]
        return verdicts

    workers = min(os.cpu_count() or 1, len(lines))
    with ThreadPoolExecutor(workers) as pool:
        return [case for cases in pool.map(part, (lines[i::workers] for i in range(workers))) for case in cases]


def problems() -> Iterator[ConvProblem]:
    """Small problems of every family, direction and dtype."""
    for problem in grid(DIRECTIONS, DTYPES):
        if {problem.x_layout, problem.y_layout, problem.w_layout} == {"nhwc", "krsc"}:
            yield problem
    for direction in DIRECTIONS:
        for dtype in DTYPES:
            for shape in SHAPES:
                yield ConvProblem.parse(f"{direction}-{dtype}-{shape}")
                for fused in FUSED if direction == "fprop" else FUSED[4:5] if direction == "wgrad" else ():
                    yield ConvProblem.parse(f"{direction}-{dtype}-{shape}{fused}")


def random_shapes(count: int, seed: int) -> Iterator[ConvProblem]:
    """Problems with 1 to 9 pixels a side and 1 to 40 maps, of which many are multiples of a vector."""
    source = random.Random(seed)
    nhwc = {"x_layout": "nhwc", "y_layout": "nhwc", "w_layout": "krsc"}
    for problem in random_problems(count, seed, **nhwc):
        dtype, size = source.choice(DTYPES), source.choice((1, 2, 3, 5, 7))
        maps = source.choice((1, 4, 8))
        c, k = (maps * source.randint(1, 40 // maps) for _ in range(2))
        groups = source.choice((1, 1, c))
        small = replace(
            problem, h=source.randint(1, 9), w=source.randint(1, 9), c=c, k=c if groups > 1 else k, groups=groups,
            r=size, s=size if source.random() < 0.8 else 1, dtype=dtype,
            x_pixel_stride=source.choice((0, c + maps)), y_pixel_stride=0,
        )  # fmt: skip
        if problem.direction == "fprop" and source.random() < 0.4:
            small = replace(small, epilogue=Epilogue("relu", scale=True, shift=True, residual=source.random() < 0.5))
        if problem.direction != "dgrad" and source.random() < 0.2:
            small = replace(small, prologue=Prologue("relu", scale=True, shift=True))
        if not small.why_invalid:
            yield small


@pytest.fixture(scope="module")
def accepted(built: Path) -> dict[str, dict[str, list[str]]]:
    """By variant and kernel, the problems that the kernel accepts."""
    lines = list(dict.fromkeys(str(problem) for problem in (*problems(), *random_shapes(600, seed=0))))
    by_variant: dict[str, dict[str, list[str]]] = {}
    for variant, options in VARIANTS.items():
        by_variant[variant] = defaultdict(list)
        for kernel, problem, verdict in drive(built, lines, "--ask", *options):
            if verdict == "accepted":
                by_variant[variant][kernel].append(problem)
    return by_variant


def check(built: Path, cases: Sequence[str], variant: str) -> None:
    verdicts = drive(built, cases, *VARIANTS[variant])
    wrong = [f"{kernel} {problem}: {verdict}" for kernel, problem, verdict in verdicts if verdict != "ok"]
    assert not wrong, f"{len(wrong)} of {len(verdicts)} cases, {' '.join(VARIANTS[variant])}\n" + "\n".join(wrong[:20])
    assert len(verdicts) >= len(cases)


@pytest.mark.parametrize("program", TESTS)
def test_the_fibers_themselves(program: str, built: Path) -> None:
    done = subprocess.run([built / program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_the_sanitizer_knows_the_fibers(built: Path) -> None:
    done = subprocess.run([built / "simt_test", "overrun"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "read_beyond" in done.stderr


def test_every_kernel_has_problems(built: Path, accepted: dict[str, dict[str, list[str]]]) -> None:
    listed = subprocess.run(
        [built / "simt_driver", "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    counts: Counter[str] = Counter()
    for by_kernel in accepted.values():
        counts.update({kernel: len(found) for kernel, found in by_kernel.items()})
    assert not [f"{kernel}: {counts[kernel]}" for kernel in listed if counts[kernel] < LEAST]


def some(kernel: str, found: Sequence[str], count: int) -> list[str]:
    """``count`` of the problems; a kernel that takes its groups one by one is spared those with many."""
    if "depthwise" not in kernel:
        found = [problem for problem in found if ConvProblem.parse(problem).groups <= 8] or found
    return random.Random(kernel).sample(found, min(count, len(found)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_some_problems_of_every_kernel(variant: str, built: Path, accepted: dict[str, dict[str, list[str]]]) -> None:
    count = 2 if variant == "integers" else 1
    found = accepted[variant].items()
    check(
        built,
        [f"{problem} {kernel}" for kernel, all_of_it in found for problem in some(kernel, all_of_it, count)],
        variant,
    )


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_problems(variant: str, built: Path, accepted: dict[str, dict[str, list[str]]]) -> None:
    check(built, [f"{problem} {kernel}" for kernel, found in accepted[variant].items() for problem in found], variant)
