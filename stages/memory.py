"""How much memory may still be taken: what the machine has, within what a container allows."""

from __future__ import annotations

from pathlib import Path

import psutil

from monitor.cgroups import available_memory_nbytes

__all__ = ["available_nbytes"]


def available_nbytes(*, proc: str | Path = "/proc") -> int:
    """Bytes that can be taken without swapping or being killed, as far as the system tells.

    Parameters
    ----------
    proc
        Where the process file system is mounted, which tells this process's control groups.
    """
    machine = int(psutil.virtual_memory().available)
    allowed = available_memory_nbytes(proc=proc)
    return machine if allowed is None else min(machine, allowed)
