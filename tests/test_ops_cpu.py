"""The CPU operators themselves, on the reference kernels: layouts in and out, staging, epilogues, errors, the memo.

Expected values are torch's in float64 from the same operands, so an error is that of one rounding to the dtype.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnkern import _C, composed, dispatch, flags, ops

Layout = Callable[[Tensor], Tensor]
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
all_dtypes = pytest.mark.parametrize("dtype", DTYPES)
PLAIN = ("none", 0.0, *ops.NO_PROLOGUE)
SAME = (1, 1, 1, 1, 1, 1, 1, 1, 1)  # stride 1, padding 1, dilation 1


def reference(direction: str, dtype: str) -> str:
    return f"cpu_reference_{direction}_{dtype}_nhwc_any__generic"


def dense(x: Tensor) -> Tensor:
    return x


def nhwc(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def nhwc_slice(x: Tensor) -> Tensor:
    """Maps 1 to C of a wider NHWC buffer: a pixel stride."""
    wide = nhwc(x.new_full((x.shape[0], x.shape[1] + 3, *x.shape[2:]), torch.nan))
    wide[:, 1 : x.shape[1] + 1] = x
    return wide[:, 1 : x.shape[1] + 1]


def nchw_crop(x: Tensor) -> Tensor:
    """Rows that are not adjacent in memory."""
    return F.pad(x, (1, 2, 1, 1), value=torch.nan)[:, :, 1:-1, 1:-2]


def turned(x: Tensor) -> Tensor:
    """Height and width exchanged in memory: no layout has a name for it."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS = (dense, nhwc, nhwc_slice, nchw_crop, turned)
all_layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random(*size: int, dtype: str = "f32") -> Tensor:
    return torch.randn(size, dtype=torch.float64).to(DTYPES[dtype])


def assert_rounded(actual: Tensor, expected: Tensor) -> None:
    """Equal to float64 ``expected`` up to a rounding; torch's own float64 sums are off by a few more."""
    slack = 64 if actual.dtype == torch.float64 else 1
    eps = slack * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=eps, atol=eps)


