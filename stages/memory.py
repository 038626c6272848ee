"""How much memory may still be taken: what the machine has, within what a container allows."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["available_nbytes"]

_CGROUPS = Path("/sys/fs/cgroup")
_LIMIT_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_nbytes(*, cgroups: Path = _CGROUPS) -> int:
    """Bytes that can be taken without swapping or being killed, as far as the system tells.

    Parameters
    ----------
    cgroups
        Where control groups are mounted; in a container its own limit is there (version 2 or 1).
    """
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in _LIMIT_FILES:
        limit, usage = _read_number(cgroups / limit_file), _read_number(cgroups / usage_file)
        if limit is not None and usage is not None:
            available = min(available, max(0, limit - usage))
    return available


def _read_number(path: Path) -> int | None:
    """Read a number; ``None`` if there is no such file, or it says ``max``."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
