"""How long a CPU quota stopped a process: its cgroup's ``cpu.stat``, version 2 or 1.

Version 2 writes ``throttled_usec`` (microseconds), version 1 ``throttled_time`` (nanoseconds); both only where a quota
can be set. A quota of an outer group (the pod around a container, a systemd slice) stops the process as well and is
counted there only, so every group from the process's own up to the root is read, and the one that throttled longest
counts. The seconds are summed over the cores on which the group had something to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

__all__ = ["ThrottleCounter", "Throttling", "cpu_stat_files"]


class Throttling(NamedTuple):
    """What one cgroup's quota did: periods so far, those in which it was used up, and seconds stopped."""

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
    process = "self" if pid is None else str(pid)
    try:
        groups = Path(proc, process, "cgroup").read_text().splitlines()
        mounts = Path(proc, "self", "mountinfo").read_text().splitlines()
    except OSError:  # ended, or not Linux
        return ()
    files: list[Path] = []
    for line in groups:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        unified = hierarchy == "0" and not controllers
        if not unified and "cpu" not in controllers.split(","):
            continue
        found = _mount_point(mounts, unified=unified)
        if found is not None:
            files += _upwards(*found, PurePosixPath(path))
    return tuple(files)


def _mount_point(mounts: Sequence[str], *, unified: bool) -> tuple[PurePosixPath, Path] | None:
    """Group that is mounted and where, from ``/proc/self/mountinfo``."""
    for line in mounts:
        # ID PARENT DEVICE ROOT WHERE OPTIONS [TAG ...] - TYPE SOURCE SUPER-OPTIONS
        left, _, right = line.partition(" - ")
        fields, types = left.split(), right.split()
        if len(fields) < 5 or len(types) < 3:
            continue
        if types[0] == "cgroup2" if unified else types[0] == "cgroup" and "cpu" in types[2].split(","):
            return PurePosixPath(_unescaped(fields[3])), Path(_unescaped(fields[4]))
    return None


def _upwards(root: PurePosixPath, mount: Path, group: PurePosixPath) -> list[Path]:
    try:
        inside = group.relative_to(root)
    except ValueError:  # a container's mount shows its own group as the root, whatever its name outside
        inside = PurePosixPath()
    if ".." in inside.parts:  # beside this process's cgroup namespace: nothing of it is mounted here
        return []
    return [mount / part / "cpu.stat" for part in (inside, *inside.parents)]


def _unescaped(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def _read(file: Path) -> Throttling | None:
    try:
        pairs = dict(line.split(None, 1) for line in file.read_text().splitlines() if line.strip())
        throttled_s = (
            int(pairs["throttled_usec"]) * 1e-6 if "throttled_usec" in pairs else int(pairs["throttled_time"]) * 1e-9
        )
        return Throttling(int(pairs["nr_periods"]), int(pairs["nr_throttled"]), throttled_s)
    except (OSError, KeyError, ValueError):  # no such group any more; a root group, which has no quota
        return None
