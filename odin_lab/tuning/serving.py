"""Serves its own load with the tuner for a while, with a load beside it that comes and goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, Protocol

from odin.monitor.events import KnobTurned, LoadChanged
from odin.monitor.timing import RequestTimeline
from odin.tuning.periods import REQUESTS, Period
from odin.tuning.policy import KnobName, make_knob_policy
from odin.tuning.tuner import Tuner
from odin_lab.inject import Injector, Load
from odin_lab.simulator.tuning import share_within
from odin_lab.tuning.modes import Mode

__all__ = ["Done", "Serving", "serve", "spells_of"]

_LOOK_S = 0.1


class Serves(Protocol):
    """What is tuned, and sends requests: a :class:`~odin_lab.tuning.served.Served`."""

    mode: Mode
    batch: int
    dynamic_batching: bool
    value: int

    @property
    def devices(self) -> Sequence[Any]:
        """Of its stages."""

    def submit(self, samples: int) -> Future[Any]:
        """Send a request of so many samples."""

    def follow(self, on_result: Callable[[RequestTimeline], None]) -> Callable[[], None]:
        """See :meth:`odin.Pipeline.follow`."""

    def note_turn(self, event: KnobTurned) -> None:
        """See :meth:`odin.Pipeline.note_turn`."""

    def note_load(self, event: LoadChanged) -> None:
        """See :meth:`odin.Pipeline.note_load`."""


class Done(NamedTuple):
    """A request that was answered; seconds from the beginning."""

    at_s: float
    latency_s: float
    samples: int


class Serving(NamedTuple):
    """What came of it; all times from the beginning.

    Attributes
    ----------
    knob, start
        What was turned, and from which value on.
    done
        Requests in the order of their completion.
    periods
        At whose ends the knob was turned, or not.
    spells
        From when to when a load was there, and which one.
    seconds
        How long it took.
    """

    knob: KnobName
    start: int
    done: tuple[Done, ...]
    periods: tuple[Period, ...]
    spells: tuple[tuple[float, float, str], ...]
    seconds: float

    @property
    def throughput_hz(self) -> float:
        """Samples per second."""
        return sum(one.samples for one in self.done) / self.seconds

    @property
    def value(self) -> int:
        """The knob's value in the end."""
        return self.periods[-1].after if self.periods else self.start

    def within(self, limit_s: float) -> float:
        """Part of the time in periods that kept a limit."""
        return share_within(self.periods, limit_s)

    @property
    def settled_s(self) -> float | None:
        """Seconds until the value did not change any more before the first load; None if it did so to its end."""
        calm_s = min((begin_s for begin_s, _, _ in self.spells), default=self.seconds)
        calm = [period for period in self.periods if period.at_s < calm_s]
        turned = [period for period in calm if period.after != period.before]
        if not calm or (turned and turned[-1] is calm[-1]):
            return None
        return turned[-1].at_s if turned else 0.0


def spells_of(seconds: float) -> tuple[tuple[float, float], ...]:
    """When a load is there: the middle third.

    Examples
    --------
    >>> spells_of(30.0)
    ((10.0, 20.0),)
    """
    return ((seconds / 3, 2 * seconds / 3),)


def serve(
    served: Serves,
    *,
    start: int,
    largest: int | None = None,
    limit_s: float,
    seconds: float,
    policy: str = "dnnscaler",
    statistic: str = "p95",
    requests: int = REQUESTS,
    loads: Sequence[Load] = (),
    spells: Sequence[tuple[float, float]] = (),
    stop: Callable[[], bool] = lambda: False,
    look: Callable[[float, int], None] = lambda at_s, value: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Serving:
    """Keep as many requests under way as are computed at a time, while the tuner turns the knob.

    Parameters
    ----------
    served
        The pipeline in its mode.
    start
        The knob's value to begin with.
    largest
        Its largest; default: the mode's.
    limit_s, policy, statistic, requests
        For the tuner.
    seconds
        How long.
    loads, spells
        What is injected, and when.
    stop, look
        Whether to end early; told where one is.

    Raises
    ------
    Exception
        What a request failed with.
    """
    mode = served.mode
    served.value = start
    knob = make_knob_policy(
        policy,
        knob=mode.knob,
        limit_s=limit_s,
        largest=mode.largest if largest is None else largest,
        start=start,
        free=len(set(mode.stages)),
    )
    done: list[Done] = []
    periods: list[Period] = []
    failures: list[BaseException] = []
    free = threading.Condition()
    under_way = 0

    def on_done(submitted_s: float, samples: int, future: Future[Any]) -> None:
        nonlocal under_way
        now_s, error = clock(), future.exception()
        with free:
            under_way -= 1
            if error is not None:
                failures.append(error)
            else:
                done.append(Done(now_s - begin_s, now_s - submitted_s, samples))
            free.notify()

    with Injector(on_event=served.note_load) as injector:
        handles = [injector.start(load, idle=True) for load in loads]
        begin_s = clock()
        tuner = Tuner(
            served,
            latency_s=limit_s,
            knob=mode.knob,
            policy=knob,
            statistic=statistic,
            requests=requests,
            on_period=lambda period: periods.append(period._replace(at_s=period.at_s - begin_s)),
            clock=clock,
        )
        begun: dict[int, float] = {}
        told: list[tuple[float, float, str]] = []
        with tuner:
            while (at_s := clock() - begin_s) < seconds and not failures and not stop():
                now = any(first_s <= at_s < last_s for first_s, last_s in spells)
                for number, (load, handle) in enumerate(zip(loads, handles, strict=True)):
                    if now != (number in begun):
                        handle.set_intensity(load.intensity if now else 0.0)
                        if now:
                            begun[number] = at_s
                        else:
                            told.append((begun.pop(number), at_s, str(load)))
                look(at_s, served.value)
                with free:
                    if under_way >= mode.clients(served.value):
                        free.wait(_LOOK_S)
                        continue
                    under_way += 1
                submitted_s, samples = clock(), mode.samples(served.value)
                served.submit(samples).add_done_callback(partial(on_done, submitted_s, samples))
            ended_s = clock() - begin_s
            with free:
                free.wait_for(lambda: under_way == 0, 60.0)
        told += [(at_s, ended_s, str(loads[number])) for number, at_s in begun.items()]
    if failures:
        raise failures[0]
    return Serving(mode.knob, start, tuple(done), tuple(periods), tuple(told), ended_s)
