"""Models by name: one of cnnkern.models, or a callable of the user's own."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

IMAGE = (3, 224, 224)


@dataclass(frozen=True)
class Net:
    """A model that has a name, and what is known of it."""

    name: str
    input: tuple[int, int, int] = IMAGE
    """(C, H, W) of the images that it was published for."""
    top5: float | None = None
    """Its published top-5 error on ImageNet in percent."""
    source: str = ""
    """How that was measured."""

    def build(self, device: str = "cpu") -> nn.Module:
        """A new model, on a device if it is one of cnnkern.models.

        Raises ValueError where there is no such callable, TypeError where it gives something else.
        """
        if ":" not in self.name:
            with torch.device(device):
                return _models().create(self.name)
        package, _, attribute = self.name.partition(":")
        try:
            model = getattr(importlib.import_module(package), attribute)()
        except (ModuleNotFoundError, AttributeError) as error:
            raise ValueError(f"there is no {self.name}: {error}") from error
        if not isinstance(model, nn.Module):
            raise TypeError(f"{self.name}() gives no nn.Module but a {type(model).__name__}")
        return model


def find(name: str) -> Net:
    """The net called ``name``, of ``cnnkern.models.list()`` or "package.module:callable".

    Raises ValueError for another name.
    """
    if ":" in name:
        return Net(name)
    entry = _models().entry(name)
    top5, source = (entry.error.top5, entry.error.source) if entry.error else (None, "")
    return Net(name, entry.input_size, top5, source)


def _models() -> Any:
    """cnnkern.models, imported when a name asks for it."""
    return importlib.import_module("cnnkern.models")
