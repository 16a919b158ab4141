"""cnnkern.explain: which kernel runs, why, and why each other one does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cnnkern import dispatch, functional, tune
from cnnkern.arguments import alpha_of, geometry_of, why_not_own
from cnnkern.backends import Candidate
from cnnkern.problem import DIRECTIONS, ConvProblem, Epilogue, Prologue

# The kernels' layout of each operand, and the operands' names by direction: the first is what is written.
_NATIVE = {"x_layout": "nhwc", "w_layout": "krsc", "y_layout": "nhwc"}
_OPERANDS = {
    "fprop": {"y": "y_layout", "x": "x_layout", "w": "w_layout"},
    "dgrad": {"dx": "x_layout", "dy": "y_layout", "w": "w_layout"},
    "wgrad": {"dw": "w_layout", "dy": "y_layout", "x": "x_layout"},
}

_TUNED = "it was the fastest when the problem was tuned on this machine"


@dataclass(frozen=True)
class Explanation:
    """The answer for one problem; prints as a table."""

    problem: ConvProblem
    kernel: str
    """The kernel that runs; empty if none can."""
    reason: str
    candidates: tuple[Candidate, ...]
    """Every kernel that was asked, with its answer, in dispatch order."""
    copies: tuple[str, ...]
    """What is copied because of its layout, one sentence each."""

    def __str__(self) -> str:
        lines = [f"problem  {self.problem}", f"kernel   {self.kernel or 'none'}", f"why      {self.reason}"]
        lines += [f"copy     {copy}" for copy in self.copies]
        others = [candidate for candidate in self.candidates if candidate.kernel != self.kernel]
        width = max((len(candidate.kernel) for candidate in others), default=0)
        lines += ["others"] if others else []
        lines += [f"  {candidate.kernel:{width}}  {self._why_not(candidate)}" for candidate in others]
        lines += [f"handed to the vendor so far: {n} x {why}" for why, n in dispatch.fallback_counts().items()]
        return "\n".join(lines)

    __repr__ = __str__

    def _why_not(self, candidate: Candidate) -> str:
        if candidate.why_not:
            return f"cannot: {candidate.why_not}"
        if self.reason == _TUNED:
            return candidate.rather_not or "can, but was not the fastest"
        return candidate.rather_not or "can, but comes later"


def explain(subject: Any, *args: Any, **kwargs: Any) -> Explanation | tuple[Explanation, ...]:
    """Tells which kernel runs a convolution under the current settings, why, and why each other one does not.

    Args:
        subject: one of
            a problem string or :class:`ConvProblem`, for tensors on the CPU or, with ``device="cuda"``, on a GPU
            (on an H200 where there is none);
            a module, with its input or the input's size after it: one answer for each nn.Conv2d that is called;
            ``conv2d`` or ``fused_conv2d`` of :mod:`cnnkern.functional`, with the call's arguments after it.
        args, kwargs: as the subject needs them. ``direction="dgrad"`` asks about another direction than fprop.

    Returns one :class:`Explanation` (print it), or a tuple of them for a module that is not itself a convolution.
    Nothing is computed, except that a module which holds convolutions runs once. Raises ValueError for a problem that
    cannot be read and TypeError for any other subject.
    """
    if isinstance(subject, str):
        subject = ConvProblem.parse(subject)
    if isinstance(subject, ConvProblem):
        return _explained(subject, *args, **kwargs)
    direction = kwargs.pop("direction", DIRECTIONS[0])
    if isinstance(subject, nn.Conv2d):
        return _explain_call(functional.conv2d, direction, *_call_of(subject, *args))
    if isinstance(subject, nn.Module):
        return _explain_layers(subject, direction, *args)
    if subject in (functional.conv2d, functional.fused_conv2d):
        return _explain_call(subject, direction, *args, **kwargs)
    raise TypeError(f"explain() takes a problem, a module or a function of cnnkern.functional, not {subject!r}")


def _call_of(conv: nn.Conv2d, x: Tensor | Sequence[int]) -> tuple[Any, ...]:
    """The arguments with which the module calls conv2d."""
    if not isinstance(x, Tensor):
        x = torch.empty(x, dtype=conv.weight.dtype, device=conv.weight.device)
    padding = conv.padding
    if conv.padding_mode != "zeros":
        x, padding = nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), (0, 0)
    return x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups


def _explain_layers(model: nn.Module, direction: str, x: Tensor | Sequence[int]) -> tuple[Explanation, ...]:
    found: list[Explanation] = []

    def hook(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        found.append(_explain_call(functional.conv2d, direction, *_call_of(module, inputs[0])))

    handles = [m.register_forward_pre_hook(hook) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            model(x if isinstance(x, Tensor) else torch.empty(x))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)


def _explain_call(function: Callable[..., Tensor], direction: str, *args: Any, **kwargs: Any) -> Explanation:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    call = bound.arguments
    x = call["input"] if call["input"].dim() == 4 else call["input"].unsqueeze(0)
    w = call["weight"]
    geometry = geometry_of(w, call["stride"], call["padding"], call["dilation"], call["groups"])
    reason = why_not_own(x, w, call["bias"])
    if geometry is None or reason:
        raise ValueError(f"this call is torch's to answer: {reason or 'its stride, padding or dilation is unusual'}")
    epilogue = Epilogue(
        call.get("activation", "none"),
        scale=call.get("scale") is not None,
        shift=call["bias"] is not None or call.get("shift") is not None,
        residual=call.get("residual") is not None,
        alpha=alpha_of(call.get("activation", "none"), call.get("alpha")),
    )
    prologue = Prologue(
        call.get("input_activation", "none"),
        scale=call.get("input_scale") is not None,
        shift=call.get("input_shift") is not None,
        alpha=alpha_of(call.get("input_activation", "none"), call.get("input_alpha")),
    )
    problem = ConvProblem.of(x, w, geometry, direction)
    if direction != "dgrad":
        problem = replace(problem, prologue=prologue)
    if direction == "fprop":
        problem = replace(problem, epilogue=epilogue)
    return _explained(problem, x.device.type, call["kernel"])


def _explained(problem: ConvProblem, device: str = "cpu", kernel: str | None = None) -> Explanation:
    settings = dispatch.settings()
    forced = kernel or getattr(settings.kernels, problem.direction)
    asked = dispatch.candidates(problem, settings.flags, device=device)
    copies = _copies(problem)
    if forced:
        why_not = next((candidate.why_not for candidate in asked if candidate.kernel == forced), "there is none")
        reason = "it is asked for by name" + (f", and cannot: {why_not}" if why_not else "")
        return Explanation(problem, forced, reason, tuple(asked), copies)
    backend = settings.backend
    try:
        chosen = dispatch.choose(problem, settings.flags, backend, device)
    except dispatch.NoKernelError:
        vendor = next(candidate for candidate in asked if candidate.kernel.startswith("vendor"))
        chosen = "" if settings.backend or vendor.why_not else vendor.kernel
        return Explanation(problem, chosen, f"no {backend or 'own'} kernel can", tuple(asked), copies)
    answer = next(candidate for candidate in asked if candidate.kernel == chosen)
    reason = "the first in order that can and has nothing against it"
    if settings.backend:
        reason += f", of the backend that is asked for: {backend}"
    if chosen == tune.choice(problem, device):
        reason = _TUNED
    elif answer.rather_not:
        reason = f"the only one left that can, though: {answer.rather_not}"
    return Explanation(problem, chosen, reason, tuple(asked), () if backend == "vendor" else copies)


def _copies(problem: ConvProblem) -> tuple[str, ...]:
    written, *_ = _OPERANDS[problem.direction]
    sentences = []
    for name, field in _OPERANDS[problem.direction].items():
        layout, native = getattr(problem, field), _NATIVE[field]
        if layout != native:
            computed = f"{name} is computed in {native} and copied to {layout}"
            sentences.append(computed if name == written else f"{name} is {layout}: it is copied to {native}")
    return tuple(sentences)
