"""A pipeline under steady load, and what its events say: for the benchmarks of reaction and recovery."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable
from itertools import cycle, takewhile
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

import odin
from monitor.events import Event, PlanChanged, RequestDone
from monitor.timing import RequestTimeline

__all__ = ["Feeder", "Recorder"]

Kind = TypeVar("Kind")


class Recorder:
    """Keeps a pipeline's events; its ``on_event``."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._timelines: list[RequestTimeline] = []
        self._completed_s: list[float] = []

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, RequestDone):
            self._timelines.append(event.timeline)
            self._completed_s.append(event.timeline.completed_s)
        else:
            self.events.append(event)

    @property
    def finished(self) -> int:
        """Requests so far."""
        return len(self._completed_s)

    def finished_by(self, at_s: float) -> int:
        """Requests that had finished at a time."""
        return bisect.bisect_right(self._completed_s, at_s)

    def timelines(self, begin: int, end: int | None = None) -> list[RequestTimeline]:
        """Requests number ``begin`` to ``end`` in the order of their completion."""
        return self._timelines[begin:end]

    def throughput_hz(self, begin: int, end: int | None = None) -> float:
        """Requests per second from completion ``begin`` to completion ``end - 1``."""
        completed_s = self._completed_s[begin:end]
        return (len(completed_s) - 1) / (completed_s[-1] - completed_s[0])

    def of(self, kind: type[Kind], *, since_s: float = 0.0) -> list[Kind]:
        """Events of a kind from a time on."""
        return [event for event in tuple(self.events) if isinstance(event, kind) and event.at_s >= since_s]


class Feeder:
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

    def __init__(self, pipe: odin.Pipeline, x: torch.Tensor, recorder: Recorder) -> None:
        self.pipe = pipe
        self.recorder = recorder
        self._x = x
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def _feed(self) -> None:
        try:
            for _ in self.pipe.map(takewhile(lambda _: not self._over.is_set(), cycle([self._x]))):
                pass
        except BaseException as error:
            self._error = error

    def wait(self, count: int) -> int:
        """Wait until ``count`` more requests have finished; returns how many have in all."""
        wanted = self.recorder.finished + count
        return self.wait_until(lambda: self.recorder.finished >= wanted)

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 600.0) -> int:
        """Wait for a condition; returns the number of requests that have finished."""
        deadline_s = time.perf_counter() + timeout_s
        while not condition():
            if self._error is not None:
                raise self._error
            if time.perf_counter() > deadline_s:
                raise TimeoutError(f"nothing came of it within {timeout_s:.0f} s")
            time.sleep(0.005)
        return self.recorder.finished

    def settle(self, *, least: int, quiet: int, most: int) -> int:
        """Wait for ``least`` requests and then until layers have not moved for ``quiet`` requests, or for ``most``."""
        begin, begin_s = self.recorder.finished, time.perf_counter()

        def settled() -> bool:
            now = self.recorder.finished
            moves = self.recorder.of(PlanChanged, since_s=begin_s)
            last = self.recorder.finished_by(moves[-1].at_s) if moves else begin
            return now - begin >= most or (now - begin >= least and now - last >= quiet)

        return self.wait_until(settled)

    def measure(self, count: int) -> tuple[float, list[RequestTimeline]]:
        """Requests per second over the next ``count``, and those requests."""
        begin = self.recorder.finished
        self.wait(count + 1)
        return self.recorder.throughput_hz(begin, begin + count + 1), self.recorder.timelines(begin, begin + count + 1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(60.0)
