"""Derivatives of the operators: in eager mode by autograd.Function, in compiled graphs by register_autograd.

A convolution is linear in x and in w, so its three directions are closed under differentiation: the gradients of each
are the other two. That gives derivatives of any order, in reverse and in forward mode, on the package's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import Function

from cnnkern import batching, composed, ops  # noqa: F401  (batching registers the vmap rules that the Functions rely on)
from cnnkern.arguments import in_transform
from cnnkern.dispatch import Kernels
from cnnkern.ops import NO_PROLOGUE, Constants, below_autograd

Prologue = tuple[Tensor | None, Tensor | None, str | None, float | None]  # x_scale, x_shift, x_activation, x_alpha

_aten = torch.ops.aten

# What OpOverload.__call__ calls, without a Python frame around it.
_FPROP, _DGRAD, _WGRAD, _BACKWARD = ops.FPROP._op, ops.DGRAD._op, ops.WGRAD._op, ops.BACKWARD._op
_FPROP_PLAIN = ops.FPROP_PLAIN._op

# dz from dy and y = act(z); FROM_INPUT has the activations that need z itself.
FROM_OUTPUT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "none": lambda dy, y, alpha: dy,
    "relu": lambda dy, y, alpha: _aten.threshold_backward(dy, y, 0),
    "relu6": lambda dy, y, alpha: _aten.hardtanh_backward(dy, y, 0, 6),
    "leaky_relu": lambda dy, y, alpha: _aten.leaky_relu_backward(dy, y, alpha, True),
    "elu": lambda dy, y, alpha: _aten.elu_backward(dy, alpha, 1, 1, True, y),
    "sigmoid": lambda dy, y, alpha: _aten.sigmoid_backward(dy, y),
    "tanh": lambda dy, y, alpha: _aten.tanh_backward(dy, y),
}
# dz from dy and z.
FROM_INPUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": _aten.silu_backward,
    "hardswish": _aten.hardswish_backward,
}


def needs_graph(*args: Any) -> bool:
    """Whether a result of these arguments must be differentiable, in reverse or in forward mode."""
    if torch.compiler.is_compiling():
        return torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
    return in_forward_mode() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args))


def in_forward_mode() -> bool:
    """Whether tensors may carry tangents."""
    return forward_ad._current_level >= 0


def differentiable(rule: Any) -> Callable[..., Any]:
    """Makes a function of a rule, with its derivatives, for eager mode.

    The rule states ``run(*args)``, ``save(ctx, args, output)`` (which returns the tensors that the derivatives need),
    ``backward(ctx, *dy)`` and ``jvp(ctx, *tangents)``; an undefined gradient or tangent comes as None. Transforms of
    torch.func need torch's second form of Function (a setup_context), which costs more in each call than the first.
    """
    run, save = rule.run, rule.save

    def run_opened(*args: Any) -> Any:
        return run(*map(_opened, args))

    def setup_context(ctx: Any, args: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        saved = save(ctx, tuple(map(_opened, args)), output)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    def forward(ctx: Any, *args: Any) -> Any:
        output = run(*args)
        ctx.set_materialize_grads(False)
        saved = save(ctx, args, output)
        ctx.save_for_backward(*saved)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*saved)
        return output

    derivatives = {"backward": staticmethod(rule.backward), "jvp": staticmethod(rule.jvp)}
    eager: Any = type(rule.__name__, (Function,), {"forward": staticmethod(forward), **derivatives})
    transformed: Any = type(
        rule.__name__,
        (Function,),
        {
            "forward": staticmethod(run_opened),
            "setup_context": staticmethod(setup_context),
            "generate_vmap_rule": True,
            **derivatives,
        },
    )

    def call(*args: Any) -> Any:
        if in_transform():
            return transformed.apply(*(_Closed(arg) if isinstance(arg, tuple) else arg for arg in args))
        if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            return eager.apply(*args)
        return run(*args)

    call.__doc__ = rule.__doc__
    return call


@dataclass(frozen=True)
class _Closed:
    """A tuple on its way through torch.func, which takes tuples apart but expects one tangent for each argument."""

    value: tuple[Any, ...]


def _opened(arg: Any) -> Any:
    return arg.value if type(arg) is _Closed else arg


def _times_scale(w: Tensor, scale: Tensor | None) -> Tensor:
    return w if scale is None else (w * scale[:, None, None, None]).to(w.dtype)


def _sum(*terms: Tensor | None) -> Any:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def _filter_layout(w: Tensor, y_channels_last: bool = False) -> bool:
    """Whether dw is to be channels_last: as in torch, if y is, which x or w made so, or if w is."""
    return y_channels_last or not w.is_contiguous()


class _Fprop:
    """act(scale * conv(x, w) + shift + residual); arguments x, w, scale, shift, residual, constants, activation, alpha.

    x (N, C, H, W), w (K, C / groups, R, S), scale and shift (K,) or None, residual (N, K, P, Q) or None.
    """

    @staticmethod
    def run(
        x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, c: Constants,
        activation: str, alpha: float,
    ) -> Tensor:  # fmt: skip
        geometry, flags, kernel, _, _ = c
        with below_autograd():
            return _FPROP(x, w, scale, shift, residual, geometry, activation, alpha, *NO_PROLOGUE, flags, kernel)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], y: Tensor) -> tuple[Tensor | None, ...]:
        x, w, scale, shift, residual, _, activation, _ = args
        # One attribute: each costs a hundred nanoseconds.
        channels_last = not y.is_contiguous()
        ctx.rest = args[5:], x.shape, channels_last, w.shape, _filter_layout(w, channels_last), y.shape
        if activation in FROM_INPUT:
            return x, w, scale, shift, residual, None
        kept = None if activation == "none" else y
        if in_transform() or in_forward_mode():
            return x, w, scale, shift, None, kept
        needs_x, needs_w, needs_scale, *_ = ctx.needs_input_grad
        return x if needs_w or needs_scale else None, w if needs_x or needs_scale else None, scale, shift, None, kept

    @staticmethod
    def through_activation(ctx: Any, t: Tensor, saved: tuple[Any, ...]) -> Tensor:
        """act'(z) * t, which takes dy to dz and, being diagonal, z's tangent to y's."""
        constants, activation, alpha = ctx.rest[0]
        if activation in FROM_OUTPUT:
            return FROM_OUTPUT[activation](t, saved[-1], alpha)
        z = fprop(*saved[:-1], constants, "none", 0.0)
        return FROM_INPUT[activation](t, z)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 8
        saved = x, w, scale, shift, *_ = ctx.saved_tensors
        needs_x, needs_w, needs_scale, needs_shift, needs_residual, *_ = ctx.needs_input_grad
        (constants, *_), x_size, x_channels_last, w_size, w_channels_last, _ = ctx.rest
        dz = _Fprop.through_activation(ctx, dy, saved)
        dx = dw = dscale = dshift = None
        if needs_x:
            dx = dgrad(dz, _times_scale(w, scale), x_size, x_channels_last, constants)
        if needs_w or needs_scale:
            if needs_shift and not in_transform() and not needs_graph(dz, x):
                dw, dshift = _Wgrad.run_with_bias(dz, x, w_size, w_channels_last, constants)
            else:
                dw = wgrad(dz, x, w_size, w_channels_last, constants)
            if needs_scale:  # without conv(x, w) itself: the sum of dz * conv(x, w) over a map is that of dw * w
                dscale = (dw * w).sum((1, 2, 3)).to(scale.dtype)
            dw = _times_scale(dw, scale)
        if needs_shift:
            dshift = (dz.sum((0, 2, 3)) if dshift is None else dshift).to(shift.dtype)
        return dx, dw if needs_w else None, dscale, dshift, dz if needs_residual else None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, x_t: Tensor | None, w_t: Tensor | None, scale_t: Tensor | None, shift_t: Tensor | None,
        residual_t: Tensor | None, *_: None,
    ) -> Tensor:  # fmt: skip
        saved = x, w, scale, *_ = ctx.saved_tensors
        constants = ctx.rest[0][0]

        def conv(x: Tensor | None, w: Tensor | None, scale: Tensor | None) -> Tensor | None:
            if x is None or w is None:
                return None
            return fprop(x, _times_scale(w, scale), None, None, None, constants, "none", 0.0)

        z_t = _sum(
            conv(x_t, w, scale),
            conv(x, w_t, scale),
            None if scale_t is None else conv(x, w, scale_t),
            residual_t,
            None if shift_t is None else shift_t[:, None, None],
        )
        if z_t.dim() == 3:  # of shift alone
            z_t = z_t.expand(ctx.rest[-1])
        return _Fprop.through_activation(ctx, z_t, saved)