def assert_strides_of(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert actual.stride() == expected.stride()


# Rectangular on every axis, so that an exchange of two of them shows.
GEOMETRY = [2, 1, 1, 2, 1, 2, 1, 2]
TORCH_GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


@all_dtypes
@all_layouts
@pytest.mark.parametrize("w_layout", [dense, nhwc, nchw_crop])
@pytest.mark.parametrize("groups", [1, 2])
def test_fprop(dtype: str, layout: Layout, w_layout: Layout, groups: int) -> None:
    x, w = layout(random(2, 6, 9, 8, dtype=dtype)), w_layout(random(4, 6 // groups, 3, 2, dtype=dtype))
    y = ops.FPROP(x, w, None, None, None, [*GEOMETRY, groups], *PLAIN, 0, reference("fprop", dtype))
    assert_rounded(y, F.conv2d(x.double(), w.double(), None, **TORCH_GEOMETRY, groups=groups))
    assert_strides_of(y, F.conv2d(x.float(), w.float(), None, **TORCH_GEOMETRY, groups=groups))


@all_dtypes
@all_layouts
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_dgrad(dtype: str, layout: Layout, channels_last: bool, groups: int) -> None:
    w, x_size = random(4, 6 // groups, 3, 2, dtype=dtype), (2, 6, 9, 8)
    dy = layout(random(2, 4, 5, 10, dtype=dtype))
    dx = ops.DGRAD(dy, w, x_size, [*GEOMETRY, groups], channels_last, 0, reference("dgrad", dtype))
    expected = torch.nn.grad.conv2d_input(x_size, w.double(), dy.double(), **TORCH_GEOMETRY, groups=groups)
    assert_rounded(dx, expected)
    assert_strides_of(dx, torch.empty(x_size, memory_format=ops.memory_format(channels_last)))


@all_dtypes
@all_layouts
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_wgrad(dtype: str, layout: Layout, channels_last: bool, bias: bool) -> None:
    x, dy, w_size = layout(random(2, 6, 9, 8, dtype=dtype)), layout(random(2, 4, 5, 10, dtype=dtype)), (4, 3, 3, 2)
    rest = (bias, channels_last, *ops.NO_PROLOGUE, 0, reference("wgrad", dtype))
    dw, db = ops.WGRAD(dy, x, w_size, [*GEOMETRY, 2], *rest)
    assert_rounded(dw, torch.nn.grad.conv2d_weight(x.double(), w_size, dy.double(), **TORCH_GEOMETRY, groups=2))
    assert_strides_of(dw, torch.empty(w_size, memory_format=ops.memory_format(channels_last)))
    assert_rounded(db, dy.double().sum((0, 2, 3)) if bias else torch.empty(0, dtype=torch.float64))


def test_uneven_padding() -> None:
    x, w = random(1, 2, 5, 6), random(3, 2, 3, 3)
    y = ops.FPROP(x, w, None, None, None, (1, 1, 0, 1, 2, 3, 1, 1, 1), *PLAIN, 0, reference("fprop", "f32"))
    assert_rounded(y, F.conv2d(F.pad(x.double(), (1, 3, 0, 2)), w.double()))


@pytest.mark.parametrize(
    ("activation", "alpha", "function"),
    [
        ("none", 0.0, lambda v: v),
        ("relu", 0.0, F.relu),
        ("relu6", 0.0, F.relu6),
        ("leaky_relu", 0.25, lambda v: F.leaky_relu(v, 0.25)),
        ("elu", 0.5, lambda v: F.elu(v, 0.5)),
        ("hardswish", 0.0, F.hardswish),
        ("silu", 0.0, F.silu),
        ("sigmoid", 0.0, torch.sigmoid),
        ("tanh", 0.0, torch.tanh),
    ],
)
@all_dtypes
@all_layouts
def test_epilogue(
    activation: str, alpha: float, function: Callable[[Tensor], Tensor], dtype: str, layout: Layout
) -> None:
    x, w = random(2, 3, 6, 5, dtype=dtype), random(4, 3, 1, 1, dtype=dtype)
    scale, shift = random(4, dtype=dtype), random(8)[::2].to(torch.float64 if dtype == "f64" else torch.float32)
    residual = layout(random(2, 4, 6, 5, dtype=dtype))
    y = ops.FPROP(
        x, w, scale, shift, residual, ops.POINTWISE, activation, alpha, *ops.NO_PROLOGUE, 0, reference("fprop", dtype)
    )
    scaled = F.conv2d(x.double(), w.double()) * scale.double().view(-1, 1, 1)
    assert_rounded(y, function(scaled + shift.double().view(-1, 1, 1) + residual.double()))


@all_dtypes
@all_layouts
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
def test_prologue(dtype: str, layout: Layout, activation: str | None) -> None:
    x, w = layout(random(2, 19, 6, 5, dtype=dtype)), random(4, 19, 3, 3, dtype=dtype) / 13
    x_scale, x_shift = random(19, dtype=dtype), random(38)[::2].to(torch.float64 if dtype == "f64" else torch.float32)
    prologue = (x_scale, x_shift, activation, 0.25)
    wide = composed.prologue(x.double(), x_scale.double(), x_shift.double(), activation, 0.25)
    t = wide.to(x.dtype).double()  # what a kernel reads is rounded once
    y = ops.FPROP(x, w, None, None, None, SAME, "none", 0.0, *prologue, 0, reference("fprop", dtype))
    slack = (64 if dtype == "f64" else 4) * torch.finfo(x.dtype).eps  # and may be rounded the other way
    torch.testing.assert_close(y.double(), F.conv2d(t, w.double(), padding=1), rtol=slack, atol=slack)
    dy = layout(random(2, 4, 6, 5, dtype=dtype)) / 8
    dw, _ = ops.WGRAD(dy, x, w.shape, SAME, False, False, *prologue, 0, reference("wgrad", dtype))
    expected = torch.nn.grad.conv2d_weight(t, w.shape, dy.double(), padding=1)
    torch.testing.assert_close(dw.double(), expected, rtol=slack, atol=slack)


@all_dtypes
@all_layouts
@pytest.mark.parametrize("bias", [False, True])
def test_backward_is_dgrad_and_wgrad(dtype: str, layout: Layout, bias: bool) -> None:
    x, w, dy = (layout(random(*size, dtype=dtype)) for size in ((2, 6, 9, 8), (4, 3, 3, 2), (2, 4, 5, 10)))
    geometry = [*GEOMETRY, 2]
    together = ops.BACKWARD(dy, x, w, geometry, bias, 0, None, None)
    channels_last = ops.gives_channels_last(x, w)
    dx = ops.DGRAD(dy, w, x.shape, geometry, channels_last, 0, None)
    apart = ops.WGRAD(dy, x, w.shape, geometry, bias, channels_last, *ops.NO_PROLOGUE, 0, None)
    for ours, expected in zip(together, (dx, *apart), strict=True):
        assert torch.equal(ours, expected)
        assert_strides_of(ours, expected)


@pytest.mark.parametrize(
    ("x_size", "w_size"),
    [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 0, 5, 5), (4, 0, 3, 3))],
    ids=["no images", "no maps"],
)
def test_operands_without_elements(x_size: tuple[int, ...], w_size: tuple[int, ...]) -> None:
    x, w, shift = random(*x_size), random(*w_size), random(4)
    y = ops.FPROP(x, w, None, shift, None, SAME, "relu", 0.0, *ops.NO_PROLOGUE, 0, None)
    p, q = x_size[2] + 3 - w_size[2], x_size[3]
    assert torch.equal(y, F.relu(shift).view(1, -1, 1, 1).expand(x_size[0], 4, p, q))
    dx = ops.DGRAD(y, w, x_size, SAME, False, 0, None)
    assert dx.shape == x_size
    dw, db = ops.WGRAD(y, x, w_size, SAME, True, False, *ops.NO_PROLOGUE, 0, None)
    assert torch.equal(dw, torch.zeros(w_size))
    torch.testing.assert_close(db, y.sum((0, 2, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 5, 5)}, "x has 3 dimensions where 4 are expected"),
        ({"w": torch.ones(4, 3, 3, 3, dtype=torch.float64)}, "w has another dtype"),
        ({"x": torch.ones(1, 3, 5, 5, dtype=torch.int32), "w": torch.ones(4, 3, 3, 3, dtype=torch.int32)}, "float16"),
        ({"w": torch.ones(4, 2, 3, 3)}, "w has 2 maps a filter where x has 3 a group"),
        ({"geometry": (*ops.POINTWISE[:-1], 2)}, "groups 2 does not divide"),
        ({"x": torch.ones(1, 3, 2, 5)}, "extent 3x3 is larger than the padded input 2x5"),
        ({"geometry": (0, *ops.POINTWISE[1:])}, "the stride is not positive"),
        ({"geometry": (1, 1, 1)}, "geometry has 3 numbers where 9 are expected"),
        ({"scale": torch.ones(3)}, "scale is no vector of 4"),
        ({"shift": torch.ones(4, dtype=torch.float64)}, "shift has neither the convolution's dtype"),
        ({"x_scale": torch.ones(4)}, "x_scale is no vector of 3"),
        ({"residual": torch.ones(1, 4, 3, 2)}, r"residual has sizes \[1, 4, 3, 2\] where \[1, 4, 3, 3\] are expected"),
        ({"activation": "gelu"}, "no activation is named 'gelu'"),
        ({"kernel": "cpu_best"}, "no CPU kernel is named 'cpu_best'"),
        (
            {"kernel": reference("dgrad", "f32")},
            f"{reference('dgrad', 'f32')} cannot compute fprop-f32-n1c3h5w5-k4r3s3-x:nchw-w:kcrs-y:nchw: it is for",
        ),
    ],
)
def test_errors(change: dict[str, object], message: str) -> None:
    arguments = {
        "x": torch.ones(1, 3, 5, 5),
        "w": torch.ones(4, 3, 3, 3),
        "scale": None,
        "shift": None,
        "residual": None,
        "geometry": ops.POINTWISE,
        "activation": "none",
        "alpha": 0.0,
        "x_scale": None,
        "x_shift": None,
        "x_activation": None,
        "x_alpha": 0.0,
        "flags": 0,
        "kernel": None,
    }
    with pytest.raises((RuntimeError, ValueError), match=message):
        ops.FPROP(*(arguments | change).values())


