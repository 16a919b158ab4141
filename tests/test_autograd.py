"""Derivatives of every operator, in float64 against finite differences, and under the transforms of torch.func."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import cnnkern
from cnnkern import functional as CF
from cnnkern.problem import ACTIVATIONS


def leaf(*size):
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


def check(function, inputs, **how):
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, **how)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, **how)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


CONVOLUTIONS = {  # C, filter, and the rest of conv2d's arguments
    "3x3": (1, (2, 1, 3, 3), 1, 1),
    "uneven": (2, (4, 1, 3, 2), (2, 1), (1, 2), (1, 2), 2),
    "depthwise": (3, (3, 1, 3, 3), 2, 1, 1, 3),
    "pointwise": (2, (3, 2, 1, 1), 1, 0),
    "same, even filter": (1, (2, 1, 2, 4), 1, "same"),
    "stride that leaves pixels out": (2, (2, 2, 2, 2), 3, 0),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d(case):
    maps, w_size, *rest = CONVOLUTIONS[case]
    x, w, b = leaf(2, maps, 4, 3), leaf(*w_size), leaf(w_size[0])
    check(lambda x, w, b: CF.conv2d(x, w, b, *rest), (x, w, b))


@pytest.mark.parametrize("needed", ["x", "w", "b", "xw", "wb"])
def test_only_what_is_needed(needed):
    tensors = {"x": leaf(1, 2, 4, 4), "w": leaf(3, 2, 3, 3), "b": leaf(3)}
    given = {name: tensor if name in needed else tensor.detach() for name, tensor in tensors.items()}
    wanted = [given[name] for name in needed]
    dy = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    ours = torch.autograd.grad(CF.conv2d(*given.values()), wanted, dy)
    theirs = torch.autograd.grad(F.conv2d(*given.values()), wanted, dy)
    torch.testing.assert_close(ours, theirs)


def test_an_operand_that_no_gradient_needs_is_not_kept():
    x, w = leaf(1, 2, 4, 4), leaf(3, 2, 3, 3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t):
        CF.conv2d(x.detach(), w)
        CF.conv2d(x, w.detach())
    assert saved == [x.shape, w.shape]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_conv2d(activation):
    x, w, b, scale, shift, residual = leaf(1, 2, 3, 3), leaf(2, 2, 2, 2), leaf(2), leaf(2), leaf(2), leaf(1, 2, 2, 2)

    def fused(x, w, b, scale, shift, residual):
        return CF.fused_conv2d(x, w, b, scale=scale, shift=shift, residual=residual, activation=activation)

    inputs = (x, w, b, scale, shift, residual)
    assert gradcheck(fused, inputs, check_forward_ad=True)
    assert gradgradcheck(fused, inputs, check_fwd_over_rev=True)


def test_fused_conv2d_in_low_precision_has_gradients_of_its_operands_dtypes():
    x, w = torch.randn(1, 2, 4, 4).bfloat16().requires_grad_(), torch.randn(4, 2, 3, 3).bfloat16().requires_grad_()
    scale, shift = torch.rand(4, requires_grad=True), torch.rand(4, requires_grad=True)
    CF.fused_conv2d(x, w, scale=scale, shift=shift, activation="relu").sum().backward()
    for tensor in (x, w, scale, shift):
        assert tensor.grad.dtype == tensor.dtype


def test_depthwise_separable_conv2d():
    inputs = (leaf(1, 2, 3, 3), leaf(2, 1, 2, 2), leaf(3, 2, 1, 1), leaf(2), leaf(3))
    check(lambda *inputs: CF.depthwise_separable_conv2d(*inputs), inputs)


def test_conv2d_max_pool2d():
    inputs = (leaf(1, 2, 4, 4), leaf(3, 2, 2, 2), leaf(3), leaf(3))
    how = {"padding": 1, "pool_size": 3, "pool_stride": 2, "pool_padding": 1, "activation": "tanh"}
    check(lambda x, w, bias, scale: CF.conv2d_max_pool2d(x, w, bias, scale=scale, **how), inputs)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: CF.channel_shuffle(x, 3),
        lambda x: CF.max_pool2d(x, 3, 2, 1),
        lambda x: CF.avg_pool2d(x, (3, 2), 2, 1),
        CF.global_avg_pool2d,
    ],
    ids=["channel_shuffle", "max_pool2d", "avg_pool2d", "global_avg_pool2d"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_the_functions_around_convolution(function, layout):
    check(function, (leaf(1, 6, 4, 4).detach().to(memory_format=layout).requires_grad_(),))
    images = torch.randn(3, 2, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(vmap(function)(images), torch.stack([function(image) for image in images]))


def test_third_order():
    x, w = leaf(1, 2, 4, 4), leaf(2, 2, 3, 3)

    def third(conv):
        y = conv(x, w).pow(4).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y, w, create_graph=True)
            y = y.sum()
        return torch.autograd.grad(y, x)

    torch.testing.assert_close(third(CF.conv2d), third(F.conv2d))


def test_forward_mode_without_requires_grad():
    x, w = leaf(1, 2, 4, 4).detach(), leaf(3, 2, 3, 3).detach()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(CF.conv2d(dual, w)).tangent
    torch.testing.assert_close(tangent, F.conv2d(torch.ones_like(x), w))


X, W, B = (torch.randn(3, *size, dtype=torch.float64) for size in ((2, 4, 5, 5), (6, 2, 3, 3), (6,)))


def ours(x, w, b):
    return CF.conv2d(x, w, b, 1, 1, 1, 2)


def theirs(x, w, b):
    return F.conv2d(x, w, b, 1, 1, 1, 2)


def loss(conv):
    return lambda *tensors: conv(*tensors).pow(2).sum()


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: grad(f, (0, 1, 2)),
        lambda f: jacrev(f, (0, 1)),
        lambda f: jacfwd(f, 1),
        lambda f: hessian(f, 2),
        lambda f: lambda *at: jvp(grad(f, (0, 1)), at, (X[1], W[1], B[1])),
    ],
    ids=["grad", "jacrev", "jacfwd", "hessian", "jvp of grad"],
)
def test_transforms(transform):
    at = (X[0], W[0], B[0])
    torch.testing.assert_close(transform(loss(ours))(*at), transform(loss(theirs))(*at))


@pytest.mark.parametrize(
    "dims",
    [(0, None, None), (None, 0, None), (None, None, 0), (0, None, 0), (0, 0, 0)],
    ids=["x", "w", "b", "xb", "xwb"],
)
def test_vmap(dims):
    given = [batch if dim == 0 else batch[0] for batch, dim in zip((X, W, B), dims, strict=True)]
    twice = [torch.stack([tensor, 2 * tensor]) if dim == 0 else tensor for tensor, dim in zip(given, dims, strict=True)]
    everything = (0, 1, 2)
    for of in (
        lambda conv: vmap(conv, dims)(*given),
        lambda conv: vmap(vmap(conv, dims), dims)(*twice),
        lambda conv: vmap(grad(loss(conv), everything), dims)(*given),
        lambda conv: grad(lambda *tensors: vmap(conv, dims)(*tensors).sin().sum(), everything)(*given),
        lambda conv: jvp(vmap(conv, dims), tuple(given), tuple(given)),
    ):
        torch.testing.assert_close(of(ours), of(theirs))


def test_vmap_over_other_dimensions():
    x, w = X.movedim(0, 2), W.movedim(0, 4)
    torch.testing.assert_close(vmap(ours, (2, 4, 0))(x, w, B), vmap(theirs, (2, 4, 0))(x, w, B))


def test_per_sample_gradients_of_a_module():
    layer = cnnkern.Conv2d(4, 6, 3, groups=2, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def sample_loss(parameters, image):
        return torch.func.functional_call(layer, parameters, (image[None],)).pow(2).sum()

    per_sample = vmap(grad(sample_loss), (None, 0))(parameters, X[0])
    for image, *gradients in zip(X[0], *per_sample.values(), strict=True):
        torch.testing.assert_close(gradients, list(grad(sample_loss)(parameters, image).values()))


@pytest.mark.parametrize("x_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("w_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("needed", [(0, 1), (1,), (0,)], ids=["xw", "w", "x"])
def test_gradients_have_the_layouts_of_torchs(x_layout, w_layout, needed):
    def gradients(conv):
        leaves = [
            torch.randn(2, 4, 5, 5).to(memory_format=x_layout),
            torch.randn(6, 4, 3, 3).to(memory_format=w_layout),
        ]
        for i in needed:
            leaves[i].requires_grad_()
        return torch.autograd.grad(conv(*leaves).sum(), [leaves[i] for i in needed])

    assert [g.stride() for g in gradients(CF.conv2d)] == [g.stride() for g in gradients(F.conv2d)]


def test_gradients_keep_the_layouts_of_their_tensors():
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    dx, dw = torch.autograd.grad(CF.conv2d(x, w).sum(), (x, w))
    assert dx.stride() == x.stride()
    assert dw.stride() == w.stride()
    w = w.detach().contiguous().requires_grad_()
    (dw,) = torch.autograd.grad(CF.conv2d(x.detach().contiguous(), w).sum(), w)
    assert dw.stride() == w.stride()
