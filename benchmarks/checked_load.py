"""Full load whose every answer is compared bit by bit: what was lost, given twice, or changed.

Kept in bounded memory, however long it runs: counts, and completions by tenths of a second.
"""

from __future__ import annotations

import array
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from odin.monitor.events import Event, RequestDone, StageLost
from odin_lab.feeding import keep_in_flight

__all__ = ["BIN_S", "CheckedLoad", "Completions", "Counts", "SeenEvents", "expected_outputs", "small_model"]

BIN_S = 0.1
"""Seconds of one count of completions."""

_MOST_ERRORS = 5
_MOST_EVENTS = 10_000


class Counts(NamedTuple):
    """What became of requests; all is well if the last four are 0.

    Attributes
    ----------
    lost
        Failed, or without an answer.
    duplicated
        Answers beyond the first, by callbacks and by the pipeline's own events.
    changed
        Answers of which a bit differs from the unsplit chain's.
    refused
        Could not be submitted.
    """

    submitted: int
    answered: int
    lost: int
    duplicated: int
    changed: int
    refused: int

    @property
    def well(self) -> bool:
        """Whether nothing was lost, given twice, changed or refused."""
        return not (self.lost or self.duplicated or self.changed or self.refused)


class Completions:
    """Completions by tenths of a second since ``begin_s``, appended by one thread and read by others."""

    def __init__(self, begin_s: float) -> None:
        self.begin_s = begin_s
        self._counts = array.array("I")

    def add(self, at_s: float) -> None:
        """One more at that time."""
        number = max(0, int((at_s - self.begin_s) / BIN_S))
        while len(self._counts) <= number:
            self._counts.append(0)
        self._counts[number] += 1

    def rate_hz(self, begin_s: float, end_s: float) -> float:
        """Completions per second in the whole bins between two times, which have passed; 0 if there is no bin."""
        first, last = self._bins(begin_s, end_s)  # the last may be beyond those counted: nothing has come since
        return sum(self._counts[first:last]) / ((last - first) * BIN_S) if last > first else 0.0

    def back_s(self, since_s: float, until_s: float, level_hz: float, *, window_s: float = 0.5) -> float | None:
        """Seconds from ``since_s`` to the end of the first window in which the rate was ``level_hz``; None if never."""
        first, last = self._bins(since_s, until_s)
        bins = max(1, round(window_s / BIN_S))
        for number in range(first, last - bins + 1):
            if sum(self._counts[number : number + bins]) >= level_hz * bins * BIN_S:
                return self.begin_s + (number + bins) * BIN_S - since_s
        return None

    def _bins(self, begin_s: float, end_s: float) -> tuple[int, int]:
        first = max(0, -int((self.begin_s - begin_s) // BIN_S))  # rounded up: whole bins only
        return first, int((end_s - self.begin_s) / BIN_S)


class SeenEvents:
    """A pipeline's ``on_event``: counts events by kind, and requests told of twice; keeps the last events of others."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self.sent_again = 0
        """Requests that stages had when they were lost."""
        self.twice = 0
        self._recent: dict[int, None] = {}

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.counts[type(event).__name__] += 1
        if isinstance(event, StageLost):
            self.sent_again += event.requests
        if not isinstance(event, RequestDone):
            self._events.append(event)
            return
        number = event.timeline.request
        self.twice += number in self._recent
        self._recent[number] = None
        if len(self._recent) > 2 * _MOST_EVENTS:
            self._recent = dict.fromkeys(list(self._recent)[_MOST_EVENTS:])

    def of(self, name: str, *, since_s: float = 0.0) -> list[Any]:
        """Events whose class has that name, from a time on; a class that this ODIN does not have has none."""
        return [event for event in tuple(self._events) if type(event).__name__ == name and event.at_s >= since_s]


def small_model() -> nn.Module:
    """Convolutions of some milliseconds together, all alike, so that any number of stages is in balance."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(8)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *blocks, nn.Conv2d(16, 2, 3)).eval()


def expected_outputs(
    run: Callable[[torch.Tensor], Any], count: int, *, seed: int
) -> tuple[list[torch.Tensor], list[Any]]:
    """Inputs of :func:`small_model`, each different, and what the unsplit chain makes of them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(1, 3, 64, 64, generator=generator) for _ in range(count)]
    return inputs, [run(x) for x in inputs]


class CheckedLoad:
    """Keeps a constant number of requests under way from a thread of its own, and checks every answer.

    Parameters
    ----------
    submit
        Input -> future of its output.
    inputs, expected
        In turn; more than there are under way, or a mixed-up answer could be the right one.
    in_flight
        Requests under way.
    seen
        The pipeline's events, for answers that were given twice.
    failures
        So many failures in a row end it: the pipeline is lost.
    patience_s
        Seconds that leaving waits for what is under way.

    Raises
    ------
    ValueError
        If there are not more inputs than requests under way.
    """

    def __init__(
        self,
        submit: Callable[[torch.Tensor], Future[Any]],
        inputs: Sequence[torch.Tensor],
        expected: Sequence[Any],
        *,
        in_flight: int,
        seen: SeenEvents | None = None,
        failures: int = 100,
        patience_s: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if len(inputs) <= in_flight:
            raise ValueError(f"{len(inputs)} inputs for {in_flight} requests under way: give more inputs")
        self._submit, self._inputs, self._expected = submit, inputs, expected
        self._in_flight, self._seen, self._failures, self._patience_s = in_flight, seen, failures, patience_s
        self._clock = clock
        self.completions = Completions(clock())
        self.errors: Counter[str] = Counter()
        """Failures by their text, the first few kinds."""
        self.ended = ""
        """Why it ended by itself; empty if it did not."""
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._submitted = self._answered = self._lost = self._again = self._changed = self._refused = 0
        self._in_a_row = 0
        self._armed_s: float | None = None
        self._first_s: float | None = None
        self._called: set[int] = set()
        self._oldest = 0
        self._thread = threading.Thread(target=self._feed, name="benchmark-load", daemon=True)

    def counts(self) -> Counts:
        """So far; what is under way is only submitted."""
        with self._lock:
            twice = self._again + (self._seen.twice if self._seen is not None else 0)
            return Counts(self._submitted, self._answered, self._lost, twice, self._changed, self._refused)

    def arm(self, at_s: float) -> None:
        """From now on look for the first right answer to a request that is submitted at ``at_s`` or later."""
        with self._lock:
            self._armed_s, self._first_s = at_s, None

    @property
    def first_s(self) -> float | None:
        """When that answer came; None until then."""
        return self._first_s

    @property
    def alive(self) -> bool:
        """Whether it still feeds."""
        return self._thread.is_alive() and not self._over.is_set()

    def _feed(self) -> None:
        try:
            left = keep_in_flight(
                self._send,
                in_flight=self._in_flight,
                more=lambda _: not self._over.is_set(),
                on_done=lambda *_: None,
                patience_s=self._patience_s,
                clock=self._clock,
            )
            with self._lock:
                self._lost += left
            if left:
                self.errors[f"no answer within {self._patience_s:g} s"] += left
        except Exception as error:  # submitting itself failed
            self.ended = self.ended or f"{type(error).__name__}: {error}"
        self._over.set()

    def _send(self, index: int) -> Future[Any]:
        submitted_s = self._clock()
        with self._lock:
            self._submitted += 1
        try:
            future = self._submit(self._inputs[index % len(self._inputs)])
        except Exception as error:
            with self._lock:
                self._refused += 1
            self._fails(error)
            future = Future()
            future.set_result(None)
            time.sleep(BIN_S)  # what refuses now is not asked at once again
            return future
        future.add_done_callback(partial(self._done, index, submitted_s))
        return future

    def _fails(self, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}"
        with self._lock:
            if text in self.errors or len(self.errors) < _MOST_ERRORS:
                self.errors[text] += 1
            self._in_a_row += 1
            if self._in_a_row >= self._failures and not self._over.is_set():
                self.ended = f"{self._in_a_row} failures in a row, the last: {text}"
                self._over.set()

    def _done(self, index: int, submitted_s: float, future: Future[Any]) -> None:
        at_s, error = self._clock(), future.exception()
        with self._lock:
            if index in self._called or index < self._oldest:
                self._again += 1
                return
            self._called.add(index)
            while self._oldest in self._called:
                self._called.remove(self._oldest)
                self._oldest += 1
            if error is not None:
                self._lost += 1
        if error is not None:
            self._fails(error)
            return
        right = torch.equal(future.result(), self._expected[index % len(self._expected)])
        with self._lock:
            self._in_a_row = 0
            self._answered += 1
            self._changed += not right
            if right and self._first_s is None and self._armed_s is not None and submitted_s >= self._armed_s:
                self._first_s = at_s
        self.completions.add(at_s)

    def stop(self) -> None:
        """Feed no more, and wait for what is under way. Idempotent."""
        self._over.set()
        with contextlib.suppress(RuntimeError):  # it was never started
            self._thread.join(self._patience_s + 5.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
