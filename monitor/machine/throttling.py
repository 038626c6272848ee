"""How much a CPU quota stops a process: its cgroup's ``cpu.stat``, version 2 or 1.

Version 2 writes ``throttled_usec`` (microseconds), version 1 ``throttled_time`` (nanoseconds); both only where a quota
can be set. Both move at the end of a period of the quota, as ``nr_periods`` does: seconds per second of the clock would
be off by a period at each end. So they are told per second of the periods that ended meanwhile, which are those in
which the group had something to run.

A quota of an outer group (the pod around a container, a systemd slice) stops the process as well and is counted there
only, so every group from the process's own up to the root is read, and the one that was stopped most counts. The
kernel sums the seconds over the cores on which the group had something to run.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from odin.monitor.machine.cgroups import cpu_period_s, group_folders

__all__ = ["ThrottleCounter", "Throttling", "cpu_stat_files"]


class Throttling(NamedTuple):
    """Statistics of one cgroup's CPU quota: periods, periods in which it was used up, and seconds stopped."""

    periods: int
    throttled_periods: int
    throttled_s: float


class ThrottleCounter:
    """Tells how much a process's quotas stop it from one question to the next.

    Parameters
    ----------
    pid
        The process; None is this one.
    proc
        Where the process file system is mounted.

    Attributes
    ----------
    period_s
        The longest period of the quotas, seconds; 0 without any. Shorter than that nothing can be told.
    """

    def __init__(self, pid: int | None = None, *, proc: str | Path = "/proc") -> None:
        periods_s = {file: cpu_period_s(file.parent) for file in cpu_stat_files(pid, proc=proc)}
        self._periods_s = {file: period_s for file, period_s in periods_s.items() if period_s is not None}
        self.period_s = max(self._periods_s.values(), default=0.0)
        self._before = self._read()

    def stopped_cores(self) -> float | None:
        """On how many cores the quota stopped the group in the mean, since the last call or since this was made.

        Of nested groups it is the most, not the sum: while an outer one is stopped, an inner one may be too. 0 if no
        period of a quota ended in the meantime, None where the system does not tell.
        """
        before, now = self._before, self._read()
        self._before = now
        stopped = [
            (after.throttled_s - before[file].throttled_s) / (max(after.periods - before[file].periods, 1) * period_s)
            for file, period_s in self._periods_s.items()
            if file in before and (after := now.get(file)) is not None
        ]
        return max(0.0, *stopped) if stopped else None

    def _read(self) -> dict[Path, Throttling]:
        return {file: known for file in self._periods_s if (known := _read(file)) is not None}


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