# --- the memo -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _own_chooser() -> Iterator[None]:
    yield
    _C.set_chooser(dispatch._choose_for_memo)


def call(x: Tensor, w: Tensor, flags: int = 0) -> Tensor:
    return ops.FPROP(x, w, None, None, None, SAME, "relu", 0.5, *ops.NO_PROLOGUE, flags, None)


@pytest.mark.usefixtures("_own_chooser")
def test_the_chooser_is_asked_once_a_problem_flags_and_threads() -> None:
    asked = []

    def choose(problem: str, flags: int) -> str:
        asked.append((problem, flags))
        return reference("fprop", "f32")

    _C.set_chooser(choose)
    assert _C.memo() == {}
    x, w = nhwc_slice(random(1, 4, 5, 5)), nhwc(random(4, 4, 3, 3))
    for _ in range(2):
        call(x, w)
        call(x, w, flags.STRICT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    call(x, w)
    torch.set_num_threads(threads)
    problem = "fprop-f32-n1c4h5w5-k4r3s3-p1-xs7-act:relu"
    assert asked == [(problem, 0), (problem, flags.STRICT), (problem, 0)]
    assert set(_C.memo().values()) == {reference("fprop", "f32")}
    assert f"{problem} flags=0 threads={threads}" in _C.memo()
    _C.clear_memo()
    assert _C.memo() == {}


@pytest.mark.usefixtures("_own_chooser")
def test_an_error_of_the_chooser_comes_out_and_is_not_kept() -> None:
    def choose(problem: str, flags: int) -> str:
        raise LookupError(f"nothing for {problem}")

    _C.set_chooser(choose)
    x, w = random(1, 1, 3, 3), random(1, 1, 3, 3)
    with pytest.raises(RuntimeError, match="nothing for fprop-f32-n1c1h3w3-k1r3s3-p1-act:relu"):
        call(x, w)
    assert _C.memo() == {}
    _C.set_chooser(None)
    call(x, w)
    assert "reference" not in next(iter(_C.memo().values()))


# --- the other operators --------------------------------------------------------------------------------------------


@all_dtypes
@all_layouts
@pytest.mark.parametrize(
    ("c", "h", "stride", "fused"),
    [(32, 19, (2, 2), True), (32, 9, (2, 2), False), (6, 19, (2, 1), False)],
    ids=["fused", "faster as two convolutions", "as two convolutions"],
)
def test_depthwise_separable(dtype: str, layout: Layout, c: int, h: int, stride: tuple[int, int], fused: bool) -> None:
    x = layout(random(3, c, h, h - 1, dtype=dtype))
    dw, pw = random(c, 1, 3, 3, dtype=dtype) / 3, random(5, c, 1, 1, dtype=dtype) / c**0.5
    scale, shift, pw_shift = random(c), random(c, dtype=dtype), random(5, dtype=dtype)
    scale = scale.double() if dtype == "f64" else scale
    _C.clear_memo()
    y = ops.DEPTHWISE_SEPARABLE(
        x, dw, scale, shift, "relu6", 0.0, pw, None, pw_shift, "none", 0.0, (*stride, *SAME[2:-1], c), 0, None
    )
    assert (_C.memo() == {}) == fused  # two convolutions have each been chosen a kernel
    middle = F.conv2d(x.double(), dw.double(), None, stride, 1, groups=c)
    middle = F.relu6(middle * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1))
    expected = F.conv2d(middle, pw.double(), pw_shift.double())
    eps = torch.finfo(y.dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=16 * eps, atol=16 * eps)
    assert y.is_contiguous(memory_format=ops.memory_format(layout in (nhwc, nhwc_slice)))


