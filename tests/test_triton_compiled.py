"""Every Triton kernel compiled for GPUs that are not here: it fits the chip, spills nothing, and uses its tensor cores.

Results are checked by the interpreter (tests/interpreted) and, where there is a GPU, on it.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from threading import get_ident
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")

from cnnkern.backends import triton as backend
from cnnkern.backends import triton_tools
from cnnkern.flags import GPU
from cnnkern.operands import Operands
from cnnkern.problem import DIRECTIONS, DTYPES, ConvProblem
from cnnkern.triton_kernels import channel_shuffle, pooling
from cnnkern.triton_kernels.ahead_of_time import compile_launch
from cnnkern.triton_kernels.configs import CHIPS, why_not_fit
from cnnkern.triton_kernels.depthwise import in_units
from cnnkern.triton_kernels.kernel_list import KERNELS
from cnnkern.triton_kernels.launch import Chip
from cnnkern.window import Window

# A layer of each class, as large as in training.
LAYERS = (
    "n32c3h224w224-k64r7s7-u2-p3",
    "n32c128h28w28-k128r3s3-p1",
    "n32c256h56w56-k512r1s1",
    "n32c144h56w56-k144r3s3-p1-g144",
    "n32c144h56w56-k144r3s3-u2-p1-g144",
    "n32c192h28w28-k192r7s7-p3-g192",
    "n32c256h28w28-k256r3s3-p1-g32",
    "n32c256h56w56-k256r3s3-u2-p1-g32",
)
LEAST = ("n1c1h1w1-k1r1s1", "n1c2h1w1-k2r1s1-g2", "n1c8h1w1-k8r1s1")
GEMMS = ("implicit_gemm", "pointwise", "im2col", "direct")  # whose tiles the predicate is about
TENSOR_CORES = {80: "mma.sync", 90: "wgmma", 100: "tcgen05", 120: "mma.sync"}
DENSE = ("implicit_gemm", "pointwise")


def problems(kernel, dtype):
    """The layers that are the kernel's own; of one that always comes after another, those that both can compute."""
    found = [ConvProblem.parse(f"{kernel.direction}-{dtype}-{layer}") for layer in LAYERS]
    able = [problem for problem in found if not kernel.why_not(problem)]
    assert able, f"{kernel.family} {kernel.direction} can compute none of the layers"
    return [problem for problem in able if not kernel.rather_not(problem)] or able[1:2]


def depth(problem):
    """The maps of a group next to each other in what is read."""
    return (problem.k if problem.direction == "dgrad" else problem.c) // problem.groups


def operands(problem, fused=False):
    def tensor(*size):
        return torch.empty(size, dtype=DTYPES[problem.dtype], device="meta").to(memory_format=torch.channels_last)

    def maps(count):
        return torch.empty(count, device="meta") if fused else None

    bias = maps(problem.k) if problem.direction == "wgrad" else None
    own = {"scale": maps(problem.k), "shift": maps(problem.k)} if problem.direction == "fprop" else {}
    tensors = [tensor(*size) for size in (problem.x_size, problem.w_size, problem.y_size)]
    return Operands(*tensors, **own, dbias=bias, precision="tf32")


def compiled(kernel, problem, config, capability, fused=False):
    """What becomes of each launch, with what every kernel must be whatever its config."""
    found = [
        compile_launch(launch, capability) for launch in kernel.launches(problem, operands(problem, fused), config)
    ]
    for one in found:
        assert one.shared_bytes <= CHIPS[capability].shared_bytes, (problem, config)
    return found


ids = [f"{kernel.family}_{kernel.direction}" for kernel in KERNELS]


@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kernel", KERNELS, ids=ids)
def test_the_config_picked_spills_nothing(kernel, dtype, capability):
    if kernel.capability > capability:
        return
    for problem in problems(kernel, dtype)[:2]:
        config = kernel.pick(problem, CHIPS[capability])
        for one in compiled(kernel, problem, config, capability, fused=True):
            assert one.stack_bytes == 0, (problem, config)
        if dtype == "bf16" and kernel.family in DENSE:
            launches = compiled(kernel, problem, config, capability)
            assert any(TENSOR_CORES[capability] in one.ptx for one in launches), (problem, config)


@pytest.mark.parametrize("capability", CHIPS)
def test_shuffled_maps_spill_nothing(capability):
    """The 1x1 convolutions before ShuffleNet's shuffle and that of its second version; and its depthwise ones."""
    cases = (("grouped", "c384h28w28-k96r1s1-g8", 8), ("implicit_gemm", "c240h28w28-k60r1s1-g3", 3),
             ("implicit_gemm", "c116h28w28-k116r1s1", 2), ("depthwise", "c116h28w28-k116r3s3-p1-g116", 2),
             ("depthwise", "c240h28w28-k240r5s5-p2-g240", 3))  # fmt: skip
    for family, layer, shuffle in cases:
        kernel = next(kernel for kernel in KERNELS if (kernel.family, kernel.direction) == (family, "fprop"))
        problem = ConvProblem.parse(f"fprop-bf16-n32{layer}")
        given = operands(problem, fused=True)
        given = replace(given, shuffle=shuffle, beside=given.y if shuffle == 2 else None)
        for launch in kernel.launches(problem, given, kernel.pick(problem, CHIPS[capability])):
            assert compile_launch(launch, capability).stack_bytes == 0, problem


