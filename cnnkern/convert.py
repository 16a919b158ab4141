"""A whole model on cnnkern's kernels, and back.

A convolution is converted by giving the module object the class :class:`cnnkern.Conv2d`, which has the same state as
nn.Conv2d. So the object, its parameters (an optimizer's too, and tied ones), its hooks and its mode stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from cnnkern.nn import Conv2d

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

# Set on the modules whose parameters convert() moved to channels_last, so that revert() moves those back.
_MOVED = "_cnnkern_moved"


class Error(NamedTuple):
    """Largest deviations from the float64 convolution, each relative to its largest output."""

    ours: float
    torch: float
    tolerance: float
    """For ours: four times torch's, or rounding, whichever is more."""


@dataclass(frozen=True)
class Layer:
    """What became of one convolution: ``reason`` says why it was skipped, and is empty where it was converted."""

    name: str
    module: str
    reason: str = ""
    error: Error | None = None
    """Present where the layer was verified."""

    @property
    def converted(self) -> bool:
        """Whether the layer runs on cnnkern's kernels now."""
        return not self.reason


@dataclass(frozen=True)
class Report:
    """What :func:`convert` did, layer by layer; prints as a table."""

    layers: tuple[Layer, ...]
    moved: int
    """Layers whose weights were moved to channels_last."""

    @property
    def converted(self) -> tuple[Layer, ...]:
        """The layers that run on cnnkern's kernels now."""
        return tuple(layer for layer in self.layers if layer.converted)

    @property
    def skipped(self) -> tuple[Layer, ...]:
        """The layers that were left as they were."""
        return tuple(layer for layer in self.layers if not layer.converted)

    def __str__(self) -> str:
        rows = [("layer", "module", "result")]
        rows += [(layer.name or "(the model)", layer.module, _result(layer)) for layer in self.layers]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        total = f"{len(self.converted)} of {len(self.layers)} convolutions converted"
        return "\n".join([*lines, f"{total}, {self.moved} of them moved to channels_last"])


