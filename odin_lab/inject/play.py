"""Plays a scenario in real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Protocol

from odin_lab.inject.handle import Handle
from odin_lab.inject.injector import check_local_device
from odin_lab.inject.load import Load
from odin_lab.inject.scenario import Change, Scenario, Step

__all__ = ["Starts", "play"]

_LEAD_S, _GPU_LEAD_S = 2.0, 30.0
_LOOK_S = 0.2


class Starts(Protocol):
    """What starts loads: an :class:`~odin_lab.inject.injector.Injector`."""

    def start(self, load: Load, *, name: str = "", idle: bool = False) -> Handle:
        """Start a load; returns when it works."""


def play(
    scenario: Scenario,
    injector: Starts,
    *,
    stop: threading.Event | None = None,
    on_begin: Callable[[Step, Handle], None] = lambda step, handle: None,
    pool: Executor | None = None,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
) -> bool:
    """Carry a scenario out; returns when all its loads have ended.

    Time 0 is when the loads that begin then are ready to. Processes of later ones are started two seconds ahead (for a
    GPU thirty) and wait, so that starting them is no part of the load. Programs are started when they begin.

    Parameters
    ----------
    scenario
        What, where, when.
    injector
        Starts the loads; they are its own to end if this is broken off.
    stop
        Set it to break off.
    on_begin
        Called for each load just before it begins to work; for a program, when it has begun.
    pool
        Where processes are started ahead; None makes threads for it.
    clock, wait
        Seconds; waits for an event for at most so many of them, and says whether it is set.

    Returns
    -------
    bool
        Whether it was carried out to its end: not broken off, and no load failed.

    Raises
    ------
    DeviceError, LoadError, LoadFailedError
        As :meth:`Injector.start` does.
    """
    stop = threading.Event() if stop is None else stop
    for device in scenario.devices:  # before anything has begun
        check_local_device(device)
    prepared = [step.load.kind != "program" for step in scenario.steps]
    # What is to be done when: processes are started (None), or an intensity changes.
    agenda: list[tuple[float, int, Change | None]] = [
        (max(0.0, step.start_s - (_GPU_LEAD_S if step.load.on.kind == "gpu" else _LEAD_S)), index, None)
        for index, step in enumerate(scenario.steps)
        if prepared[index]
    ]
    agenda += [(change.at_s, change.step, change) for change in scenario.changes()]
    agenda.sort(key=lambda item: item[0])  # stable: processes first, changes in their own order

    starting: dict[int, Future[Handle]] = {}
    handles: dict[int, Handle] = {}
    pool = ThreadPoolExecutor(thread_name_prefix="odin-load-start") if pool is None else pool
    with pool:
        for index, step in enumerate(scenario.steps):
            if prepared[index] and step.start_s == 0.0:
                starting[index] = pool.submit(injector.start, step.load, name=step.name, idle=True)
        for future in starting.values():
            future.result()
        begin_s = clock()
        for at_s, index, change in agenda:
            while (left_s := begin_s + at_s - clock()) > 0:
                if wait(stop, min(left_s, _LOOK_S)):
                    return False
                if _all_over(handles, scenario):
                    return not any(handle.failed for handle in handles.values())
            step = scenario.steps[index]
            if change is None:
                if index not in starting:
                    starting[index] = pool.submit(injector.start, step.load, name=step.name, idle=True)
            elif change.at_s >= step.end_s:
                handles[index].stop()
            elif index in handles:
                handles[index].set_intensity(change.intensity)
            elif prepared[index]:
                handles[index] = starting[index].result()
                on_begin(step, handles[index])
                handles[index].set_intensity(change.intensity)
            else:
                handles[index] = injector.start(step.load, name=step.name)
                on_begin(step, handles[index])
    while not _all_over(handles, scenario):  # those without an end
        if wait(stop, _LOOK_S):
            return False
    return not any(handle.failed for handle in handles.values())


def _all_over(handles: dict[int, Handle], scenario: Scenario) -> bool:
    """Whether every load has begun and has ended."""
    return len(handles) == len(scenario.steps) and all(handle.wait(0.0) for handle in handles.values())
