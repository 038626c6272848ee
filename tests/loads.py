"""What the tests of loads share: a core, and a look at what is left of processes."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil
import pytest
from patience import PROMPT_S

from stages.device import usable_cores


def a_core() -> int:
    """A core that may be used, not the first one if there is another."""
    return usable_cores()[-1]


def another_core() -> int:
    """One more; the test is skipped if there is none."""
    if len(usable_cores()) < 2:
        pytest.skip("needs two cores")
    return usable_cores()[-2]


def alive(pids: Iterable[int]) -> list[str]:
    """Those of ``pids`` that run, in words; what has ended and waits for its parent to see it does not."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{pid} {' '.join(process.cmdline())}"[:200])
        except psutil.NoSuchProcess:
            continue
    return found


def left_after(pids: Iterable[int], *, patience_s: float = PROMPT_S) -> list[str]:
    """Those that still run after a while; empty as soon as none does."""
    pids = list(pids)
    deadline_s = time.monotonic() + patience_s
    while (left := alive(pids)) and time.monotonic() < deadline_s:
        time.sleep(0.02)  # polling other processes: there is no event to wait for
    return left


def family(pid: int) -> list[int]:
    """Processes below one."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


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
