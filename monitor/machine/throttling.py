"""How long a CPU quota stopped a process: its cgroup's ``cpu.stat``, version 2 or 1.

Version 2 writes ``throttled_usec`` (microseconds), version 1 ``throttled_time`` (nanoseconds); both only where a quota
can be set. A quota of an outer group (the pod around a container, a systemd slice) stops the process as well and is
counted there only, so every group from the process's own up to the root is read, and the one that throttled longest
counts. The seconds are summed over the cores on which the group had something to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from odin.monitor.machine.cgroups import group_folders

__all__ = ["ThrottleCounter", "Throttling", "cpu_stat_files"]


class Throttling(NamedTuple):
    """Statistics of one cgroup's CPU quota: periods, periods in which it was used up, and seconds stopped."""

    periods: int
    throttled_periods: int
    throttled_s: float


class ThrottleCounter:
    """Counts throttled seconds from one question to the next.

    Parameters
    ----------
    pid
        The process; None is this one.
    proc
        Where the process file system is mounted.
    """

    def __init__(self, pid: int | None = None, *, proc: str | Path = "/proc") -> None:
        self._files = cpu_stat_files(pid, proc=proc)
        self._before = self._read_s()

    def read(self) -> Throttling | None:
        """The group that was throttled longest since it was made; None where the system does not tell."""
        known = [throttling for file in self._files if (throttling := _read(file)) is not None]
        return max(known, key=lambda throttling: throttling.throttled_s, default=None)

    def delta_s(self) -> float | None:
        """Throttled seconds since the last call, or since this counter was made; None where the system does not tell.

        Of nested groups it is the longest, not the sum: while an outer one is stopped, an inner one may be too.
        """
        before, now = self._before, self._read_s()
        self._before = now
        deltas_s = [value - before[file] for file, value in now.items() if file in before]
        return max(0.0, *deltas_s) if deltas_s else None

    def _read_s(self) -> dict[Path, float]:
        return {file: known.throttled_s for file in self._files if (known := _read(file)) is not None}


def cpu_stat_files(pid: int | None = None, *, proc: str | Path = "/proc") -> tuple[Path, ...]:
    """``cpu.stat`` of a process's cgroup and of those around it, innermost first; empty where there is none.

    Parameters
    ----------
    pid, proc
        As for :class:`ThrottleCounter`.
    """
    return tuple(folder / "cpu.stat" for folder in group_folders("cpu", pid, proc=proc))


def _read(file: Path) -> Throttling | None:
    try:
        pairs = dict(line.split(None, 1) for line in file.read_text().splitlines() if line.strip())
        throttled_s = (
            int(pairs["throttled_usec"]) * 1e-6 if "throttled_usec" in pairs else int(pairs["throttled_time"]) * 1e-9
        )
        return Throttling(int(pairs["nr_periods"]), int(pairs["nr_throttled"]), throttled_s)
    except (OSError, KeyError, ValueError):  # no such group any more; a root group, which has no quota
        return None