class _Dgrad:
    """dx; arguments dy, w, x_size, channels_last (the layout of dx), constants."""

    @staticmethod
    def run(dy: Tensor, w: Tensor, x_size: Sequence[int], channels_last: bool, c: Constants) -> Tensor:
        geometry, flags, _, kernel, _ = c
        with below_autograd():
            return _DGRAD(dy, w, x_size, geometry, channels_last, flags, kernel)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], dx: Tensor) -> tuple[Tensor, ...]:
        dy, w, ctx.x_size, ctx.channels_last, ctx.constants = args
        ctx.w_size, ctx.w_channels_last = w.shape, _filter_layout(w)
        return dy, w

    @staticmethod
    def backward(ctx: Any, ddx: Tensor | None) -> tuple[Tensor | None, ...]:
        if ddx is None:
            return (None,) * 5
        dy, w = ctx.saved_tensors
        needs_dy, needs_w = ctx.needs_input_grad[:2]
        ddy = fprop(ddx, w, None, None, None, ctx.constants, "none", 0.0) if needs_dy else None
        dw = wgrad(dy, ddx, ctx.w_size, ctx.w_channels_last, ctx.constants) if needs_w else None
        return ddy, dw, None, None, None

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor | None, w_t: Tensor | None, *_: None) -> Tensor | None:
        dy, w = ctx.saved_tensors
        rest = ctx.x_size, ctx.channels_last, ctx.constants
        return _sum(
            None if dy_t is None else dgrad(dy_t, w, *rest),
            None if w_t is None else dgrad(dy, w_t, *rest),
        )


