"""How long each process ran on each core between two snapshots of ``/proc``.

A process's CPU time says how much it ran, but not where. Half of a thread's time since the first snapshot is counted
for the core on which it had last run at each of the two snapshots; all of it for one of them if the thread's affinity
excludes the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from odin.monitor.machine.procfs import CoreTimes, ProcessTimes, ProcFs, ThreadTimes

__all__ = ["Snapshot", "core_usages", "take_snapshot"]

_THREAD_LIMIT = 2048  # that takes some 30 ms


class Snapshot(NamedTuple):
    """Readings of one moment; threads only of processes that have several, and only where they were asked for."""

    at_s: float
    cores: Mapping[int, CoreTimes]
    processes: Mapping[int, ProcessTimes]
    threads: Mapping[int, Mapping[int, ThreadTimes]]


def take_snapshot(proc: ProcFs, *, clock: Callable[[], float], threads: bool) -> Snapshot:
    """Read all processes; with ``threads`` also the threads of those that have several."""
    at_s, cores, processes = clock(), proc.cores(), proc.processes()
    found: dict[int, dict[int, ThreadTimes]] = {}
    # One thread: the process's own numbers say it all. Many: those that have run most are read first.
    count = 0
    several = (pid for pid, process in processes.items() if threads and process.threads > 1 and process.cpu_s > 0)
    for pid in sorted(several, key=lambda pid: -processes[pid].cpu_s):
        count += processes[pid].threads
        if count > _THREAD_LIMIT:
            break
        found[pid] = proc.threads(pid)
    return Snapshot(at_s, cores, processes, found)


def core_usages(proc: ProcFs, start: Snapshot, now: Snapshot) -> dict[int, dict[int, float]]:
    """Seconds that each process used of each core, by process id; processes that used none are left out."""
    known_s = _known_of_ended(start, now)
    most_s = (now.at_s - start.at_s) * len(now.cores)
    usages = {}
    for pid, process in now.processes.items():
        before = start.processes.get(pid)
        if before is not None and before.start != process.start:
            before = None  # another process with the same number
        cpu_s = process.cpu_s - (before.cpu_s if before else 0.0)
        # Its children that came and went in between, such as a shell's or a compiler's. They ran anywhere, most
        # likely where their parent may run.
        children_s = process.children_s - (before.children_s if before else 0.0) - known_s[pid]
        used_s = cpu_s + (children_s if 0 < children_s <= most_s else 0.0)  # more: adopted from one that ended
        if used_s > proc.tick_s / 2:
            usages[pid] = _spread(proc, pid, used_s, before, process, start.threads.get(pid))
    return usages


def _known_of_ended(start: Snapshot, now: Snapshot) -> dict[int, float]:
    """Seconds that processes which ended since had used before, by the process that inherits their account."""

    def ended(pid: int) -> bool:
        return pid not in now.processes or now.processes[pid].start != start.processes[pid].start

    known_s: dict[int, float] = defaultdict(float)
    for pid, process in start.processes.items():
        if ended(pid):
            heir = process.parent
            while heir in start.processes and ended(heir):
                heir = start.processes[heir].parent
            known_s[heir] += process.cpu_s + process.children_s
    return known_s


def _spread(
    proc: ProcFs,
    pid: int,
    used_s: float,
    before: ProcessTimes | None,
    process: ProcessTimes,
    threads_before: Mapping[int, ThreadTimes] | None,
) -> dict[int, float]:
    """Divide a process's seconds among cores by where its threads ran."""
    if process.threads == 1:
        return _place(proc, pid, used_s, before.core if before else process.core, process.core)
    threads = proc.threads(pid)
    known = threads_before if threads_before is not None else {}
    weights_s: dict[int, float] = {}
    for thread, times in threads.items():
        # A process too big to be read at first: all that its threads ever used decides.
        weights_s[thread] = times.cpu_s - (known[thread].cpu_s if thread in known else 0.0)
    total_s = sum(weights_s.values())
    if total_s <= 0:  # less than a tick each, or they have ended
        return _place(proc, pid, used_s, before.core if before else process.core, process.core)
    spread: dict[int, float] = defaultdict(float)
    for thread, weight_s in weights_s.items():
        if weight_s > 0:
            first = known[thread].core if thread in known else threads[thread].core
            part_s = used_s * weight_s / total_s
            for core, core_s in _place(proc, thread, part_s, first, threads[thread].core).items():
                spread[core] += core_s
    return dict(spread)


def _place(proc: ProcFs, thread: int, used_s: float, first: int, last: int) -> dict[int, float]:
    allowed = proc.affinity(thread)
    seen = [core for core in (first, last) if allowed is None or core in allowed]
    if not seen:  # it has just been sent elsewhere
        seen = [last]
    spread: dict[int, float] = defaultdict(float)
    for core in seen:
        spread[core] += used_s / len(seen)
    return dict(spread)
