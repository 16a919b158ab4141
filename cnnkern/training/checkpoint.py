"""A run's state in a file that a kill leaves whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save(state: dict[str, Any], path: Path) -> None:
    """Writes ``state`` so that ``path`` is at every moment the old file or the new one, through a crash too."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the name, too, is on the disk
    finally:
        os.close(directory)


def load(path: Path) -> Any:
    """What was saved, tensors on the CPU. Only data is read: a file cannot run code."""
    return torch.load(path, map_location="cpu", weights_only=True)
