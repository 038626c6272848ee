"""What the tests of loads share: a core, and a look at what is left of processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import psutil
import pytest
from patience import PROMPT_S

from odin.stages.device import usable_cores

GONE = (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError)
"""What a look at a process raises that has ended, perhaps during the look."""


def a_core() -> int:
    """A core that may be used, not the first one if there is another."""
    return usable_cores()[-1]


def another_core() -> int:
    """One more; the test is skipped if there is none."""
    if len(usable_cores()) < 2:
        pytest.skip("needs two cores")
    return usable_cores()[-2]


def living(pids: Iterable[int]) -> list[psutil.Process]:
    """Those of ``pids`` that are there at this moment; any may end between two looks at it."""
    found = []
    for pid in pids:
        with contextlib.suppress(*GONE):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def alive(pids: Iterable[int]) -> list[str]:
    """As :func:`living`, in words; what has ended and waits for its parent to see it does not live."""
    return [f"{process.pid} {command(process)}"[:200] for process in living(pids)]


def command(process: psutil.Process) -> str:
    """The command line of a process, empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except GONE:
        return ""


def name(process: psutil.Process) -> str:
    """The name of a process, empty if it has ended."""
    try:
        return process.name()
    except GONE:
        return ""


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """Processes below one, or below this one, that live at this moment."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except GONE:
        return []


def left_after(pids: Iterable[int], *, patience_s: float = PROMPT_S) -> list[str]:
    """Those that still run after a while; empty as soon as none does."""
    pids = list(pids)
    deadline_s = time.monotonic() + patience_s
    while (left := alive(pids)) and time.monotonic() < deadline_s:
        time.sleep(0.02)  # polling other processes: there is no event to wait for
    return left


def family(pid: int) -> list[int]:
    """Processes below one."""
    return [child.pid for child in descendants(pid)]


def wait_for(condition, *, what: str) -> None:
    """Wait until ``condition()`` is true; fails after :data:`PROMPT_S`."""
    deadline_s = time.monotonic() + PROMPT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: did not happen within {PROMPT_S:.0f} s"
        time.sleep(0.01)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
