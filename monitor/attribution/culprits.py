"""Culprits: processes that used a stage's cores between two readings of ``/proc``.

Use of a core that no visible process explains is reported as unknown, so that a core does not seem idle when another
container uses it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from odin.monitor.events import Culprit
from odin.monitor.machine.core_usage import Snapshot, core_usages, take_snapshot
from odin.monitor.machine.process_names import is_ray_daemon, process_name
from odin.monitor.machine.procfs import CoreTimes, ProcessTimes, ProcFs

__all__ = ["CoreWatcher", "CulpritReport", "Suspect", "find_culprits"]

_SUSPECTS = 3
_LEAST_SUSPECT = 0.25
_LEAST_NOTED = 0.1
_LEAST_STEAL = 0.05
_LEAST_HIDDEN, _LEAST_HIDDEN_TICKS = 0.15, 6  # cores count by sampling at every tick, which is off by a few


class Suspect(NamedTuple):
    """A big user of another core, which may share caches, memory bandwidth or the physical core.

    Attributes
    ----------
    culprit
        The process; its share is the largest that it had of any one core.
    core
        The core that it used most.
    sibling
        Whether that core is a hyper-thread of the same physical core as one of the stage's.
    """

    culprit: Culprit
    core: int
    sibling: bool


class CulpritReport(NamedTuple):
    """Who used a stage's cores.

    Attributes
    ----------
    culprits
        Processes that did, worst first; a share is the largest part of any one of the cores, 0 to 1.
    note
        What else took the cores, or cannot be seen; empty if there is nothing to add.
    suspects
        The biggest users of other cores, siblings first, then the biggest. They may have nothing to do with it.
    others_share
        Part of the time in which a core ran anything but the stage, 0 to 1, of the core where it is most; 1 where that
        cannot be told.
    """

    culprits: tuple[Culprit, ...]
    note: str = ""
    suspects: tuple[Suspect, ...] = ()
    others_share: float = 1.0

    def blame(self, interference: str) -> tuple[tuple[Culprit, ...], str]:
        """Culprits and note for a kind of interference as :mod:`odin.monitor.attribution.kind` names it.

        Memory and the physical core are shared with programs on other cores too: where one of these is part of the
        kind, suspects follow, and the note says that they are no more than that.
        """
        if not self.suspects or not ("memory" in interference or "core speed" in interference):
            return self.culprits, self.note
        where = ", ".join(
            f"{s.culprit.name} on cpu:{s.core}" + (" (the same physical core)" if s.sibling else "")
            for s in self.suspects
        )
        note = f"only suspected: {where}"
        return (*self.culprits, *(s.culprit for s in self.suspects)), "; ".join(filter(None, (note, self.note)))


class CoreWatcher:
    """Two snapshots with time between them, which the caller spends as it likes.

    Parameters
    ----------
    cores
        The stage's cores.
    own_pids
        Processes that are never blamed: the gateway and all stages of this pipeline. Ray's daemons are not either.
    stage_pid
        The stage itself, one of ``own_pids``. With it, the note says what the pipeline's other processes take of its
        cores.
    least_share
        Part of a core from which a process is named.
    proc, clock
        For tests.

    Raises
    ------
    ValueError
        If there is no core.
    """

    def __init__(
        self,
        cores: Collection[int],
        *,
        own_pids: Collection[int],
        stage_pid: int | None = None,
        least_share: float = 0.05,
        proc: ProcFs | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not cores:
            raise ValueError("no core to watch: give the numbers of the stage's cores, such as [1]")
        self._cores = frozenset(cores)
        self._own = frozenset(own_pids)
        self._stage = stage_pid
        self._least_share = least_share
        self._proc = ProcFs() if proc is None else proc
        self._clock = clock
        self._start: Snapshot | None = None

    def start(self) -> None:
        """Take the first snapshot; costs 15 us of CPU time per process and thread."""
        self._start = take_snapshot(self._proc, clock=self._clock, threads=True)

    def report(self) -> CulpritReport:
        """Take the second snapshot and compare; may be asked again, always since :meth:`start`.

        Raises
        ------
        RuntimeError
            Before :meth:`start`.
        """
        if self._start is None:
            raise RuntimeError("there is nothing to compare with: call start() first, and report() some time later")
        now = take_snapshot(self._proc, clock=self._clock, threads=False)
        span_s = now.at_s - self._start.at_s
        missing = sorted(self._cores - now.cores.keys())
        if missing:
            return CulpritReport((), f"unknown: /proc says nothing about core {missing[0]} here")
        if span_s <= 0:
            return CulpritReport((), "unknown: no time has passed between the two looks")
        usages = core_usages(self._proc, self._start, now)
        foreign = {pid: usage for pid, usage in usages.items() if not self._is_own(pid, now.processes[pid])}
        culprits = self._culprits(foreign, now, span_s)
        others = {pid: foreign[pid] for pid in foreign.keys() - {culprit.pid for culprit in culprits}}
        return CulpritReport(
            culprits,
            self._note(self._start, now, usages, usages.keys() - foreign.keys()),
            self._suspects(others, now, span_s),
            self._others_share(self._start, now, usages.get(self._stage, {}) if self._stage is not None else None),
        )

    def _is_own(self, pid: int, process: ProcessTimes) -> bool:
        return pid in self._own or is_ray_daemon(process.name, self._proc.command(pid))

    def _culprits(
        self, foreign: Mapping[int, Mapping[int, float]], now: Snapshot, span_s: float
    ) -> tuple[Culprit, ...]:
        found = []
        for pid, usage in foreign.items():
            on_cores = [usage[core] for core in self._cores if core in usage]
            if on_cores and max(on_cores) / span_s >= self._least_share:
                found.append((-sum(on_cores), pid, min(max(on_cores) / span_s, 1.0)))
        return tuple(self._culprit(pid, now, share) for _, pid, share in sorted(found))

    def _suspects(
        self, foreign: Mapping[int, Mapping[int, float]], now: Snapshot, span_s: float
    ) -> tuple[Suspect, ...]:
        siblings = frozenset[int]().union(*map(self._proc.siblings, self._cores))
        found = []
        for pid, usage in foreign.items():
            elsewhere = {core: used_s for core, used_s in usage.items() if core not in self._cores}
            if not elsewhere:
                continue
            core = max(elsewhere, key=lambda core: elsewhere[core])
            share = min(elsewhere[core] / span_s, 1.0)
            if share >= _LEAST_SUSPECT:
                found.append((core not in siblings, -sum(elsewhere.values()), pid, share, core))
        return tuple(
            Suspect(self._culprit(pid, now, share), core, not away)
            for away, _, pid, share, core in sorted(found)[:_SUSPECTS]
        )

    def _culprit(self, pid: int, now: Snapshot, share: float) -> Culprit:
        return Culprit(pid, process_name(now.processes[pid].name, self._proc.command(pid)), share)

    def _others_share(self, start: Snapshot, now: Snapshot, stage: Mapping[int, float] | None) -> float:
        """Of the core where it is most; ``stage`` is what the stage used of each core, seconds."""
        if stage is None:
            return 1.0
        share = 0.0
        for core in self._cores & start.cores.keys():
            spent = CoreTimes(*(b - a for a, b in zip(start.cores[core], now.cores[core], strict=True)))
            others_s = spent.processes_s - stage.get(core, 0.0) + spent.interrupts_s + spent.steal_s
            share = max(share, others_s / spent.total_s if spent.total_s > 0 else 1.0)
        return min(share, 1.0)

    def _note(
        self, start: Snapshot, now: Snapshot, usages: Mapping[int, Mapping[int, float]], own: Collection[int]
    ) -> str:
        """What processes do not explain, of the core where it is most."""

        def seconds(pids: Iterable[int], core: int) -> float:
            return sum(usages[pid].get(core, 0.0) for pid in pids)

        others = [pid for pid in own if pid != self._stage] if self._stage is not None else []
        hidden, steal, interrupts, ours = _Most(), _Most(), _Most(), _Most()
        for core in sorted(self._cores & start.cores.keys()):
            spent = CoreTimes(*(b - a for a, b in zip(start.cores[core], now.cores[core], strict=True)))
            if spent.total_s <= 0:
                continue
            unseen_s = spent.processes_s - seconds(usages, core)
            if unseen_s >= _LEAST_HIDDEN_TICKS * self._proc.tick_s:
                hidden.take(unseen_s / spent.total_s, core)
            steal.take(spent.steal_s / spent.total_s, core)
            interrupts.take(spent.interrupts_s / spent.total_s, core)
            ours.take(seconds(others, core) / spent.total_s, core)

        def named(core: int) -> str:
            return "the core" if len(self._cores) == 1 else f"cpu:{core}"

        notes = []
        if hidden.part >= _LEAST_HIDDEN:
            whose = self._proc.hidden() or "processes that ended meanwhile or are hidden here"
            notes.append(f"unknown: {named(hidden.core)} is {hidden.part:.0%} busy with {whose}")
        if steal.part >= _LEAST_STEAL:
            notes.append(f"the machine's host takes {steal.part:.0%} of {named(steal.core)} (steal)")
        if interrupts.part >= _LEAST_NOTED:
            notes.append(f"interrupts take {interrupts.part:.0%} of {named(interrupts.core)}")
        if ours.part >= _LEAST_NOTED:
            biggest = max(others, key=lambda pid: usages[pid].get(ours.core, 0.0))
            name = process_name(now.processes[biggest].name, self._proc.command(biggest))
            whose = f"mostly {name}, pid {biggest}"
            notes.append(f"the pipeline's other processes and Ray take {ours.part:.0%} of {named(ours.core)} ({whose})")
        return "; ".join(notes)


class _Most:
    """The largest part, and of which core."""

    def __init__(self) -> None:
        self.part, self.core = -math.inf, -1

    def take(self, part: float, core: int) -> None:
        if part > self.part:
            self.part, self.core = min(part, 1.0), core


def find_culprits(
    cores: Collection[int],
    *,
    own_pids: Collection[int],
    stage_pid: int | None = None,
    interval_s: float = 0.25,
    least_share: float = 0.05,
    proc: ProcFs | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> CulpritReport:
    """Watch ``cores`` for ``interval_s`` seconds and tell who used them; blocks meanwhile.

    Parameters
    ----------
    cores, own_pids, stage_pid, least_share, proc, clock
        As for :class:`CoreWatcher`. This process is always its own.
    interval_s
        Seconds between the two looks. CPU time is told in steps of 10 ms, so shares are no finer than that.
    sleep
        For tests.

    Raises
    ------
    ValueError
        If there is no core or no interval.
    """
    if not 0 < interval_s < math.inf:
        raise ValueError(f"interval_s is {interval_s}; a process is seen by what it does in between, so give 0.25")
    watcher = CoreWatcher(
        cores,
        own_pids={*own_pids, os.getpid()},
        stage_pid=stage_pid,
        least_share=least_share,
        proc=proc,
        clock=clock,
    )
    watcher.start()
    sleep(interval_s)
    return watcher.report()