def test_the_fused_kernel_is_forced_by_its_own_name_only() -> None:
    x, pw = random(1, 32, 5, 5), random(2, 32, 1, 1)

    def forced(dw: Tensor, kernel: str) -> Tensor:
        return ops.DEPTHWISE_SEPARABLE(
            x, dw, None, None, "none", 0.0, pw, None, None, "none", 0.0, (*SAME[:-1], x.shape[1]), 0, kernel
        )

    isa = next(isa for isa in _C.isas() if isa != "avx512_bf16")  # which adds matrix kernels alone
    kernel = f"cpu_depthwise_separable_fprop_f32_nhwc_any__{isa}"
    dw = random(32, 1, 3, 3)
    expected = F.conv2d(F.conv2d(x, dw, padding=1, groups=32), pw)
    torch.testing.assert_close(forced(dw, kernel), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match=f"{kernel} cannot compute fprop-f32-n1c32h5w5-k32r3s2-p1-g32"):
        forced(random(32, 1, 3, 2), kernel)
    with pytest.raises(RuntimeError, match="no CPU kernel of depthwise_separable is named 'cpu_best'"):
        forced(dw, "cpu_best")


@all_dtypes
@all_layouts
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_channel_shuffle(dtype: str, layout: Layout, groups: int) -> None:
    x = layout(random(2, 6, 5, 3, dtype=dtype))
    y = ops.CHANNEL_SHUFFLE(x, groups)
    assert torch.equal(y, F.channel_shuffle(x, groups))
    assert y.is_contiguous(memory_format=ops.memory_format(layout in (nhwc, nhwc_slice)))
    assert torch.equal(ops.CHANNEL_SHUFFLE(y, 6 // groups), x)


Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int], bool]  # kernel, stride, padding, ceil_mode
all_windows = pytest.mark.parametrize(
    "window",
    [((3, 2), (2, 2), (1, 0), False), ((2, 2), (2, 2), (0, 0), True), ((3, 3), (3, 2), (1, 1), True)],
    ids=["3x2 padded on top", "2x2 ceil", "3x3 ceil padded"],
)


