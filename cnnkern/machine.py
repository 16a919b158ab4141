"""What is told of this machine's processor."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path


def cpu_info(key: str) -> str:
    """A field of the first core in /proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{key}\s*:\s*(.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else ""


@functools.cache
def cpu_model() -> str:
    """The processor's name."""
    return cpu_info("model name") or platform.processor() or platform.machine()
