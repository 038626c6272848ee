"""Control groups of a process and what they allow: CPU time and memory; versions 1 and 2, and both beside each other.

What an outer group allows (the pod around a container, a systemd slice) holds for the groups in it as well. So each
answer comes from every group between the process's own and the top of what is mounted here, and the tightest counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

__all__ = ["available_memory_nbytes", "cpu_period_s", "cpu_quota_cores", "group_folders"]

_USAGE_FILES = ("memory.current", "memory.usage_in_bytes")
_LIMIT_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")
_FREED_ON_DEMAND = ("inactive_file", "active_file", "slab_reclaimable")
"""Of ``memory.stat``: caches of files and of the file system, which the kernel drops when the group needs memory."""


class Mount(NamedTuple):
    """Where a part of a hierarchy of groups is mounted: the group at its top, and the folder."""

    root: PurePosixPath
    folder: Path


def group_folders(controller: str, pid: int | None = None, *, proc: str | Path = "/proc") -> tuple[Path, ...]:
    """Folders of a process's groups, those of its own group first; empty where there are none.

    Parameters
    ----------
    controller
        ``"cpu"`` or ``"memory"``.
    pid
        The process; None is this one.
    proc
        Where the process file system is mounted.
    """
    process = "self" if pid is None else str(pid)
    try:
        groups = Path(proc, process, "cgroup").read_text().splitlines()
        lines = Path(proc, "self", "mountinfo").read_text().splitlines()
    except OSError:  # ended, or not Linux
        return ()
    folders: list[Path] = []
    for group in groups:
        hierarchy, _, rest = group.partition(":")
        controllers, _, path = rest.partition(":")
        unified = hierarchy == "0" and not controllers
        if unified or controller in controllers.split(","):
            mounts = [mount for line in lines if (mount := _mount(line, "" if unified else controller)) is not None]
            folders += _upwards(mounts, PurePosixPath(path))
    return tuple(folders)


def cpu_quota_cores(*, proc: str | Path = "/proc") -> float | None:
    """CPU seconds that this process and the others in its group may use per second; None without a quota."""
    quotas = [quota for folder in group_folders("cpu", proc=proc) if (quota := _cpu_quota(folder)) is not None]
    return min(quotas, default=None)


def cpu_period_s(folder: Path) -> float | None:
    """Period of a group's CPU quota in seconds, whether or not there is a quota; None where the group has none."""
    period_us = _quota_and_period_us(folder)[1]
    return period_us / 1e6 if period_us > 0 else None


def available_memory_nbytes(*, proc: str | Path = "/proc") -> int | None:
    """Bytes that this process's groups may still take; None without a limit.

    Caches of files are counted as used by the kernel, and dropped when the group needs memory: they are available.
    Swap is not counted.
    """
    known = [nbytes for folder in group_folders("memory", proc=proc) if (nbytes := _memory_left(folder)) is not None]
    return min(known, default=None)


def _mount(line: str, controller: str) -> Mount | None:
    """Read a line of ``mountinfo`` that mounts the controller's hierarchy; without a controller version 2's."""
    # ID PARENT DEVICE ROOT WHERE OPTIONS [TAG ...] - TYPE SOURCE SUPER-OPTIONS
    left, _, right = line.partition(" - ")
    fields, types = left.split(), right.split()
    if len(fields) < 5 or len(types) < 3:
        return None
    if types[0] != ("cgroup" if controller else "cgroup2") or (controller and controller not in types[2].split(",")):
        return None
    return Mount(PurePosixPath(_unescaped(fields[3])), Path(_unescaped(fields[4])))


def _upwards(mounts: Sequence[Mount], group: PurePosixPath) -> Iterator[Path]:
    """Folders from a group up to the top of the mount that shows most of the groups around it."""
    if not mounts:
        return
    showing = [mount for mount in mounts if group.is_relative_to(mount.root)]
    if showing:
        mount = min(showing, key=lambda mount: len(mount.root.parts))
        inside = group.relative_to(mount.root)
    else:  # a container's mount may show its own group at the top, whatever its name outside
        mount, inside = mounts[0], PurePosixPath()
        if ".." in group.parts and ".." not in mount.root.parts:
            return  # outside of this process's cgroup namespace, and so outside of what is mounted
    if ".." in inside.parts:
        return
    yield from (mount.folder / part for part in (inside, *inside.parents))


def _cpu_quota(folder: Path) -> float | None:
    quota_us, period_us = _quota_and_period_us(folder)
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _quota_and_period_us(folder: Path) -> tuple[int, int]:
    """A CPU quota and its period; 0 for what there is none of."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return _number(quota) or 0, _number(period) or 0  # no quota: version 2 writes "max", version 1 -1


def _memory_left(folder: Path) -> int | None:
    stat = _memory_stat(folder)
    limits = [limit for name in _LIMIT_FILES if (limit := _number(_read(folder / name))) is not None]
    # Version 1 tells so of the groups around, seen from here or not.
    limits += [stat["hierarchical_memory_limit"]] if "hierarchical_memory_limit" in stat else []
    usages = [usage for name in _USAGE_FILES if (usage := _number(_read(folder / name))) is not None]
    if not limits or not usages:
        return None
    # Version 1 counts a group alone, and the groups in it only under "total_".
    freed = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _FREED_ON_DEMAND)
    return max(0, min(limits) - max(0, usages[0] - freed))


def _memory_stat(folder: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(folder / "memory.stat").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):  # not there, not readable, or no text
        return ""


def _unescaped(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
