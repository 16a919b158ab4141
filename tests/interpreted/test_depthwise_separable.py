"""The fused depthwise-separable layer by its Triton kernel, against torch in float64."""

import pytest
import torch
import torch.nn.functional as F

from cnnkern import composed, gpu_tools
from cnnkern.problem import ConvProblem
from cnnkern.triton_kernels import depthwise_separable as fused

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# x size, maps of y, filter, (stride, padding, dilation), activations
CASES = (
    ((1, 1, 1, 1), 1, (1, 1), (1, 0, 1), ("none", "none")),  # the least there is
    ((2, 16, 5, 6), 32, (3, 3), (1, 1, 1), ("relu6", "none")),  # MobileNetV2's
    ((1, 19, 7, 5), 17, (3, 3), (2, 1, 1), ("relu", "relu")),  # a tail in every dimension
    ((1, 8, 9, 8), 40, (5, 4), (1, 3, 2), ("silu", "hardswish")),  # dilated, unequal sides
    ((2, 24, 4, 4), 24, (3, 3), (1, 1, 1), ("sigmoid", "tanh")),  # 8 maps, but not 16, divide
)


def layer(case, dtype, seed=0):
    """The operator's arguments but the last two; a map in two is scaled and shifted."""
    (n, c, h, w), k, (r, s), (stride, padding, dilation), (dw_activation, pw_activation) = case
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(n, h, w, c).permute(0, 3, 1, 2)
    return (
        x, normal(c, 1, r, s), normal(c), normal(c), dw_activation, 0.0,
        normal(k, c, 1, 1) / c**0.5, None, normal(k), pw_activation, 0.0,
        (stride, stride, padding, padding, padding, padding, dilation, dilation, c),
    )  # fmt: skip


def truth(arguments):
    x, dw, dw_scale, dw_shift, dw_activation, _, pw, _, pw_shift, pw_activation, _, geometry = (
        value.double() if isinstance(value, torch.Tensor) else value for value in arguments
    )
    z = F.conv2d(x, dw, None, geometry[:2], geometry[2:4], geometry[6:8], geometry[8])
    z = composed.epilogue(z, dw_scale, dw_shift, None, dw_activation, 0.0)
    return composed.epilogue(F.conv2d(z, pw), None, pw_shift, None, pw_activation, 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_close_to_float64(dtype, monkeypatch):
    """In the smallest tile, in which a small problem has several."""
    monkeypatch.setattr(fused, "pick", lambda second: fused.CONFIGS[-1])
    name = f"triton_depthwise_separable_fprop_{DTYPES[dtype]}_nhwc_any__sm80"
    for case in CASES:
        arguments = layer(case, dtype)
        exact = truth(arguments)
        error = (gpu_tools.depthwise_separable(*arguments, 0, name) - exact).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * max(1, exact.abs().max()), case


def test_larger_tiles(monkeypatch):
    arguments = layer(CASES[2], torch.float32)
    for config in fused.CONFIGS:
        monkeypatch.setattr(fused, "pick", lambda second, config=config: config)
        torch.testing.assert_close(gpu_tools.depthwise_separable(*arguments, 0, None), truth(arguments).float())


def test_layouts():
    """x as a slice of a wider buffer, whose rest is NaN, and in NCHW; weights in channels_last."""
    plain = layer(CASES[1], torch.float32)
    expected, x = truth(plain).float(), plain[0]
    wide = torch.full((2, 5, 6, 21), torch.nan).permute(0, 3, 1, 2)[:, 3:19]
    for given in (wide.copy_(x), x.contiguous()):
        y = gpu_tools.depthwise_separable(given, *plain[1:], 0, None)
        torch.testing.assert_close(y, expected)
        assert y.is_contiguous(memory_format=torch.channels_last) != (given is not wide)
    last = [value.contiguous(memory_format=torch.channels_last) if i == 6 else value for i, value in enumerate(plain)]
    torch.testing.assert_close(gpu_tools.depthwise_separable(*last, 0, None), expected)


def test_nan_and_infinity_stay_where_they_are():
    arguments = layer(CASES[1], torch.float32)
    arguments[0][0, 0, 0, 0], arguments[0][-1, -1, -1, -1] = torch.nan, torch.nan
    assert torch.equal(gpu_tools.depthwise_separable(*arguments, 0, None).isnan(), truth(arguments).isnan())


def test_two_kernels_where_one_cannot():
    """A multiplier of 2, and none for a kernel that is named."""
    x, dw, _, _, *rest = layer(CASES[0], torch.float32)
    rest[2] = torch.ones(1, 2, 1, 1)
    dw = torch.cat((dw, 2 * dw))
    arguments = (x, dw, None, None, *rest)
    y = gpu_tools.depthwise_separable(*arguments, 0, None)
    torch.testing.assert_close(y, 3 * dw[0].view(()) * x + rest[4].view(()))
    with pytest.raises(RuntimeError, match="one filter per map"):
        gpu_tools.depthwise_separable(*arguments, 0, "triton_depthwise_separable_fprop_f32_nhwc_any__sm80")
    with pytest.raises(RuntimeError, match="it is not"):
        gpu_tools.depthwise_separable(*arguments, 0, "another")


def test_what_it_cannot_do_is_said():
    def answer(depthwise, pointwise):
        return fused.why_not(ConvProblem.parse(f"fprop-{depthwise}"), ConvProblem.parse(f"fprop-{pointwise}"))

    assert answer("f32-n1c8h4w4-k8r3s3-g8", "f32-n1c8h2w2-k512r1s1") == ""
    assert "512" in answer("f32-n1c8h4w4-k8r3s3-g8", "f32-n1c8h2w2-k513r1s1")
    assert "float64" in answer("f64-n1c8h4w4-k8r3s3-g8", "f64-n1c8h2w2-k8r1s1")
    assert "1x1" in answer("f32-n1c8h4w4-k8r3s3-g8", "f32-n1c8h2w2-k8r2s2")