class _Wgrad:
    """dw; arguments dy, x, w_size, channels_last (the layout of dw), constants."""

    @staticmethod
    def run(dy: Tensor, x: Tensor, w_size: Sequence[int], channels_last: bool, c: Constants) -> Tensor:
        return _Wgrad.call(dy, x, w_size, False, channels_last, c)[0]

    @staticmethod
    def run_with_bias(
        dy: Tensor, x: Tensor, w_size: Sequence[int], channels_last: bool, c: Constants
    ) -> tuple[Tensor, Tensor]:
        """(dw, db) in one pass over dy; not differentiable."""
        return _Wgrad.call(dy, x, w_size, True, channels_last, c)

    @staticmethod
    def call(
        dy: Tensor, x: Tensor, w_size: Sequence[int], bias: bool, channels_last: bool, c: Constants
    ) -> tuple[Tensor, Tensor]:
        geometry, flags, _, _, kernel = c
        with below_autograd():
            return _WGRAD(dy, x, w_size, geometry, bias, channels_last, *NO_PROLOGUE, flags, kernel)

    @staticmethod
    def save(ctx: Any, args: tuple[Any, ...], dw: Tensor) -> tuple[Tensor, ...]:
        dy, x, ctx.w_size, ctx.channels_last, ctx.constants = args
        ctx.x_size, ctx.x_channels_last = x.shape, not x.is_contiguous()
        return dy, x

    @staticmethod
    def backward(ctx: Any, ddw: Tensor | None) -> tuple[Tensor | None, ...]:
        if ddw is None:
            return (None,) * 5
        dy, x = ctx.saved_tensors
        needs_dy, needs_x = ctx.needs_input_grad[:2]
        ddy = fprop(x, ddw, None, None, None, ctx.constants, "none", 0.0) if needs_dy else None
        dx = dgrad(dy, ddw, ctx.x_size, ctx.x_channels_last, ctx.constants) if needs_x else None
        return ddy, dx, None, None, None

    @staticmethod
    def jvp(ctx: Any, dy_t: Tensor | None, x_t: Tensor | None, *_: None) -> Tensor | None:
        dy, x = ctx.saved_tensors
        rest = ctx.w_size, ctx.channels_last, ctx.constants
        return _sum(
            None if dy_t is None else wgrad(dy_t, x, *rest),
            None if x_t is None else wgrad(dy, x_t, *rest),
        )