@pytest.mark.full
@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("kernel", KERNELS, ids=ids)
def test_every_config_compiles(kernel, dtype, capability):
    problem = problems(kernel, dtype)[0]
    for config in kernel.configs if kernel.capability <= capability else ():
        if kernel.family not in GEMMS or not why_not_fit(
            config, dtype, CHIPS[capability], depth(problem), descriptors=kernel.family == "pointwise"
        ):
            compiled(kernel, replace(problem, n=1), config, capability)


@pytest.mark.parametrize("kernel", KERNELS, ids=ids)
def test_sizes_of_1_compile(kernel):
    """Triton makes constants of them, which neither the interpreter nor a layer of a network has."""
    least = [ConvProblem.parse(f"{kernel.direction}-f32-{sizes}") for sizes in LEAST]
    problem = next(problem for problem in least if not kernel.why_not(problem))
    compiled(kernel, problem, kernel.configs[-1], 90)


def test_the_picked_config_fits_every_chip():
    for kernel in KERNELS:
        for dtype in kernel.dtypes:
            for problem in problems(kernel, dtype):
                for chip in CHIPS.values():
                    assert kernel.pick(problem, chip) in kernel.configs


def test_images_of_more_than_2_31_elements_are_counted_in_64_bits():
    """Strides in units of several elements are multiplied in the kernel; an image's is passed as it is."""
    strides = {"x_image": 2**33, "x_row": 2**20, "x_pixel": 24, "maps": 24}
    assert in_units(strides) == {"x_image": 2**33, "x_row": 2**17, "x_pixel": 3, "maps": 3, "UNIT": 8}


def test_grids_stay_within_their_axes():
    """The second and third may have 65535 programs: tall images, many groups, and planes of many elements are long."""
    tall = ConvProblem.parse("fprop-bf16-n1c8h2000000w1-k8r3s1-p1x0-g8")
    grouped = ConvProblem.parse("wgrad-bf16-n1c140000h4w4-k140000r3s3-p1-g70000")
    given = [(kernel, problem) for problem in (tall, grouped) for kernel in KERNELS
             if kernel.direction == problem.direction and not kernel.why_not(problem)]  # fmt: skip
    launches = [
        launch
        for kernel, problem in given
        for config in kernel.configs
        for launch in kernel.launches(problem, operands(problem), config)
    ]
    image = torch.empty(2, 64, 4096, 4096, device="meta")
    launches += [channel_shuffle.shuffle_planes(image, image, 4), *pooling.global_avg_pool(image, image[:, :, :1, :1])]
    for launch in launches:
        assert max(launch.grid[1:], default=0) <= 65535, (launch.function, launch.grid)
        assert launch.grid[0] < 2**31, (launch.function, launch.grid)


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        *(("implicit_gemm", f"{direction}-bf16-n32c116h28w28-k116r1s1") for direction in DIRECTIONS),  # ShuffleNet's
        ("pointwise", "fprop-bf16-n32c144h56w56-k24r1s1-residual"),  # MobileNet's
    ],
)
def test_maps_that_16_does_not_divide_are_read_in_vectors(family, problem):
    """4 or 8 at a time, not one by one."""
    problem = ConvProblem.parse(problem)
    kernel = next(kernel for kernel in KERNELS if (kernel.family, kernel.direction) == (family, problem.direction))
    given = operands(problem)
    given = replace(given, residual=given.y if problem.epilogue.residual else None)
    first, *_ = kernel.launches(problem, given, kernel.pick(problem, CHIPS[90]))
    assert "ld.global.b16" not in compile_launch(first, 90).ptx


def test_more_pixels_than_are_counted_are_refused():
    """By the operators too that no dispatch stands before."""
    image = torch.empty(1 << 16, 1, 1 << 7, 1 << 7, device="meta")
    with pytest.raises(RuntimeError, match="count pixels in 32 bits"):
        triton_tools.avg_pool(image, image, Window((1, 1), (1, 1), (0, 0), (1, 1)))
    depthwise = ConvProblem.parse("fprop-bf16-n65536c8h128w128-k8r3s3-p1-g8")
    pointwise = ConvProblem.parse("fprop-bf16-n65536c8h128w128-k8r1s1")
    assert "pixels" in triton_tools.separable_why_not(depthwise, pointwise, 0)


def test_kernels_are_chosen_for_the_gpu_of_their_operands(monkeypatch):
    gpus = [
        SimpleNamespace(major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=227 * 1024),
        SimpleNamespace(major=8, minor=6, multi_processor_count=84, shared_memory_per_block_optin=99 * 1024),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    backend._chip.cache_clear()
    try:
        assert [backend.chip(flags) for flags in (0, 2 << GPU)] == [Chip(90, 132, 227 * 1024), Chip(86, 84, 99 * 1024)]
    finally:
        backend._chip.cache_clear()


def test_a_thread_is_given_a_context_once(monkeypatch):
    """Not every thread of autograd's has called something that gives it one, and tensor descriptors ask for one."""
    events = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: events.append(get_ident())))
    tensor = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 99))

    def calls():
        for _ in range(2):
            with backend.on_device_of(tensor):
                pass
        return get_ident()

    with ThreadPoolExecutor(1) as pool:
        assert events == [calls(), pool.submit(calls).result()]
