"""The priority of a stage's process: that of an ordinary program, where this user may set it.

Ray starts workers at niceness 15 unless ``RAY_worker_niceness`` says otherwise: beside a program of normal priority a
stage would get 3% of its core.
"""

from __future__ import annotations

import os

from stages.device import for_every_thread

__all__ = ["run_at_normal_priority"]


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