def fprop_with_prologue(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, c: Constants,
    activation: str, alpha: float, prologue: Prologue,
) -> Tensor:  # fmt: skip
    """:data:`fprop` of x read through a prologue; not differentiable."""
    with below_autograd():
        return _FPROP(x, w, scale, shift, residual, c.geometry, activation, alpha, *prologue, c.flags, c.fprop_kernel)


def registered_fprop(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, c: Constants,
    activation: str, alpha: float, prologue: Prologue = NO_PROLOGUE,
) -> Tensor:  # fmt: skip
    """The operator called as it is, for graphs: register_autograd below knows its derivative."""
    return ops.FPROP(x, w, scale, shift, residual, c.geometry, activation, alpha, *prologue, c.flags, c.fprop_kernel)


fprop = differentiable(_Fprop)
dgrad = differentiable(_Dgrad)
wgrad = differentiable(_Wgrad)


def _plain_fprop(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: tuple[int, ...], flags: int, kernel: str | None
) -> Tensor:
    """conv(x, w) + bias, not differentiable; a mode (make_fx's) is shown the operator that has a derivative."""
    if torch._C._len_torch_dispatch_stack():
        return _Fprop.run(x, w, None, bias, None, Constants(geometry, flags, kernel), "none", 0.0)
    return _FPROP_PLAIN(x, w, bias, geometry, flags, kernel)


