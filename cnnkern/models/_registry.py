"""Every architecture by name: how it is built, what it is for, and where it was published."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from cnnkern.models._errors import ERRORS, Error
from cnnkern.models._network import Network

# build(name, num_classes, in_channels, **options): the options are its keyword-only parameters.
Builder = Callable[..., Network]


@dataclass(frozen=True)
class Entry:
    """An architecture of the package."""

    name: str
    build: Builder
    year: int
    paper: str
    """Authors and where to find it."""
    input_size: tuple[int, int, int]
    """(C, H, W) of the images that it was published for."""
    smallest: int
    """The least height and width of images in eval mode."""
    num_classes: int
    torchvision: bool
    """Whether torchvision has it, with the same name and the same keys in its state_dict."""
    error: Error | None

    @property
    def options(self) -> tuple[str, ...]:
        """The options that :func:`create` takes for it."""
        parameters = inspect.signature(self.build).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


_entries: dict[str, Entry] = {}


def register(
    *names: str,
    year: int,
    paper: str,
    smallest: int,
    input_size: tuple[int, int, int] = (3, 224, 224),
    num_classes: int = 1000,
    torchvision: bool = False,
) -> Callable[[Builder], Builder]:
    """Decorates the builder of one or several architectures with the facts of :class:`Entry`."""

    def add(build: Builder) -> Builder:
        for name in names:
            facts = (name, build, year, paper, input_size, smallest, num_classes, torchvision, ERRORS.get(name))
            _entries[name] = Entry(*facts)
        return build

    return add


def names(pattern: str = "*") -> list[str]:
    """The names of all architectures, sorted, or of those that a shell-style pattern fits: ``names("resnet*")``."""
    return sorted(name for name in _entries if fnmatchcase(name, pattern))


def entry(name: str) -> Entry:
    """The facts of an architecture. Raises ValueError, with the names that come near, if there is none so named."""
    if name not in _entries:
        near = difflib.get_close_matches(name, _entries) or names()
        raise ValueError(f"there is no model {name!r}: did you mean {', '.join(near)}?")
    return _entries[name]


def create(name: str, num_classes: int | None = None, in_channels: int | None = None, **options: Any) -> Network:
    """A new model in training mode, float32 unless torch's default is another.

    Args:
        name: one of :func:`names`.
        num_classes, in_channels: as published (1000 and 3 for ImageNet's architectures) if None.
        options: the architecture's own, ``entry(name).options``; for example ``aux`` (auxiliary classifiers),
            ``width`` (a multiplier of all maps), ``drop_path`` (the probability that the last residual branch is
            skipped in training, falling linearly to none for the first), ``stride_in`` (of a bottleneck: "1x1" as
            published or "3x3").

    Convolutions, and linear layers before an activation, are drawn as He et al. (arXiv 1502.01852) have them, the last
    layer small, so that the first loss is near ln(num_classes). Raises ValueError for a name or a value that there is
    not, and TypeError for an option.
    """
    facts = entry(name)
    if unknown := set(options) - set(facts.options):
        valid = f"it takes {', '.join(facts.options)}" if facts.options else "it takes none"
        raise TypeError(f"{name} has no option {', '.join(sorted(unknown))}: {valid}")
    classes = facts.num_classes if num_classes is None else num_classes
    model = facts.build(name, classes, facts.input_size[0] if in_channels is None else in_channels, **options)
    model.name, model.smallest = name, facts.smallest
    return model


def load_torchvision(name: str, state_dict: Mapping[str, Tensor], **options: Any) -> Network:
    """The model ``name`` with torchvision's weights, strictly: each key of one is a key of the other.

    Args:
        name: an architecture that torchvision has under that name.
        state_dict: of torchvision's model, or of a checkpoint that it publishes.
        options: as :func:`create`, num_classes and in_channels included.

    Raises ValueError if torchvision does not have the architecture, and RuntimeError where a key or shape differs.
    """
    if not entry(name).torchvision:
        known = ", ".join(other for other in names() if entry(other).torchvision)
        raise ValueError(f"torchvision has no {name} of this definition; it has {known}")
    model = create(name, **options)
    model.load_state_dict({model.current_key(key): value for key, value in state_dict.items()})
    return model