@all_dtypes
@all_layouts
@all_windows
def test_max_pool2d(dtype: str, layout: Layout, window: Window) -> None:
    kernel, stride, padding, ceil_mode = window
    x = layout(random(2, 5, 9, 8, dtype=dtype))
    y, indices = ops.MAX_POOL(x, kernel, stride, padding, (1, 1), ceil_mode)
    wide = x.double().requires_grad_()
    expected, expected_indices = F.max_pool2d(wide, kernel, stride, padding, 1, ceil_mode, return_indices=True)
    assert torch.equal(y.double(), expected)
    assert torch.equal(indices, expected_indices)
    channels_last = layout in (nhwc, nhwc_slice)
    assert y.is_contiguous(memory_format=ops.memory_format(channels_last))

    dy = layout(random(*y.shape, dtype=dtype))
    dx = ops.MAX_POOL_BACKWARD(dy, indices, x.shape, kernel, stride, padding, (1, 1), ceil_mode, channels_last)
    assert_rounded(dx, torch.autograd.grad(expected, wide, dy.double())[0])
    assert dx.is_contiguous(memory_format=ops.memory_format(channels_last))


@all_dtypes
@all_layouts
@all_windows
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_avg_pool2d(dtype: str, layout: Layout, window: Window, count_include_pad: bool) -> None:
    x = layout(random(2, 5, 9, 8, dtype=dtype))
    y = ops.AVG_POOL(x, *window, count_include_pad)
    wide = x.double().requires_grad_()
    expected = F.avg_pool2d(wide, *window, count_include_pad)
    assert_rounded(y, expected.detach())
    channels_last = layout in (nhwc, nhwc_slice)
    assert y.is_contiguous(memory_format=ops.memory_format(channels_last))

    dy = layout(random(*y.shape, dtype=dtype))
    dx = ops.AVG_POOL_BACKWARD(dy, x.shape, *window, count_include_pad, channels_last)
    assert_rounded(dx, torch.autograd.grad(expected, wide, dy.double())[0])


@all_dtypes
@all_layouts
def test_global_avg_pool2d(dtype: str, layout: Layout) -> None:
    x = layout(random(2, 5, 7, 6, dtype=dtype))
    y = ops.GLOBAL_AVG_POOL(x)
    assert_rounded(y, x.double().mean((2, 3), keepdim=True))


def test_pooling_without_images_keeps_the_shape() -> None:
    x = random(0, 3, 6, 6)
    assert ops.MAX_POOL(x, (2, 2), (2, 2), (0, 0), (1, 1), False)[1].shape == (0, 3, 3, 3)
    assert ops.AVG_POOL(x, (2, 2), (2, 2), (0, 0), False, True).shape == (0, 3, 3, 3)
    assert ops.GLOBAL_AVG_POOL(x).shape == (0, 3, 1, 1)
    assert ops.CHANNEL_SHUFFLE(x, 3).shape == x.shape


# --- instruction sets -----------------------------------------------------------------------------------------------


def under_isa(isa: str) -> subprocess.CompletedProcess[str]:
    program = "from cnnkern import _C; print(*_C.isas()); print(*_C.kernels())"
    environment = os.environ | {"CNNKERN_ISA": isa}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def test_an_instruction_set_can_be_forced() -> None:
    run = under_isa("generic")
    assert run.returncode == 0, run.stderr
    isas, kernels = run.stdout.splitlines()
    assert isas == "generic"
    assert {name.split("__")[1] for name in kernels.split()} == {"generic"}


def test_an_unknown_instruction_set_is_an_error_that_names_the_known_ones() -> None:
    run = under_isa("sse9")
    assert run.returncode
    assert "CNNKERN_ISA=sse9: unknown; one of" in run.stderr
    assert "generic" in run.stderr
