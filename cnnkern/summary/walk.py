"""The layers of a model in the order in which they run, read off one pass on fake tensors.

A fake tensor has a shape and no data, so nothing is computed and nothing allocated. The pass is watched at the level of
torch's operators: a functional call is seen like a module, and only what runs is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from cnnkern import dispatch
from cnnkern.summary.operators import Call, Reading, field_behind, read
from cnnkern.summary.receptive_field import Field, Window

BYTES = 4  # of a value, in the lectures' tables
NUMBERED = ("conv", "fc")


@dataclass(frozen=True)
class Layer:
    """One layer as it ran. Sizes and counts are of one image; what a layer does not have is empty, 0 or None."""

    kind: str
    """conv, pool, fc or flatten; else the class of the module, or the operator where no module is called for it."""
    number: int
    """How many conv and fc layers there are up to here, itself included."""
    module: str
    """The qualified name of the innermost module that was running; empty for the model itself."""
    c_in: int
    size_in: tuple[int, ...]
    c_out: int
    size_out: tuple[int, ...]
    window: Window | None
    field: Field | None
    values: int
    """Elements of the output; 0 for a layer that changes its input in place."""
    weights: tuple[str, ...]
    """The names of the parameters that it is the first to read."""
    parameters: int
    """How many numbers those have."""
    flops: int
    """Multiply-adds."""

    @property
    def label(self) -> str:
        """The kind, and the number of the conv or fc layer that it is, or that a pool follows: conv5, pool5, fc6."""
        return f"{self.kind}{self.number}" if self.kind in (*NUMBERED, "pool") else self.kind


@dataclass(frozen=True)
class Total:
    """Sums over layers, of one image."""

    layers: int
    values: int
    parameters: int
    flops: int

    @classmethod
    def of(cls, layers: Iterable[Layer]) -> Total:
        """The sums over these layers."""
        chosen = list(layers)
        return cls(
            layers=len(chosen),
            values=sum(layer.values for layer in chosen),
            parameters=sum(layer.parameters for layer in chosen),
            flops=sum(layer.flops for layer in chosen),
        )

    @property
    def megabytes(self) -> float:
        """What the values take, in 2^20 bytes."""
        return self.values * BYTES / 2**20


def walk(
    model: nn.Module, size: Sequence[int], batch: int, parameters: Mapping[str, nn.Parameter], every: bool = False
) -> list[Layer]:
    """The layers of ``model`` in eval mode on ``batch`` images of ``size`` (C, H, W).

    Layers that change values in place (an activation, a normalisation, a sum of branches) are left out, unless they
    read one of the ``parameters``, the model's by name, or ``every`` one is asked for. The model is left as it was.
    """
    like = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _in_eval_mode(model), dispatch.use(backend="vendor"), torch.no_grad(), fake:
        image = torch.empty(batch, *size, dtype=like.dtype, device=like.device)
        watch = _Watch(image, parameters, every)
        with watch.following(model), watch:
            model(image)
    return watch.layers


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(eq=False)
class _Running:
    """A call of a module that has not returned yet."""

    name: str
    module: nn.Module

    @property
    def is_layer(self) -> bool:
        """Whether it is one layer, however many operators it calls: a module within the model, with none within it."""
        return bool(self.name) and next(self.module.children(), None) is None


class _Watch(TorchDispatchMode):
    """Follows what becomes of the image, with its receptive field, and of the parameters, with their names."""

    def __init__(self, image: Tensor, parameters: Mapping[str, nn.Parameter], every: bool) -> None:
        super().__init__()
        self.batch, self.parameters, self.every = image.shape[0], parameters, every
        self.layers: list[Layer] = []
        self.fields, self.names = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.fields[image] = Field()
        self.names.update((parameter, (name,)) for name, parameter in parameters.items())
        self.counted: set[str] = set()
        self.running: list[_Running] = []
        self.noted: _Running | None = None  # the call that the last layer is of

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Knows within it which module runs. The hooks also make fused modules call their layers one by one."""
        hooks: list[Any] = []
        for name, module in model.named_modules():
            enter = lambda module, _, name=name: self.running.append(_Running(name, module))  # noqa: E731
            leave = lambda *_: self.running.pop() and None  # noqa: E731
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, overload: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator, and notes the layer that it is."""
        kwargs = kwargs or {}
        operands = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        fields = [(tensor, self.fields[tensor]) for tensor in operands if tensor in self.fields]
        names = tuple(dict.fromkeys(name for tensor in operands for name in self.names.get(tensor, ())))
        result = overload(*args, **kwargs)
        results = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        if fields and results:
            call = Call(overload, args, kwargs, fields[0][0], results[0], self.batch)
            reading = read(call)
            field = field_behind(call, reading, fields)
            self.fields.update((tensor, field) for tensor in results)
            self.note(call, reading, field, names)
        elif names:
            self.names.update((tensor, names) for tensor in results)
        return result

    def note(self, call: Call, reading: Reading, field: Field | None, names: tuple[str, ...]) -> None:
        """Adds the layer to the list, if the list is to have it, or what it reads to the layer that it is part of."""
        now = self.running[-1]
        weights = tuple(name for name in names if name not in self.counted)
        self.counted.update(weights)
        parameters = sum(self.parameters[name].numel() for name in weights)
        if not reading.kind and now.is_layer and now is self.noted:
            last = self.layers[-1]
            whole = replace(last, weights=last.weights + weights, parameters=last.parameters + parameters)
            self.layers[-1] = whole
        elif reading.kind or weights or (self.every and not call.rearranges):
            self.noted = now
            self.layers.append(self.layer(call, reading, field, weights, parameters))

    def layer(
        self, call: Call, reading: Reading, field: Field | None, weights: tuple[str, ...], parameters: int
    ) -> Layer:
        """The layer that a call is."""
        now = self.running[-1]
        c_in, size_in = call.maps_of(call.x)
        c_out, size_out = call.maps_of(call.y)
        return Layer(
            kind=reading.kind or (type(now.module).__name__ if now.is_layer else call.name),
            number=sum(layer.kind in NUMBERED for layer in self.layers) + (reading.kind in NUMBERED),
            module=now.name,
            c_in=c_in,
            size_in=size_in,
            c_out=c_out,
            size_out=size_out,
            window=reading.window,
            field=field,
            values=call.values if reading.kind else 0,
            weights=weights,
            parameters=parameters,
            flops=reading.flops,
        )
