"""Keeps a server under steady load, a closed loop, and keeps what came of it: what the caller saw, and the events."""

from __future__ import annotations

import bisect
import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from odin.monitor.events import Event, RequestDone
from odin.monitor.timing import RequestTimeline

__all__ = ["Answer", "Feeder", "KeptEvents", "keep_in_flight"]

Kind = TypeVar("Kind")

_LOOK_S = 0.2
"""How often a loop that waits for an answer looks whether it is to end."""


class Answer(NamedTuple):
    """One request as its caller saw it; waiting for a place is part of it. ``error`` is empty if all was well."""

    submitted_s: float
    finished_s: float
    error: str = ""


def keep_in_flight(
    submit: Callable[[int], Future[Any]],
    *,
    in_flight: int,
    more: Callable[[int], bool],
    on_done: Callable[[int, float, float, BaseException | None], None],
    patience_s: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Keep ``in_flight`` requests under way until there are no more, then wait for those that are.

    Parameters
    ----------
    submit
        Request index -> future of its result. Waiting inside (backpressure) counts as latency.
    in_flight
        Bound on requests without a result.
    more
        Whether the request of this index is to be submitted; asked again and again while all are under way.
    on_done
        Called with index, seconds of submission, of completion, and the failure if it was one; from any thread.
    patience_s
        Seconds to wait for the last ones; None waits for ever.

    Returns
    -------
    int
        Requests that were not answered by then.
    """
    free = threading.Semaphore(in_flight)

    def done(index: int, submitted_s: float, future: Future[Any]) -> None:
        on_done(index, submitted_s, clock(), future.exception())
        free.release()

    held = 0  # places that this thread has taken and not given to a request
    index = 0
    try:
        while more(index):
            if not free.acquire(timeout=_LOOK_S):
                continue
            held = 1
            if not more(index):
                break
            submitted_s = clock()
            submit(index).add_done_callback(partial(done, index, submitted_s))
            held = 0
            index += 1
    finally:
        left = in_flight - held
        deadline_s = None if patience_s is None else time.monotonic() + patience_s
        while left and free.acquire(timeout=None if deadline_s is None else max(0.0, deadline_s - time.monotonic())):
            left -= 1
    return left


class Feeder:
    """Keeps a server under load from a thread of its own, from entering this until leaving it.

    Parameters
    ----------
    submit
        Request index -> future of its result.
    in_flight
        Requests under way at a time.
    failures
        So many failures in a row end it, with the last one as :attr:`error`.
    patience_s
        Seconds that leaving waits for what is under way.
    """

    def __init__(
        self,
        submit: Callable[[int], Future[Any]],
        *,
        in_flight: int,
        failures: int = 1,
        patience_s: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._submit = submit
        self._in_flight = in_flight
        self._failures = failures
        self._patience_s = patience_s
        self._clock = clock
        self._over = threading.Event()
        self._answers: list[Answer] = []
        self._in_a_row = 0
        self._unanswered = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._feed, name="odin-feeder", daemon=True)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Requests in the order of their completion."""
        return tuple(self._answers)

    @property
    def finished(self) -> int:
        """Requests so far."""
        return len(self._answers)

    @property
    def unanswered(self) -> int:
        """Requests that had no answer in the end."""
        return self._unanswered

    @property
    def error(self) -> BaseException | None:
        """What ended it."""
        return self._error

    @property
    def alive(self) -> bool:
        """Whether it still feeds."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Feed no more, and wait for what is under way. Idempotent."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(self._patience_s + 5.0)

    def _feed(self) -> None:
        try:
            self._unanswered = keep_in_flight(
                self._submit,
                in_flight=self._in_flight,
                more=lambda _: not self._over.is_set(),
                on_done=self._on_done,
                patience_s=self._patience_s,
                clock=self._clock,
            )
        except BaseException as error:
            self._error = error

    def _on_done(self, index: int, submitted_s: float, finished_s: float, error: BaseException | None) -> None:
        self._answers.append(Answer(submitted_s, finished_s, "" if error is None else f"{error!r}"))
        self._in_a_row = 0 if error is None else self._in_a_row + 1
        if error is not None and self._in_a_row >= self._failures and self._error is None:
            self._error = error
            self._over.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class KeptEvents:
    """Keeps a pipeline's events; its ``on_event``. Finished requests are kept apart from all others."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._requests: list[RequestDone] = []
        self._completed_s: list[float] = []

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, RequestDone):
            self._requests.append(event)
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

    def timelines(self, begin: int = 0, end: int | None = None) -> list[RequestTimeline]:
        """Requests number ``begin`` to ``end`` in the order of their completion."""
        return [event.timeline for event in self._requests[begin:end]]

    def throughput_hz(self, begin: int, end: int | None = None) -> float:
        """Requests per second from completion ``begin`` to completion ``end - 1``."""
        completed_s = self._completed_s[begin:end]
        return (len(completed_s) - 1) / (completed_s[-1] - completed_s[0])

    def of(self, kind: type[Kind], *, since_s: float = 0.0) -> list[Kind]:
        """Events of a kind from a time on."""
        return [event for event in tuple(self.events) if isinstance(event, kind) and event.at_s >= since_s]

    def between(self, begin_s: float, end_s: float) -> list[Event]:
        """Events from ``begin_s`` up to ``end_s``, finished requests among them, in order of time."""
        requests = sorted(self._requests, key=_time)
        merged = heapq.merge(sorted(self.events, key=_time), requests, key=_time)
        return [event for event in merged if begin_s <= event.at_s < end_s]


def _time(event: Event) -> float:
    return event.at_s
