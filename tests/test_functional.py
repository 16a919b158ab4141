"""The functions give what torch's give, and refuse what torch's refuse in torch's words."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cnnkern
from cnnkern import composed, dispatch, ops, testing
from cnnkern import functional as CF
from cnnkern.native import _C
from cnnkern.problem import ACTIVATIONS

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def call(function, arguments):
    """What a call gives, or the class and the beginning of what it raises."""
    try:
        y = function(*arguments)
    except Exception as error:
        return type(error), str(error).splitlines()[0].split(" - got")[0]
    return y


x, w, b = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
REFUSED = {
    "stride 0": (x, w, b, 0),
    "stride below 0": (x, w, b, (1, -1)),
    "dilation 0": (x, w, b, 1, 0, 0),
    "dilation below 0": (x, w, b, 1, 0, (-1, 1)),
    "groups 0": (x, w, b, 1, 0, 1, 0),
    "groups below 0": (x, w, b, 1, 0, 1, -1),
    "groups that do not divide C": (x, w, b, 1, 0, 1, 3),
    "groups that do not divide K": (x, w[:, :1], b, 1, 0, 1, 4),
    "padding below 0": (x, w, b, 1, -1),
    "a filter larger than the input": (x, torch.randn(6, 4, 9, 3), b),
    "a dilated filter larger than the input": (x, w, b, 1, 0, 4),
    "other maps in the filter": (x, w[:, :3], b),
    "other maps in an unbatched input": (x[0, :3], w, b),
    "5 dimensions": (x[None], w, b),
    "2 dimensions": (x[0, 0], w, b),
    "a filter of 3 dimensions": (x, w[0], b),
    "a filter of 5 dimensions": (x, w[None], b),
    "a bias of another length": (x, w, b[:3]),
    "a bias of 2 dimensions": (x, w, b[None]),
    "a filter of another dtype": (x, w.double(), b),
    "a bias of another dtype": (x, w, b.double()),
    "a wide bias": (x.bfloat16(), w.bfloat16(), b),
    "an integer input": (x.int(), w, b),
    "a boolean input": (x > 0, w > 0),
    "a float stride": (x, w, b, 1.0),
    "a stride of floats": (x, w, b, (1.0, 1.0)),
    "a boolean stride": (x, w, b, True),
    "a stride of 3": (x, w, b, (1, 1, 1)),
    "a stride of none": (x, w, b, ()),
    "no stride": (x, w, b, None),
    "padding of 4": (x, w, b, 1, (1, 1, 1, 1)),
    "unknown padding": (x, w, b, 1, "full"),
    "padding same with a stride": (x, w, b, 2, "same"),
    "float groups": (x, w, b, 1, 0, 1, 1.0),
    "no filter": (x, None, b),
    "no input": (None, w, b),
    "an array": (x.numpy(), w, b),
    "sparse input": (x.to_sparse(), w, b),
    "a sparse filter": (x, w.to_sparse(), b),
    "no filters": (x, w[:0]),
    "an empty filter": (x, torch.randn(6, 4, 0, 3), b),
    "an empty axis": (torch.randn(2, 4, 0, 8), w, b),
    "an empty axis with padding around it": (torch.randn(2, 4, 0, 8), w, b, 1, 2),
    "an uninitialized filter": (x, torch.nn.UninitializedParameter(), b),
}


@pytest.mark.parametrize("case", REFUSED)
def test_conv2d_refuses_what_torch_refuses_in_its_words(case):
    raised = call(F.conv2d, REFUSED[case])
    assert isinstance(raised, tuple), "torch accepts this"
    assert call(CF.conv2d, REFUSED[case]) == raised


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_conv2d_refuses_quantised_input_as_torch():
    arguments = (torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), w, b)
    assert call(CF.conv2d, arguments) == call(F.conv2d, arguments)
    assert isinstance(call(CF.conv2d, arguments), tuple)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_conv2d_refuses_operands_on_several_devices(which):
    arguments = [tensor.to("meta") if i == which else tensor for i, tensor in enumerate((x, w, b))]
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        CF.conv2d(*arguments)


class Subclass(torch.Tensor):
    """A tensor that does nothing of its own."""


ACCEPTED = {
    "integers": (x.int(), w.int(), b.int()),
    "complex": (x.cfloat(), w.cfloat(), b.cfloat()),
    "unbatched": (x[0], w, b),
    "no images": (x[:0], w, b),
    "no maps": (x[:, :0], w[:, :0], b),
    "lists": (x, w, b, [2, 1], [1], (2,)),
    "a numpy stride": (x, w, b, np.int64(2)),
    "torch.Size": (x, w, b, torch.Size([2, 2])),
    "same, even filter": (x, torch.randn(6, 4, 2, 4), b, 1, "same", (1, 2)),
    "valid": (x, w, b, 2, "valid"),
    "a subclass": (x.as_subclass(Subclass), w, b),
    "mkldnn": (x.to_mkldnn(), w, b),
    "a negated view": (torch._neg_view(x), w, b),
    "zeros without memory": (torch._efficientzerotensor(x.shape), w, b),
    "expanded": (x[:1].expand(2, -1, -1, -1), w, b[:1].expand(6)),
    "transposed": (x.transpose(2, 3), w.transpose(2, 3), b),
    "meta": (x.to("meta"), w.to("meta"), b.to("meta")),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", ACCEPTED)
def test_conv2d_accepts_what_torch_accepts(case):
    theirs, ours = F.conv2d(*ACCEPTED[case]), CF.conv2d(*ACCEPTED[case])
    assert type(ours) is type(theirs)
    assert (ours.shape, ours.dtype, ours.layout, ours.device) == (
        theirs.shape, theirs.dtype, theirs.layout, theirs.device
    )  # fmt: skip
    if theirs.layout is torch.strided:
        assert ours.stride() == theirs.stride()
    if theirs.device.type != "meta":
        torch.testing.assert_close(ours.to_dense(), theirs.to_dense(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("w_layout", LAYOUTS)
@pytest.mark.parametrize("maps", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 5])
def test_strides_are_torchs(x_layout, w_layout, maps, size):
    x = torch.randn(2, maps, size, size).to(memory_format=LAYOUTS[x_layout])
    w = torch.randn(4, maps, 1, 1).to(memory_format=LAYOUTS[w_layout])
    assert CF.conv2d(x, w).stride() == F.conv2d(x, w).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_conv2d_is_as_close_to_the_truth_as_rounding_allows(dtype):
    name = next(key for key, value in testing.DTYPES.items() if value is dtype)
    for problem in testing.grid(("fprop",), (name,)):
        if problem.padding[:2] != problem.padding[2:] or problem.x_pixel_stride:
            continue  # not to be said in F.conv2d's arguments
        given = testing.operands(problem)
        rest = (problem.stride, problem.padding[:2], problem.dilation, problem.groups)
        y = CF.conv2d(given.x, given.w, given.dy[0, :, 0, 0], *rest)
        truth = F.conv2d(given.x.double(), given.w.double(), given.dy[0, :, 0, 0].double(), *rest)
        assert testing.error(y, truth) <= testing.tolerance(problem), problem


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["float32", "mixed", "float64", "unbatched"])
def test_autocasting_is_torchs(dtype, case):
    images, filters, bias = {
        "float32": (x, w, b),
        "mixed": (x.bfloat16(), w, b),
        "float64": (x.double(), w.double(), b.double()),
        "unbatched": (x[0], w, b),
    }[case]
    filters = filters.clone().requires_grad_()
    gradients = []
    with torch.autocast("cpu", dtype=dtype):
        results = [function(images, filters, bias) for function in (CF.conv2d, F.conv2d)]
    for y in results:
        gradients.append(torch.autograd.grad(y.sum(), filters)[0])
    assert results[0].dtype == results[1].dtype == (torch.float64 if case == "float64" else dtype)
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
    assert gradients[0].dtype == filters.dtype
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=0.5)


def unfused(x, w, b, *epilogue):
    return composed.epilogue(F.conv2d(x, w, b, padding=1), *epilogue)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("present", ["none", "shift", "bias", "scale and bias", "all"])
def test_fused_conv2d_is_its_composition(activation, present):
    scale, shift, residual = torch.rand(6) + 0.5, torch.randn(6), torch.randn(2, 6, 8, 8)
    bias, scale, shift, residual = {
        "none": (None, None, None, None),
        "shift": (None, None, shift, None),
        "bias": (b, None, None, None),
        "scale and bias": (b, scale, None, None),
        "all": (b, scale, shift, residual),
    }[present]
    alpha = 0.3 if activation in ("leaky_relu", "elu") else None
    ours = CF.fused_conv2d(
        x, w, bias, padding=1, scale=scale, shift=shift, residual=residual, activation=activation, alpha=alpha
    )
    torch.testing.assert_close(
        ours, unfused(x, w, bias, scale, shift, residual, activation, alpha), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("activation", ["none", "relu", "elu"])
@pytest.mark.parametrize("present", ["scale", "shift", "both"])
def test_fused_conv2d_reads_its_input_through_the_prologue(activation, present):
    torch._dynamo.reset()
    scale = None if present == "shift" else (torch.rand(4) + 0.5).requires_grad_()
    shift = None if present == "scale" else torch.randn(4, requires_grad=True)
    alpha = 0.3 if activation == "elu" else None
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, w)]

    def ours(x, w):
        given = {"input_scale": scale, "input_shift": shift, "input_activation": activation, "input_alpha": alpha}
        return CF.fused_conv2d(x, w, b, padding=1, activation="relu", **given)

    def expected(x, w):
        return F.conv2d(composed.prologue(x, scale, shift, activation, alpha), w, b, padding=1).relu()

    truth = expected(*leaves)
    with torch.no_grad():
        fused = ours(*leaves)
    for y in (fused, ours(*leaves), torch.compile(ours, backend="aot_eager", fullgraph=True)(*leaves)):
        torch.testing.assert_close(y, truth, rtol=1e-4, atol=1e-4)
        if y.requires_grad:
            wanted = [*leaves, *(tensor for tensor in (scale, shift) if tensor is not None)]
            gradients = [torch.autograd.grad(z.sum(), wanted, retain_graph=True) for z in (y, truth)]
            torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(ours, (0, None))(x[None], w)[0], truth, rtol=1e-4, atol=1e-4)


def test_the_prologue_is_refused_as_the_epilogue_is():
    with pytest.raises(ValueError, match="softsign"):
        CF.fused_conv2d(x, w, input_activation="softsign")
    with pytest.raises(RuntimeError, match="x_scale is no vector of 4"):
        CF.fused_conv2d(x, w, input_scale=torch.ones(3))


def test_fused_conv2d_outside_of_the_kernels():
    scale, images = torch.rand(6), {"unbatched": x[0], "subclass": x.as_subclass(Subclass), "vendor": x}
    for case, image in images.items():
        with cnnkern.use(backend="vendor" if case == "vendor" else None):
            y = CF.fused_conv2d(image, w, b, padding=1, scale=scale, activation="relu")
        assert type(y) is type(image)
        expected = unfused(image, w, b, scale, None, None, "relu", None)
        torch.testing.assert_close(
            y.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor), rtol=1e-4, atol=1e-4
        )


def test_fused_conv2d_errors():
    with pytest.raises(ValueError, match="softplus"):
        CF.fused_conv2d(x, w, activation="softplus")
    with pytest.raises(ValueError, match="alpha=-1"):
        CF.fused_conv2d(x, w, activation="elu", alpha=-1.0)
    with pytest.raises(ValueError, match="only leaky_relu and elu"):
        CF.fused_conv2d(x, w, activation="relu", alpha=0.1)
    assert call(CF.fused_conv2d, (x, w[:, :3])) == call(F.conv2d, (x, w[:, :3]))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        CF.fused_conv2d(x, w, scale=torch.rand(6, device="meta"))
    with pytest.raises(RuntimeError, match="residual has sizes"):
        CF.fused_conv2d(x, w, residual=torch.zeros(2, 6, 8, 8))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_depthwise_separable_conv2d_is_its_composition(layout):
    image = x.to(memory_format=layout)
    dw, pw, dw_bias, pw_bias = torch.randn(4, 1, 3, 3), torch.randn(6, 4, 1, 1), torch.randn(4), torch.randn(6)
    for rest in ((1, 1), (2, 0), (1, "same", 2), ((2, 1), (0, 1), (1, 2))):
        ours = CF.depthwise_separable_conv2d(image, dw, pw, dw_bias, pw_bias, *rest)
        expected = F.conv2d(F.conv2d(image, dw, dw_bias, *rest, groups=4), pw, pw_bias)
        assert ours.stride() == expected.stride()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert CF.depthwise_separable_conv2d(image[0], dw, pw).shape == (6, 6, 6)
    with pytest.raises(RuntimeError, match="Given groups=4"):
        CF.depthwise_separable_conv2d(image[:, :3], dw, pw)
    with pytest.raises(RuntimeError, match="expected bias to be 1-dimensional with 4 elements"):
        CF.depthwise_separable_conv2d(image, dw, pw, pw_bias)


def test_the_fused_depthwise_separable_kernel_is_forced_by_name():
    x, dw, pw = torch.randn(1, 32, 6, 6), torch.randn(32, 1, 3, 3), torch.randn(8, 32, 1, 1)
    isa = next(isa for isa in _C.isas() if isa != "avx512_bf16")  # which adds matrix kernels alone
    name = f"cpu_depthwise_separable_fprop_f32_nhwc_any__{isa}"
    expected = F.conv2d(F.conv2d(x, dw, groups=32), pw)
    torch.testing.assert_close(CF.depthwise_separable_conv2d(x, dw, pw, kernel=name), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match=f"{name} cannot compute this call"):
        CF.depthwise_separable_conv2d(x, dw.clone().requires_grad_(), pw, kernel=name)
    with pytest.raises(RuntimeError, match="another"):
        CF.depthwise_separable_conv2d(x, dw, pw, kernel="another")


@pytest.mark.parametrize("beside", [0, 3, 6])
def test_shuffled_conv2d_is_its_composition(beside):
    w, b, scale = torch.randn(6, 2, 3, 3), torch.randn(6), torch.rand(6)
    others = torch.randn(2, beside, 8, 8) if beside else None
    how = {"scale": scale, "activation": "relu"}
    y = CF.fused_conv2d(x, w, b, padding=1, groups=2, **how)
    y = F.channel_shuffle(torch.cat([others, y], 1) if beside else y, 3)
    assert torch.equal(CF.shuffled_conv2d(x, w, b, padding=1, groups=2, shuffle=3, beside=others, **how), y)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_conv2d_max_pool2d_is_its_composition(layout):
    torch._dynamo.reset()  # of each layout there are no more graphs than it keeps
    image, scale, shift = x.to(memory_format=layout), torch.rand(6), torch.randn(6)

    def ours(image, bias=None, **how):
        return CF.conv2d_max_pool2d(image, w, bias, 1, 1, pool_size=3, pool_stride=2, pool_padding=1, **how)

    def theirs(y):
        return F.max_pool2d(y, 3, 2, 1)

    for bias, s, t in ((b, None, None), (None, scale, shift), (b, scale, None), (b, scale, shift), (b, None, shift)):
        expected = theirs(unfused(image, w, b if bias is not None else None, s, t, None, "relu", None))
        given = {"scale": s, "shift": t, "activation": "relu"}
        for y in (
            ours(image, bias, **given),
            torch.compile(ours, backend="eager", fullgraph=True)(image, bias, **given),
        ):
            assert y.stride() == expected.stride()
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(image[0]), theirs(F.conv2d(image[0], w, None, 1, 1)), rtol=1e-4, atol=1e-4)
    batch = torch.stack([image, image + 1])
    torch.testing.assert_close(
        torch.vmap(
            lambda i: ops.CONV2D_MAX_POOL2D(
                i, w, None, None, (1, 1, 1, 1, 1, 1, 1, 1, 1), "none", 0.0, (3, 3), (2, 2), (1, 1), False, 0
            )
        )(batch),
        torch.stack([ours(i) for i in batch]),
    )
    with pytest.raises(RuntimeError, match="expected input"):
        ours(image[:, :3])
    with pytest.raises(ValueError, match="softplus"):
        ours(image, activation="softplus")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_functions_around_convolution_are_torchs(layout):
    image = x.to(memory_format=layout)
    pairs = [
        (CF.channel_shuffle(image, 2), F.channel_shuffle(image, 2)),
        (CF.max_pool2d(image, 3, 2, 1, ceil_mode=True), F.max_pool2d(image, 3, 2, 1, ceil_mode=True)),
        (CF.max_pool2d(image, (2, 3), padding=(1, 0)), F.max_pool2d(image, (2, 3), padding=(1, 0))),
        (CF.avg_pool2d(image, 3, 2, 1, True, False), F.avg_pool2d(image, 3, 2, 1, True, False)),
        (CF.avg_pool2d(image, 2, divisor_override=3), F.avg_pool2d(image, 2, divisor_override=3)),
        (CF.global_avg_pool2d(image), F.adaptive_avg_pool2d(image, 1)),
        (CF.global_avg_pool2d(image[0]), F.adaptive_avg_pool2d(image[0], 1)),
        *zip(CF.max_pool2d(image, 3, return_indices=True), F.max_pool2d(image, 3, return_indices=True), strict=True),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("max_pool2d", (x, 3, 0)),
        ("max_pool2d", (x, 2, 2, 2)),
        ("max_pool2d", (x[0, 0], 2)),
        ("max_pool2d", (x, 9)),
        ("avg_pool2d", (x, 0)),
        ("avg_pool2d", (x, 2, 2, -1)),
        ("channel_shuffle", (x, 3)),
        ("channel_shuffle", (x, 0)),
        ("channel_shuffle", (x[0, 0], 2)),
    ],
)
def test_the_functions_around_convolution_refuse_what_torchs_refuse(name, arguments):
    raised = call(getattr(F, name), arguments)
    assert isinstance(raised, tuple), "torch accepts this"
    assert call(getattr(CF, name), arguments) == raised


def test_the_functions_may_take_the_place_of_torchs(monkeypatch):
    calls = {"conv2d": (x.cfloat(), w.cfloat()), "max_pool2d": (x[0], 2), "avg_pool2d": (x[0], 2)}
    expected = {name: getattr(F, name)(*arguments) for name, arguments in calls.items()}
    for name in calls:
        monkeypatch.setattr(F, name, getattr(CF, name))
    for name, arguments in calls.items():
        torch.testing.assert_close(getattr(F, name)(*arguments), expected[name])


def test_a_wrong_call_is_not_counted_as_a_fallback():
    dispatch.clear_fallback_counts()
    for arguments in REFUSED.values():
        call(CF.conv2d, arguments)
    assert dispatch.fallback_counts() == {}
