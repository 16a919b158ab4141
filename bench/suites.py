"""What is run: suites as tables of (networks, direction, dtype, batch), and the cases they come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cnnkern.bench import shapes
from cnnkern.problem import DIRECTIONS, ConvProblem, Epilogue

LECTURES = tuple(shapes.names())


@dataclass(frozen=True)
class Part:
    """Every layer of ``networks`` in one direction, dtype and batch."""

    networks: tuple[str, ...]
    direction: str
    dtype: str
    batch: int


@dataclass(frozen=True)
class Use:
    """A place where a problem occurs: ``times`` layers of ``network``, the first of which is ``layer``."""

    network: str
    layer: str
    times: int


@dataclass(frozen=True)
class Case:
    """One problem to measure and every place where it occurs."""

    problem: ConvProblem
    uses: tuple[Use, ...]


TRAINED = ("resnet50", "resnext50_32x4d", "mobilenet_v1")

SUITES: dict[str, tuple[Part, ...]] = {
    "default": (
        Part(LECTURES, "fprop", "f32", 1),
        Part(("resnet50",), "fprop", "f32", 16),
        Part(TRAINED, "dgrad", "f32", 4),
        Part(TRAINED, "wgrad", "f32", 4),
        Part(("resnet50",), "fprop", "bf16", 1),
    ),
    "targets": (
        Part(LECTURES, "fprop", "f32", 1),
        Part(("resnet50", "vgg16", "resnext50_32x4d", "mobilenet_v1"), "fprop", "f32", 16),
        Part(TRAINED, "dgrad", "f32", 16),
        Part(TRAINED, "wgrad", "f32", 16),
        Part(("resnet50", "vgg16"), "fprop", "bf16", 1),
        Part(("resnet50",), "fprop", "bf16", 16),
    ),
    "gpu": tuple(
        Part(networks, direction, dtype, 32)
        for direction, networks, dtype in (
            ("fprop", LECTURES, "bf16"),
            ("dgrad", TRAINED, "bf16"),
            ("wgrad", TRAINED, "bf16"),
            ("fprop", ("resnet50",), "f32"),
        )
    ),
    "full": tuple(
        Part(LECTURES, direction, dtype, batch)
        for dtype in ("f32", "bf16")
        for batch in (1, 16)
        for direction in DIRECTIONS
    ),
    **{
        name: tuple(Part((name,), direction, "f32", batch) for batch in (1, 16) for direction in DIRECTIONS)
        for name in LECTURES
    },
}


def parts(
    suite: str, directions: Sequence[str] = (), dtypes: Sequence[str] = (), batches: Sequence[int] = ()
) -> list[Part]:
    """The parts of a suite, with its directions, dtypes and batches replaced by those given, each part once."""
    return list(
        dict.fromkeys(
            replace(part, direction=direction, dtype=dtype, batch=batch)
            for part in SUITES[suite]
            for direction in directions or [part.direction]
            for dtype in dtypes or [part.dtype]
            for batch in batches or [part.batch]
        )
    )


def is_stem(problem: ConvProblem) -> bool:
    """Whether x is a picture rather than maps."""
    return problem.c <= 4


def pose(problem: ConvProblem, part: Part) -> ConvProblem:
    """An fprop problem of a shapes file in a part's direction, dtype and batch; gradients have no use for the bias."""
    epilogue = problem.epilogue if part.direction == "fprop" else Epilogue()
    return replace(problem, n=part.batch, direction=part.direction, dtype=part.dtype, epilogue=epilogue)


def cases(chosen: Iterable[Part]) -> list[Case]:
    """The unique problems of the parts; dgrad leaves out the stems, as no network asks for its picture's gradient."""
    uses: dict[ConvProblem, dict[Use, None]] = {}
    for part in chosen:
        for network in part.networks:
            for layer in shapes.read(network):
                if part.direction == "dgrad" and is_stem(layer.problem):
                    continue
                uses.setdefault(pose(layer.problem, part), {})[Use(network, layer.name, layer.times)] = None
    return [Case(problem, tuple(found)) for problem, found in uses.items()]


FAMILIES = ("pointwise", "dense 3x3", "depthwise", "grouped", "stem", "other")


def family(problem: ConvProblem) -> str:
    """The kind of layer a problem belongs to, one of :data:`FAMILIES`."""
    if problem.groups > 1:
        return "depthwise" if problem.groups == problem.c == problem.k else "grouped"
    if is_stem(problem):
        return "stem"
    return {(1, 1): "pointwise", (3, 3): "dense 3x3"}.get((problem.r, problem.s), "other")