def convert(
    model: nn.Module,
    where: Callable[[str, nn.Module], bool] | None = None,
    verify: bool = False,
    example: Tensor | tuple | None = None,
) -> Report:
    """Moves the 2-D convolutions of ``model`` to cnnkern's kernels, in place, and their weights to channels_last.

    A layer that is not exactly an nn.Conv2d (a subclass, a parametrized, lazy, transposed, 1-D or 3-D one) is left as
    it is, and the report says why. Nothing is cloned or wrapped. What knows layers by their class, as
    torch.ao.quantization does, takes a converted one for a stranger: :func:`revert` first.

    Args:
        model: any module; it may itself be an nn.Conv2d.
        where: takes a layer's qualified name and the module; False leaves the layer out.
        verify: first compare each layer on cnnkern's kernels with torch's convolution, both against float64. A layer
            whose error is above its tolerance is not converted, and reported.
        example: the model's input (a tuple of several) for ``verify``, which then compares the layers on what reaches
            them, in eval mode. Without it, they are compared on random images.

    Returns a :class:`Report` with one :class:`Layer` per convolution, in the model's order.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, _Convolution)}
    layers = {
        name: Layer(name, f"{module._get_name()}({module.extra_repr()})", _why_not(name, module, where))
        for name, module in modules.items()
    }
    if verify:
        for name, error in _errors(model, _chosen(modules, layers), example).items():
            right = error.ours <= error.tolerance  # a NaN is not
            layers[name] = replace(layers[name], reason="" if right else "wrong result", error=error)
    moved = [_become_cnnkern(module) for module in _chosen(modules, layers).values()]
    return Report(tuple(layers.values()), sum(moved))


def revert(model: nn.Module) -> nn.Module:
    """Gives every :class:`cnnkern.Conv2d` in ``model`` torch's class back, and its weights the layout that they had.

    In place, and the opposite of :func:`convert`: parameters, hooks and mode are kept. Returns ``model``.
    """
    for module in model.modules():
        if type(module) is Conv2d:
            _become_torch(module)
    return model


def _chosen(modules: dict[str, _Convolution], layers: dict[str, Layer]) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in modules.items() if isinstance(m, nn.Conv2d) and layers[name].converted}


def _become_cnnkern(module: nn.Conv2d) -> bool:
    """Whether the weight had to be moved to channels_last."""
    module.__class__ = Conv2d
    if _is_channels_last(module.weight):
        return False
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    setattr(module, _MOVED, True)
    return True


def _become_torch(module: nn.Conv2d) -> None:
    module.__class__ = nn.Conv2d
    if hasattr(module, _MOVED):
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        delattr(module, _MOVED)


def _is_channels_last(weight: Tensor) -> bool:
    """Stricter than is_contiguous(): a 1x1 filter is contiguous in both formats, and its strides say which is meant."""
    return weight.stride() == torch.empty_like(weight, memory_format=torch.channels_last, device="meta").stride()


def _why_not(name: str, module: _Convolution, where: Callable[[str, nn.Module], bool] | None) -> str:
    """Why the convolution is left as it is; empty if it is to be converted."""
    if type(module) is not nn.Conv2d:
        return _why_not_class(module)
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "its forward was replaced"
    if where is not None and not where(name, module):
        return "left out by `where`"
    return ""


def _why_not_class(module: _Convolution) -> str:
    if type(module) is Conv2d:
        return "on cnnkern's kernels before"
    if is_parametrized(module):
        return "parametrized: its class belongs to torch.nn.utils.parametrize"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: call the model once before"
    if module.transposed:
        return "transposed"
    if not isinstance(module, nn.Conv2d):
        return f"{len(module.kernel_size)}-D"
    return f"a subclass of nn.Conv2d: {type(module).__qualname__} may compute something else"


def _errors(model: nn.Module, chosen: dict[str, nn.Conv2d], example: Tensor | tuple | None) -> dict[str, Error]:
    """Each layer's error on what ``example`` brings to it (the worst of its calls), or on random images."""
    errors: dict[str, Error] = {}

    def compare(name: str, module: nn.Conv2d, input: Tensor) -> None:
        measured = _error(module, input)
        errors[name] = max(errors.get(name, measured), measured, key=lambda error: error.ours - error.tolerance)

    with torch.no_grad():
        if example is None:
            for name, module in chosen.items():
                compare(name, module, _random_images(module))
        else:
            _run_hooked(model, chosen, compare, example if isinstance(example, tuple) else (example,))
    return errors


def _run_hooked(
    model: nn.Module,
    chosen: dict[str, nn.Conv2d],
    compare: Callable[[str, nn.Conv2d, Tensor], None],
    inputs: tuple,
) -> None:
    """Runs the model on ``inputs`` in eval mode, comparing each chosen layer on its own input."""

    def hook(name: str) -> Callable:
        return lambda module, args: compare(name, module, args[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in chosen.items()]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def _random_images(module: nn.Conv2d) -> Tensor:
    """Two images in which every filter tap meets both pixels and padding."""
    extent = [dilation * (size - 1) + 1 for size, dilation in zip(module.kernel_size, module.dilation, strict=True)]
    generator = torch.Generator(module.weight.device).manual_seed(0)
    size = (2, module.in_channels, extent[0] + 13, extent[1] + 13)
    return torch.randn(size, generator=generator, dtype=module.weight.dtype, device=module.weight.device)


def _error(module: nn.Conv2d, input: Tensor) -> Error:
    def output(cls: type[nn.Conv2d], x: Tensor) -> Tensor:
        weight = module.weight.to(x.dtype, memory_format=torch.channels_last)
        return cls._conv_forward(module, x, weight, None if module.bias is None else module.bias.to(x.dtype))

    wide = torch.promote_types(input.dtype, torch.float64)
    exact = output(nn.Conv2d, input.to(wide))
    scale = exact.abs().max().clamp_min(torch.finfo(wide).tiny)
    ours, torchs = (((output(cls, input) - exact).abs().max() / scale).item() for cls in (Conv2d, nn.Conv2d))
    rounding = torch.finfo(input.dtype).eps * module.weight[0].numel() ** 0.5
    return Error(ours, torchs, max(4 * torchs, rounding))


def _result(layer: Layer) -> str:
    result = f"skipped: {layer.reason}" if layer.reason else "converted"
    if layer.error is None:
        return result
    return f"{result}, error {layer.error.ours:.1e} (torch {layer.error.torch:.1e})"
