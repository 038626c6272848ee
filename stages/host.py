"""Settings of a stage's process on its host: memory, allocator, priority, signals.

Ray starts workers at niceness 15 unless ``RAY_worker_niceness`` says otherwise: beside a program of normal priority a
stage would get 3% of its core.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

import psutil

from odin.monitor.machine.cgroups import available_memory_nbytes
from odin.stages.device import for_every_thread

__all__ = ["available_nbytes", "ignore_hangup", "keep_freed_memory", "release_freed_memory", "run_at_normal_priority"]


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


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT_NBYTES = 1 << 30
_OLD_LIMIT_NBYTES = 1 << 25
"""The most that ``M_MMAP_THRESHOLD`` may be before glibc 2.35, which refuses more."""


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the kernel.

    Activations of a few megabytes are allocated and freed for every layer. Returned to the kernel each time, every
    page of them would be faulted in and zeroed again for every request. With a C library other than glibc this does
    nothing, and layers are only slower.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if not libc.mallopt(_M_MMAP_THRESHOLD, _LIMIT_NBYTES):
            libc.mallopt(_M_MMAP_THRESHOLD, _OLD_LIMIT_NBYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LIMIT_NBYTES)


def release_freed_memory() -> None:
    """Return freed memory to the kernel now, as far as the C library can; for after work that is not repeated."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def run_at_normal_priority() -> int:
    """Undo the niceness of every thread of this process; threads started later inherit that.

    On Linux niceness belongs to a thread, not to a process. Only root, ``CAP_SYS_NICE`` or a limit on niceness
    (``ulimit -e 20``) allow to lower it.

    Returns
    -------
    int
        The largest niceness that is left: 0 or less, or what it was where this user may not change it.
    """
    left: list[int] = []

    def undo(thread: int) -> None:
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        if niceness > 0:
            try:
                os.setpriority(os.PRIO_PROCESS, thread, 0)
                niceness = 0
            except PermissionError:
                pass
        left.append(niceness)

    for_every_thread(undo)
    return max(left, default=0)


def ignore_hangup() -> None:
    """Ignore SIGHUP, in any thread of this process.

    The kernel sends it to a process that is stopped when its parent ends, and so its process group has nobody left who
    could let it go on (POSIX, exit). The parent of a stage is Ray's raylet; a stage outlives that, stopped or not.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(int(signal.SIGHUP), int(signal.SIG_IGN))
