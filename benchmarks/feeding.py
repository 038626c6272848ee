"""A pipeline under steady load: for the benchmarks of reaction, recovery, quiet and the relay."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

import odin
import odin_lab.feeding
from odin.monitor.events import LoadChanged, PlanChanged
from odin.monitor.timing import RequestTimeline
from odin_lab.feeding import KeptEvents

__all__ = ["Feeder", "KeptEvents", "moves_in", "where", "windows_of"]

Result = TypeVar("Result")


def windows_of(pipe: odin.Pipeline) -> str:
    """Text of the windows within which stages hand over now; empty where they do as the plan says."""
    return str(getattr(pipe.view(), "windows", ""))


def moves_in(recorder: KeptEvents, since_s: float = 0.0) -> list[PlanChanged]:
    """Changes of plan from a time on; those of windows alone are none."""
    return [event for event in recorder.of(PlanChanged, since_s=since_s) if event.after != event.before]


def where(pipe: odin.Pipeline, timelines: Sequence[RequestTimeline]) -> str:
    """Where requests change hands: the plan, or the windows and the plan of the requests' median cuts."""
    windows = windows_of(pipe)
    if not windows:
        return str(pipe.plan)
    lasts = np.array([[timing.last for timing in timeline.stages] for timeline in timelines])
    middle = np.median(np.maximum.accumulate(lasts, axis=1), axis=0).astype(int)
    return f"{windows}, median {odin.Plan(np.diff(middle, prepend=0).tolist())}"


class Feeder(odin_lab.feeding.Feeder):
    """Streams one input again and again through a pipeline, in a thread, until left.

    Parameters
    ----------
    pipe
        The pipeline.
    x
        Its input.
    recorder
        Takes the pipeline's events.
    """

    def __init__(self, pipe: odin.Pipeline, x: torch.Tensor, recorder: KeptEvents) -> None:
        super().__init__(lambda _: pipe.submit(x), in_flight=pipe.max_in_flight)
        self.pipe = pipe
        self.recorder = recorder

    def wait(self, count: int) -> int:
        """Wait until ``count`` more requests have finished; returns how many have in all."""
        wanted = self.recorder.finished + count
        return self.wait_until(lambda: self.recorder.finished >= wanted)

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 600.0) -> int:
        """Wait for a condition; returns the number of requests that have finished."""
        deadline_s = time.perf_counter() + timeout_s
        while not condition():
            if self.error is not None:
                raise self.error
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"nothing came of it within {timeout_s:.0f} s")
            time.sleep(0.005)
        return self.recorder.finished

    def settle(self, *, least: int, quiet: int, most: int) -> int:
        """Wait for ``least`` requests and then until layers have not moved for ``quiet`` requests, or for ``most``."""
        begin, begin_s = self.recorder.finished, time.perf_counter()

        def settled() -> bool:
            now = self.recorder.finished
            moves = moves_in(self.recorder, begin_s)
            last = self.recorder.finished_by(moves[-1].at_s) if moves else begin
            return now - begin >= most or (now - begin >= least and now - last >= quiet)

        return self.wait_until(settled)

    def change_load(self, change: Callable[[], Result]) -> tuple[float, Result]:
        """Start, change or end one load; returns when that was, as its event tells, and what the call returned."""
        before = len(self.recorder.of(LoadChanged))
        result = change()
        self.wait_until(lambda: len(self.recorder.of(LoadChanged)) > before)  # events have a thread of their own
        return self.recorder.of(LoadChanged)[-1].at_s, result

    def measure(self, count: int) -> tuple[float, list[RequestTimeline]]:
        """Requests per second over the next ``count``, and those requests."""
        begin = self.recorder.finished
        self.wait(count + 1)
        return self.recorder.throughput_hz(begin, begin + count + 1), self.recorder.timelines(begin, begin + count + 1)