class _Conv2d(Function):
    """conv(x, w) + bias in a training step: _Fprop without what the step does not use.

    On a 1x8x8x8 input, where a step is overhead, that takes a seventh off it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: tuple[int, ...], flags: int, kernels: Kernels
    ) -> Tensor:
        y = _plain_fprop(x, w, bias, geometry, flags, kernels.fprop)
        needs_x, needs_w, *_ = ctx.needs_input_grad
        unsaved = None
        if needs_x and needs_w:
            ctx.save_for_backward(x, w)
        else:
            ctx.save_for_backward(x if needs_w else None, w if needs_x else None)
            channels_last = not y.is_contiguous()
            unsaved = x.shape, channels_last, w.shape, _filter_layout(w, channels_last)
        ctx.rest = geometry, flags, kernels, unsaved
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        geometry, flags, kernels, unsaved = ctx.rest
        needs_x, needs_w, needs_bias, *_ = ctx.needs_input_grad
        plain = not (torch.is_grad_enabled() or in_transform() or in_forward_mode())
        if plain and unsaved is None:
            with below_autograd():
                dx, dw, db = _BACKWARD(dy, x, w, geometry, needs_bias, flags, *kernels[1:])
            return dx, dw, db if needs_bias else None, None, None, None
        c = Constants(geometry, flags, *kernels)
        if unsaved is None:
            channels_last = ops.gives_channels_last(x, w)
            unsaved = x.shape, channels_last, w.shape, channels_last
        x_size, x_channels_last, w_size, w_channels_last = unsaved
        dx = dw = db = None
        if needs_x:
            dx = dgrad(dy, w, x_size, x_channels_last, c)
        if plain and needs_w and needs_bias:
            dw, db = _Wgrad.run_with_bias(dy, x, w_size, w_channels_last, c)
        elif needs_w:
            dw = wgrad(dy, x, w_size, w_channels_last, c)
        if needs_bias and db is None:
            db = dy.sum((0, 2, 3))
        return dx, dw, db, None, None, None


# Function.apply without the Python around it that looks for a transform of torch.func: conv2d() has looked.
_apply_conv2d = super(Function, _Conv2d).apply


def conv2d(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: tuple[int, ...], flags: int, kernels: Kernels
) -> Tensor:
    """conv(x, w) + bias, differentiable in every way that :func:`fprop` is."""
    if in_transform() or in_forward_mode():
        return fprop(x, w, None, bias, None, Constants(geometry, flags, *kernels), "none", 0.0)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(x, w, bias):
        return _apply_conv2d(x, w, bias, geometry, flags, kernels)
    return _plain_fprop(x, w, bias, geometry, flags, kernels.fprop)


def rerun(ctx: Any, positions: Sequence[int], compute: Callable[..., Any], dy: Any) -> tuple[Tensor | None, ...]:
    """Gradients of an operator that keeps no intermediate, through ``compute``, a differentiable form of it.

    ctx.saved_tensors are the arguments at ``positions``, which compute takes; dy is the gradient of its result.
    """
    tensors, create_graph = ctx.saved_tensors, torch.is_grad_enabled()
    needed = [tensor for i, tensor in zip(positions, tensors, strict=True) if ctx.needs_input_grad[i]]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(compute(*tensors), needed, dy, create_graph=create_graph))
    return tuple(next(found) if needs else None for needs in ctx.needs_input_grad)


_FPROP_TENSORS = (0, 1, 2, 3, 4, 8, 9)  # positions among the operators' arguments
_WGRAD_TENSORS = (0, 1, 6, 7)


def _fprop_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, geometry, activation, alpha, x_scale, x_shift, x_activation, x_alpha, flags, kernel = inputs
    constants = Constants(geometry, flags, kernel)
    if (x_scale, x_shift, x_activation) == (None, None, None):
        ctx.save_for_backward(*_Fprop.save(ctx, (*operands, constants, activation, alpha), output))
        ctx.compute = None
        return

    def compute(x: Tensor, w: Tensor, scale: Any, shift: Any, residual: Any, x_scale: Any, x_shift: Any) -> Tensor:
        t = composed.prologue(x, x_scale, x_shift, x_activation, x_alpha)
        return fprop(t, w, scale, shift, residual, constants, activation, alpha)

    ctx.save_for_backward(*(inputs[i] for i in _FPROP_TENSORS))
    ctx.compute = compute


def _fprop_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.compute is not None:
        return rerun(ctx, _FPROP_TENSORS, ctx.compute, dy)
    return *_Fprop.backward(ctx, dy)[:5], *(None,) * 9


def _dgrad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, w, x_size, geometry, channels_last, flags, kernel = inputs
    constants = Constants(geometry, flags, dgrad_kernel=kernel)
    ctx.save_for_backward(*_Dgrad.save(ctx, (dy, w, x_size, channels_last, constants), output))


def _wgrad_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dy, x, w_size, geometry, bias, channels_last, x_scale, x_shift, x_activation, x_alpha, flags, kernel = inputs
    constants = Constants(geometry, flags, wgrad_kernel=kernel)

    def compute(dy: Tensor, x: Tensor, x_scale: Any, x_shift: Any) -> tuple[Tensor, Tensor]:
        t = composed.prologue(x, x_scale, x_shift, x_activation, x_alpha)
        return wgrad(dy, t, w_size, channels_last, constants), _bias_gradient(dy, bias)

    ctx.save_for_backward(dy, x, x_scale, x_shift)
    ctx.compute = compute


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, w, geometry, bias, flags, *kernels = inputs
    constants = Constants(geometry, flags, None, *kernels)

    def compute(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        channels_last = ops.gives_channels_last(x, w)
        dx, dw = dgrad(dy, w, x.shape, channels_last, constants), wgrad(dy, x, w.shape, channels_last, constants)
        return dx, dw, _bias_gradient(dy, bias)

    ctx.save_for_backward(dy, x, w)
    ctx.compute = compute


def _bias_gradient(dy: Tensor, bias: bool) -> Tensor:
    return dy.sum((0, 2, 3)) if bias else dy[:0, 0, 0, 0]


torch.library.register_autograd("cnnkern::conv2d_fprop", _fprop_backward, setup_context=_fprop_setup)
torch.library.register_autograd(
    "cnnkern::conv2d_dgrad",
    lambda ctx, ddx: (*_Dgrad.backward(ctx, ddx)[:2], *(None,) * 5),
    setup_context=_dgrad_setup,
)
torch.library.register_autograd(
    "cnnkern::conv2d_wgrad",
    lambda ctx, *ddw: rerun(ctx, _WGRAD_TENSORS, ctx.compute, ddw),
    setup_context=_wgrad_setup,
)
torch.library.register_autograd(
    "cnnkern::conv2d_backward",
    lambda ctx, *gradients: rerun(ctx, (0, 1, 2), ctx.compute, gradients),
    setup_context=_backward_setup,
)
